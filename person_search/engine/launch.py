# SPDX-License-Identifier: Apache-2.0
"""Starts one process per GPU or several processes on a CPU, or joins those of torchrun or Slurm.

Whatever starts the processes, the end of one of them ends the run. A process whose connection to
another breaks ends with one line. A machine that disappears without closing its connections (power,
network) is noticed by :func:`_watch_machines`, since collectives would wait for it for 30 minutes.
"""

import argparse
import atexit
import os
import re
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any, NoReturn
from urllib.parse import urlparse

import torch
from detectron2.engine import launch as launch_on_gpus
from detectron2.utils import comm
from torch import distributed as dist
from torch import multiprocessing as mp

SECONDS_TO_BE_STOPPED = 30
SECONDS_BETWEEN_SIGNS = 5
SECONDS_OF_SILENCE = 40
"""A machine is lost if it has given no sign of life for this long."""
DEFAULT_PORT = 29500
AGAIN = "Start again to continue (a training with --resume)."

_LOST_CONNECTION = re.compile(
    r"gloo/transport|ncclRemoteError|onnection (?:closed|reset)|roken pipe"
)


@dataclass(frozen=True)
class ExternalProcess:
    """Place of this process among those that another program has started.

    Args:
        launcher: "torchrun", "srun", or "the environment" where only WORLD_SIZE and RANK are set,
            as by a Kubernetes PyTorchJob.
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
    """Reads the variables of torchrun, those of Slurm's srun, or WORLD_SIZE and RANK.

    Args:
        environ: Environment variables.

    Returns:
        The place of this process; None if no other program started it, or if it is the only one.

    Raises:
        ValueError: If variables are missing or contradict each other.
    """
    elastic = "TORCHELASTIC_RUN_ID" in environ  # also where srun starts torchrun
    if not elastic and "SLURM_STEP_ID" in environ and environ.get("SLURM_NTASKS", "1") != "1":
        launcher = "srun"
        rank, world_size, local_rank = (
            _integer(environ, name, launcher)
            for name in ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID")
        )
        tasks = environ.get("SLURM_STEP_TASKS_PER_NODE", "")
        per_node = re.fullmatch(r"(\d+)(?:\(x\d+\))?", tasks)
        if per_node is None or world_size % int(per_node[1]):
            raise ValueError(
                f"SLURM_STEP_TASKS_PER_NODE is {tasks!r}; all nodes must run the same number of "
                "tasks: use srun --ntasks-per-node."
            )
        local_world_size = int(per_node[1])
        address = environ.get("MASTER_ADDR") or environ.get("SLURM_LAUNCH_NODE_IPADDR", "127.0.0.1")
        port = environ.get("MASTER_PORT", DEFAULT_PORT)
    elif elastic or environ.get("WORLD_SIZE", "1") != "1":
        launcher = "torchrun" if elastic else "the environment"
        if not elastic:  # one process per machine, if nothing else is said
            environ = {"LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1", **environ}
        rank, world_size, local_rank, local_world_size = (
            _integer(environ, name, launcher)
            for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
        )
        if missing := [x for x in ("MASTER_ADDR", "MASTER_PORT") if not environ.get(x)]:
            raise ValueError(f"{launcher} must set {missing[0]}, where the processes meet.")
        address, port = environ["MASTER_ADDR"], environ["MASTER_PORT"]
    else:
        return None
    if not (rank < world_size and local_rank < local_world_size):
        raise ValueError(
            f"the variables of {launcher} contradict each other: rank {rank} of {world_size}, "
            f"local rank {local_rank} of {local_world_size}."
        )
    if rank % local_world_size != local_rank:
        raise ValueError(
            f"the variables of {launcher} contradict each other: local rank {local_rank} of rank "
            f"{rank} with {local_world_size} processes per machine. The ranks of a machine must be "
            "consecutive (srun --distribution=block)."
        )
    url = f"tcp://{address}:{port}"
    return ExternalProcess(launcher, rank, world_size, local_rank, local_world_size, url)


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
    Detectron2's ``launch``. Without, the processes communicate through gloo, which Detectron2 does
    not offer. The exit status of a failed process becomes that of this one.
    A process that is killed ends all others within seconds, a machine that is lost within a minute.

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
    if external is not None and external.launcher == "the environment" and num_machines > 1:
        external = None  # --machine-rank $RANK --dist-url tcp://$MASTER_ADDR:$MASTER_PORT
    if external is not None:
        if num_processes > 1 or num_gpus > 1 or num_machines > 1:
            raise ValueError(
                f"{external.launcher} starts the processes; --num-processes, --num-machines and "
                f"more than one --num-gpus contradict its world size of {external.world_size}. Use "
                "--num-gpus 0 for a CPU only."
            )
        _run_external_process(external, main, num_gpus > 0, args)
        return
    if num_gpus < 0 or num_processes < 1:
        raise ValueError("--num-gpus must be at least 0, --num-processes at least 1.")
    if not 0 <= machine_rank < num_machines:
        raise ValueError(
            f"--machine-rank is {machine_rank} with --num-machines {num_machines}; ranks are 0 to "
            "the number of machines - 1."
        )
    if num_machines > 1 and dist_url == "auto":
        raise ValueError("Several machines need --dist-url tcp://<first machine>:<free port>.")
    if num_machines > 1 and not _is_meeting_point(dist_url):
        raise ValueError(
            f"--dist-url is {dist_url!r}; it must be tcp://<first machine>:<free port>, or file:// "
            "and an absolute path that all machines share."
        )
    available = torch.cuda.device_count()
    if num_gpus > max(available, 1):
        raise ValueError(
            f"--num-gpus {num_gpus}, but {available} CUDA devices are visible. For a CPU: "
            "--num-gpus 0 --num-processes N."
        )
    total = num_machines * max(num_gpus, num_processes)
    try:
        if total == 1:
            main(*args)
        elif num_gpus > 0:
            launch_on_gpus(
                _run_gpu_process,
                num_gpus,
                num_machines,
                machine_rank,
                dist_url,
                (dist_url, main, args),
            )
        else:
            with tempfile.TemporaryDirectory(prefix="person_search_") as folder:
                if dist_url == "auto":  # a file needs no free port
                    # torch decodes %20 and the like on Windows only
                    path = Path(folder, "meeting_point")
                    dist_url = path.as_uri() if os.name == "nt" else f"file://{path}"
                failed = mp.get_context(start_method).Event()
                mp.start_processes(
                    _run_cpu_process,
                    args=(failed, main, num_processes, num_machines, machine_rank, dist_url, args),
                    nprocs=num_processes,
                    start_method=start_method,
                )
    except mp.ProcessExitedException as e:
        if e.exit_code > 0:  # its message has been printed
            sys.exit(e.exit_code)
        cause = ", for example where the memory is full" if e.signal_name == "SIGKILL" else ""
        print(f"error: process {e.error_index} of this machine ended by {e.signal_name}{cause}; "
              f"the others were stopped. {AGAIN}", file=sys.stderr)  # fmt: skip
        sys.exit(128 - e.exit_code)


def _is_meeting_point(url: str) -> bool:
    """Whether several machines can meet at an address."""
    parts = urlparse(url)
    if parts.scheme == "file":
        return parts.path.startswith("/")
    try:
        return parts.scheme == "tcp" and bool(parts.hostname) and parts.port is not None
    except ValueError:  # the port is not a number
        return False


def launch_program(work: Callable[..., Any], args: argparse.Namespace, *more: Any) -> None:
    """Runs ``work(args, *more)`` in every process that the command line or the launcher asks for.

    Args:
        work: Importable function.
        args: Parsed command line with the options of :func:`person_search.cli.add_launch_options`.
        *more: Further arguments of ``work``.

    Raises:
        ValueError: See :func:`launch`.
    """
    launch(
        work, num_gpus=args.num_gpus, num_processes=args.num_processes,
        num_machines=args.num_machines, machine_rank=args.machine_rank, dist_url=args.dist_url,
        args=(args, *more),
    )  # fmt: skip


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
    _meet("nccl" if on_gpus else "gloo", process.init_method, process.world_size, process.rank)
    comm.create_local_process_group(process.local_world_size)
    comm.synchronize()
    _run_and_leave(process.init_method, main, args)


def _run_gpu_process(url: str, main: Callable[..., Any], args: tuple) -> None:
    _run_watched(url, main, args)
    _leave(0)  # see there; after an error, NCCL could block where its groups are destroyed


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
    _meet("gloo", dist_url, num_processes * num_machines, machine_rank * num_processes + local_rank)
    comm.create_local_process_group(num_processes)
    comm.synchronize()
    _run_and_leave(dist_url, main, args, failed)


def _meet(backend: str, url: str, world_size: int, rank: int) -> None:
    try:
        dist.init_process_group(backend, init_method=url, world_size=world_size, rank=rank)
    except dist.DistError as e:
        print(f"error (process {rank} of {world_size}): the processes cannot meet at {url}: "
              f"{str(e).splitlines()[0]}", file=sys.stderr)  # fmt: skip
        raise SystemExit(2) from e


def _run_and_leave(
    url: str, main: Callable[..., Any], args: tuple, failed: Event | None = None
) -> NoReturn:
    """Calls ``main`` in one of several processes, and ends this process after it.

    Args:
        url: Address where the processes met.
        main: Function to call.
        args: Its arguments.
        failed: Event that tells the other processes of this machine of a failure.
    """
    status: int | str | None = 0
    try:
        _run_watched(url, main, args, failed)
    except (SystemExit, Exception) as e:
        if failed is not None:
            failed.set()
        if not isinstance(e, SystemExit):
            raise
        status = e.code  # its message has been printed
    finally:
        # Also where a run was stopped: gloo's threads abort a process that exits without this.
        dist.destroy_process_group()
    _leave(status)


def _run_watched(
    url: str, main: Callable[..., Any], args: tuple, failed: Event | None = None
) -> None:
    """Calls ``main`` in one of several processes while the machines watch each other.

    Args:
        url: Address where the processes met.
        main: Function to call.
        args: Its arguments.
        failed: Set where another process of this machine has failed, if the parent tells.
    """
    ended = threading.Event()
    machines, size = comm.get_world_size() // comm.get_local_size(), comm.get_local_size()
    watch = threading.Thread(
        target=_watch_machines,
        args=(url, comm.get_rank() // size, machines, comm.get_local_rank() == 0, ended),
        daemon=True,
    )
    if machines > 1 and url.startswith("tcp://"):
        watch.start()
    try:
        main(*args)
    except Exception as e:
        lost = isinstance(e, RuntimeError) and _LOST_CONNECTION.search(str(e))
        # The end of one process breaks the connections of the others. Their errors are not the
        # cause, so they wait until the parent, which knows it, stops them.
        if failed is not None and (lost or failed.is_set()):
            time.sleep(SECONDS_TO_BE_STOPPED)
        if not lost:
            raise
        print(f"error (process {comm.get_rank()} of {comm.get_world_size()}): the connection to "
              f"another process broke; its own message tells why ({str(e).splitlines()[0]}). "
              f"{AGAIN}",
              file=sys.stderr, flush=True)  # fmt: skip
        raise SystemExit(1) from e
    finally:
        ended.set()
        if watch.ident is not None:
            watch.join()


def _watch_machines(
    url: str, machine: int, machines: int, speaks: bool, ended: threading.Event
) -> None:
    """Ends this process where another machine no longer gives a sign of life.

    Args:
        url: Address of the store of the process group, on the first machine.
        machine: Index of this machine.
        machines: Number of machines.
        speaks: Whether this process gives the signs of its machine.
        ended: Set when the work of this process has ended.
    """
    parts = urlparse(url)
    finished = 1 << 40
    seen = {other: (0, time.monotonic()) for other in range(machines) if other != machine}
    silence: threading.Timer | None = None
    try:
        store = dist.TCPStore(
            str(parts.hostname), parts.port or DEFAULT_PORT, wait_for_workers=False,
            timeout=timedelta(seconds=SECONDS_OF_SILENCE),
        )  # fmt: skip
        running = True
        while running:
            running = not ended.wait(SECONDS_BETWEEN_SIGNS)
            # a store whose machine is lost does not answer: then the timer speaks
            silence = threading.Timer(SECONDS_OF_SILENCE, _end_lost, ["the first machine"])
            silence.daemon = True
            silence.start()
            if speaks:
                store.add(f"machine{machine}", 1 if running else finished)
            lost = ""
            for other, (count, since) in seen.items():
                now = store.add(f"machine{other}", 0)
                if now != count or now >= finished:
                    seen[other] = (now, time.monotonic())
                elif running and time.monotonic() - since > SECONDS_OF_SILENCE:
                    lost = f"machine {other} of {machines}"
            silence.cancel()
            if lost:
                _end_lost(lost)
    except dist.DistError:
        pass  # the process with the store has ended, which breaks the connections of all others
    finally:
        if silence is not None:
            silence.cancel()


def _end_lost(what: str) -> NoReturn:
    print(f"error (process {comm.get_rank()} of {comm.get_world_size()}): {what} has given no sign "
          f"of life for {SECONDS_OF_SILENCE} s. It or its network is lost, so this run ends. "
          f"{AGAIN}", file=sys.stderr, flush=True)  # fmt: skip
    os._exit(1)


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
