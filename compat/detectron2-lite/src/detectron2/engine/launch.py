# SPDX-License-Identifier: Apache-2.0
"""Start of the processes of a training job."""

import logging
import socket
from contextlib import closing
from datetime import timedelta

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from detectron2.utils import comm

__all__ = ["DEFAULT_TIMEOUT", "launch"]

DEFAULT_TIMEOUT = timedelta(minutes=30)


def _find_free_port() -> int:
    """A port that is free now. Another program might take it before it is used."""
    with closing(socket.socket(socket.AF_INET, socket.SOCK_STREAM)) as probe:
        probe.bind(("", 0))
        return probe.getsockname()[1]


def launch(
    main_func,
    num_gpus_per_machine,
    num_machines=1,
    machine_rank=0,
    dist_url=None,
    args=(),
    timeout=DEFAULT_TIMEOUT,
):
    """Run `main_func(*args)` in every process of a job; to be called on every machine.

    One process on one machine runs right here. More are spawned, so `main_func` has to be
    importable, and talk over NCCL, or over gloo on a machine without GPUs.

    Args:
        main_func: what to run.
        num_gpus_per_machine: processes on each machine; 0 and 1 mean the calling process.
        num_machines: number of machines.
        machine_rank: index of this machine.
        dist_url: where the processes meet, such as "tcp://127.0.0.1:8686"; "auto" finds a free
            port, on a single machine only.
        args: arguments of `main_func`.
        timeout: how long a process waits for the others.
    """
    world_size = num_machines * num_gpus_per_machine
    if world_size <= 1:
        main_func(*args)
        return
    if dist_url == "auto":
        assert num_machines == 1, (
            f"dist_url='auto' finds a port on one machine, but the job has {num_machines}: name "
            "the address of one of them, tcp://HOST:PORT, on all"
        )
        dist_url = f"tcp://127.0.0.1:{_find_free_port()}"
    if num_machines > 1 and dist_url.startswith("file://"):
        logging.getLogger(__name__).warning(
            f"{dist_url}: processes on several machines may fail to meet through a file; use "
            "tcp://HOST:PORT"
        )
    worker_args = (
        main_func,
        world_size,
        num_gpus_per_machine,
        machine_rank,
        dist_url,
        args,
        timeout,
    )
    mp.start_processes(_distributed_worker, worker_args, nprocs=num_gpus_per_machine, daemon=False)


def _distributed_worker(
    local_rank,
    main_func,
    world_size,
    num_gpus_per_machine,
    machine_rank,
    dist_url,
    args,
    timeout=DEFAULT_TIMEOUT,
):
    """Body of one spawned process."""
    rank = machine_rank * num_gpus_per_machine + local_rank
    num_devices = torch.cuda.device_count() if torch.cuda.is_available() else 0
    assert num_devices == 0 or num_gpus_per_machine <= num_devices, (
        f"--num-gpus {num_gpus_per_machine}, but this machine has {num_devices}"
    )
    backend = "NCCL" if num_devices else "GLOO"
    try:
        dist.init_process_group(
            backend, init_method=dist_url, timeout=timeout, world_size=world_size, rank=rank
        )
    except Exception:
        logging.getLogger(__name__).error(f"The processes did not meet at {dist_url}")
        raise
    comm.create_local_process_group(num_gpus_per_machine)
    if num_devices:
        torch.cuda.set_device(f"cuda:{local_rank}")
    # Without this, rank 0 may enter a collective before the others have set their device.
    comm.synchronize()
    main_func(*args)
