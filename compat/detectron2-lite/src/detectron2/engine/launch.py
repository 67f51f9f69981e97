# SPDX-License-Identifier: Apache-2.0
"""Launch of the processes of a training job."""

import logging
import socket
from contextlib import closing
from datetime import timedelta

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from detectron2.utils import comm

DEFAULT_TIMEOUT = timedelta(minutes=30)


def launch(
    main_func,
    num_gpus_per_machine,
    num_machines=1,
    machine_rank=0,
    dist_url=None,
    args=(),
    timeout=DEFAULT_TIMEOUT,
):
    """Runs ``main_func(*args)`` in every process of a job. It must be called on every machine.

    A single process runs in the calling process. Several processes are spawned, so ``main_func``
    must be importable. They communicate with NCCL, or with gloo on a machine without GPUs.

    Args:
        main_func: Function to run.
        num_gpus_per_machine: Number of processes on each machine; 0 and 1 mean the calling process.
        num_machines: Number of machines.
        machine_rank: Rank of this machine.
        dist_url: URL for the rendezvous of the processes, such as "tcp://127.0.0.1:8686"; "auto"
            finds a free port on a single machine.
        args: Arguments of ``main_func``.
        timeout: Timeout of the communication between processes.
    """
    world_size = num_machines * num_gpus_per_machine
    if world_size <= 1:
        main_func(*args)
        return
    if dist_url == "auto":
        assert num_machines == 1, (
            f"dist_url='auto' works on a single machine, got num_machines={num_machines}; use the "
            "address of one machine, tcp://HOST:PORT, on all machines"
        )
        with closing(socket.socket(socket.AF_INET, socket.SOCK_STREAM)) as probe:
            probe.bind(("", 0))
            dist_url = f"tcp://127.0.0.1:{probe.getsockname()[1]}"
    if num_machines > 1 and dist_url.startswith("file://"):
        logging.getLogger(__name__).warning(
            f"{dist_url}: a file is not a reliable rendezvous of several machines; use "
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
    rank = machine_rank * num_gpus_per_machine + local_rank
    num_devices = torch.cuda.device_count() if torch.cuda.is_available() else 0
    assert num_devices == 0 or num_gpus_per_machine <= num_devices, (
        f"--num-gpus {num_gpus_per_machine} exceeds the {num_devices} GPUs of this machine"
    )
    backend = "NCCL" if num_devices else "GLOO"
    try:
        dist.init_process_group(
            backend, init_method=dist_url, timeout=timeout, world_size=world_size, rank=rank
        )
    except Exception:
        logging.getLogger(__name__).error(f"The processes could not connect through {dist_url}")
        raise
    try:
        comm.create_local_process_group(num_gpus_per_machine)
        if num_devices:
            torch.cuda.set_device(f"cuda:{local_rank}")
        # Otherwise rank 0 may enter a collective before the others have set their device.
        comm.synchronize()
        main_func(*args)
    finally:
        # Threads of gloo that outlive the interpreter abort a process whose work is done.
        comm.destroy_process_groups()
