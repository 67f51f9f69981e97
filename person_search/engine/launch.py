# SPDX-License-Identifier: Apache-2.0
"""Starts one process per GPU or several processes on a CPU, or joins those of torchrun or Slurm."""

import atexit
import os
import re
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from multiprocessing.synchronize import Event
from typing import Any, NoReturn

import torch
from detectron2.engine import launch as launch_on_gpus
from detectron2.utils import comm
from torch import distributed as dist
from torch import multiprocessing as mp

SECONDS_TO_BE_STOPPED = 30
DEFAULT_PORT = 29500


@dataclass(frozen=True)
class ExternalProcess:
    """Place of this process among those that another program has started.

    Args:
        launcher: "torchrun" or "srun".
        rank: Rank among all processes.
        world_size: Number of all processes.
        local_rank: Rank among the processes of this machine.
        local_world_size: Number of processes of this machine.
        init_method: Address where the processes meet.
    """

    launcher: str
    rank: int
    world_size: int
    local_rank: int
    local_world_size: int
    init_method: str


def find_external_process(environ: Mapping[str, str]) -> ExternalProcess | None:
    """Reads the variables of torchrun, or those of Slurm's srun.

    Args:
        environ: Environment variables.

    Returns:
        The place of this process; None if neither program started it, or if it is the only task.

    Raises:
        ValueError: If variables are missing or contradict each other.
    """
    if "TORCHELASTIC_RUN_ID" in environ:
        rank, world_size, local_rank, local_world_size = (
            _integer(environ, name, "torchrun")
            for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
        )
        process = ExternalProcess(
            "torchrun", rank, world_size, local_rank, local_world_size, "env://"
        )
    elif "SLURM_STEP_ID" in environ and int(environ.get("SLURM_NTASKS", "1")) > 1:
        rank, world_size, local_rank = (
            _integer(environ, name, "srun")
            for name in ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID")
        )
        tasks = environ.get("SLURM_STEP_TASKS_PER_NODE", "")
        per_node = re.fullmatch(r"(\d+)(?:\(x\d+\))?", tasks)
        if per_node is None or world_size % int(per_node[1]):
            raise ValueError(
                f"SLURM_STEP_TASKS_PER_NODE is {tasks!r}; all nodes must run the same number of "
                "tasks: use srun --ntasks-per-node."
            )
        address = environ.get("MASTER_ADDR") or environ.get("SLURM_LAUNCH_NODE_IPADDR", "127.0.0.1")
        port = environ.get("MASTER_PORT", DEFAULT_PORT)
        process = ExternalProcess(
            "srun", rank, world_size, local_rank, int(per_node[1]), f"tcp://{address}:{port}"
        )
    else:
        return None
    if not (process.rank < process.world_size and process.local_rank < process.local_world_size):
        raise ValueError(
            f"the variables of {process.launcher} contradict each other: rank {process.rank} of "
            f"{process.world_size}, local rank {process.local_rank} of {process.local_world_size}."
        )
    return process


def _integer(environ: Mapping[str, str], name: str, launcher: str) -> int:
    value = environ.get(name, "")
    if not value.isdecimal():
        raise ValueError(
            f"{launcher} must set {name} to an integer of at least 0; it is {value!r}."
        )
    return int(value)


def launch(
    main: Callable[..., Any],
    *,
    num_gpus: int,
    num_processes: int = 1,
    num_machines: int = 1,
    machine_rank: int = 0,
    dist_url: str = "auto",
    start_method: str = "spawn",
    args: tuple = (),
) -> None:
    """Runs ``main(*args)`` in every process of a training.

    Under torchrun or srun this process is one of them, and the numbers of processes and machines
    come from their variables. Otherwise the processes are started here. With GPUs, this is
    Detectron2's ``launch``. Without, the processes communicate through gloo,
    which Detectron2 does not offer. The exit status of a failed process becomes that of this one.

    Args:
        main: Importable function.
        num_gpus: Number of processes per machine, each with its own GPU; 0 for a CPU.
        num_processes: Number of processes per machine on a CPU (``num_gpus`` is 0).
        num_machines: Number of machines.
        machine_rank: Rank of this machine, from 0.
        dist_url: Address where the processes meet, for example ``tcp://10.0.0.1:29500``. "auto"
            finds one, on a single machine.
        start_method: How processes on a CPU are started; see ``multiprocessing``.
        args: Arguments of ``main``.

    Raises:
        ValueError: If the numbers contradict each other or the machine.
    """
    if num_gpus > 0 and num_processes > 1:
        raise ValueError(
            f"--num-processes {num_processes} is for a CPU and needs --num-gpus 0; "
            f"--num-gpus {num_gpus} starts one process per GPU by itself."
        )
    external = find_external_process(os.environ)
    if external is not None:
        if num_processes > 1 or num_gpus > 1 or num_machines > 1:
            raise ValueError(
                f"{external.launcher} starts the processes; --num-processes, --num-machines and "
                "more than one --num-gpus contradict it. Use --num-gpus 0 for a CPU only."
            )
        _run_external_process(external, main, num_gpus > 0, args)
        return
    if num_gpus < 0 or num_processes < 1:
        raise ValueError("--num-gpus must be at least 0, --num-processes at least 1.")
    if num_machines > 1 and dist_url == "auto":
        raise ValueError("Several machines need --dist-url tcp://<first machine>:<free port>.")
    available = torch.cuda.device_count()
    if num_gpus > max(available, 1):
        raise ValueError(
            f"--num-gpus {num_gpus}, but {available} CUDA devices are visible. For a CPU: "
            "--num-gpus 0 --num-processes N."
        )
    try:
        if num_gpus > 0:
            launch_on_gpus(main, num_gpus, num_machines, machine_rank, dist_url, args)
        elif num_machines * num_processes == 1:
            main(*args)
        else:
            with tempfile.TemporaryDirectory(prefix="person_search_") as folder:
                if dist_url == "auto":  # a file needs no free port
                    dist_url = "file://" + os.path.join(folder, "meeting_point")
                failed = mp.get_context(start_method).Event()
                mp.start_processes(
                    _run_cpu_process,
                    args=(failed, main, num_processes, num_machines, machine_rank, dist_url, args),
                    nprocs=num_processes,
                    start_method=start_method,
                )
    except mp.ProcessExitedException as e:  # its message has been printed
        sys.exit(e.exit_code if e.exit_code > 0 else 128 - e.exit_code)


def _run_external_process(
    process: ExternalProcess, main: Callable[..., Any], on_gpus: bool, args: tuple
) -> None:
    """Joins the processes of torchrun or srun and runs ``main``."""
    if on_gpus:
        if process.local_rank >= torch.cuda.device_count():
            raise ValueError(
                f"{process.launcher} started {process.local_world_size} processes on this machine, "
                f"but {torch.cuda.device_count()} CUDA devices are visible; --num-gpus 0 is for a "
                "CPU."
            )
        torch.cuda.set_device(process.local_rank)
    dist.init_process_group(
        "nccl" if on_gpus else "gloo",
        init_method=process.init_method,
        world_size=process.world_size,
        rank=process.rank,
    )
    comm.create_local_process_group(process.local_world_size)
    comm.synchronize()
    status: int | str | None = 0
    try:
        main(*args)
    except SystemExit as e:  # its message has been printed
        status = e.code
    finally:
        dist.destroy_process_group()
    _leave(status)


def _run_cpu_process(
    local_rank: int,
    failed: Event,
    main: Callable[..., Any],
    num_processes: int,
    num_machines: int,
    machine_rank: int,
    dist_url: str,
    args: tuple,
) -> None:
    dist.init_process_group(
        "gloo",
        init_method=dist_url,
        world_size=num_processes * num_machines,
        rank=machine_rank * num_processes + local_rank,
    )
    comm.create_local_process_group(num_processes)
    comm.synchronize()
    status: int | str | None = 0
    try:
        main(*args)
    except SystemExit as e:  # its message has been printed
        failed.set()
        status = e.code
    except Exception:
        # The end of one process breaks the connections of the others. Their errors are not the
        # cause, so they wait until the parent stops them.
        if failed.is_set():
            time.sleep(SECONDS_TO_BE_STOPPED)
        failed.set()
        raise
    finally:
        # Also where a run was stopped: gloo's threads abort a process that exits without this.
        dist.destroy_process_group()
    _leave(status)


def _leave(status: int | str | None) -> NoReturn:
    """Ends this process without finalizing the interpreter, as forked workers do.

    Detectron2 keeps the process group of this machine. While the interpreter destroys it, ending
    threads of gloo abort a process whose work is done; under load, this happened once in 30 runs.
    """
    if isinstance(status, str):
        print(status, file=sys.stderr)
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status if isinstance(status, int) else 0 if status is None else 1)
