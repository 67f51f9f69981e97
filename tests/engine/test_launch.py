# SPDX-License-Identifier: Apache-2.0
"""Several processes on a CPU, started here, by torchrun or by srun: how they begin and end."""

import socket
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_runs import fail_in_second_process
from two_processes import run_in_two_processes

from person_search.engine import launch
from person_search.engine.launch import ExternalProcess, find_external_process

# The processes run text with exec(), since they could not import a function of a test module.
WORK = """
import atexit, os, pathlib, sys
from detectron2.utils import comm
folder = pathlib.Path({folder!r})
sys.stdout = open(folder / f"printed{{comm.get_rank()}}", "w")
atexit.register((folder / f"exit{{comm.get_rank()}}").write_text, "done")
sys.stdout.write(f"process {{comm.get_rank()}} of {{comm.get_world_size()}}")
{end}
"""


def run(folder: Path, end: str = "") -> None:
    run_in_two_processes(exec, WORK.format(folder=str(folder), end=end))


def test_exit_functions_run_and_output_is_flushed(tmp_path: Path) -> None:
    run(tmp_path, "raise SystemExit")
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {
        "exit0": "done",
        "exit1": "done",
        "printed0": "process 0 of 2",
        "printed1": "process 1 of 2",
    }


def test_exit_status_is_that_of_the_failed_process(tmp_path: Path) -> None:
    """The other process would wait without end, and is stopped."""
    end = "import threading\nif comm.get_rank(): raise SystemExit('why')\nthreading.Event().wait()"
    with pytest.raises(SystemExit) as raised:
        run(tmp_path, end)
    assert raised.value.code == 1


def test_exception_is_that_of_the_failed_process(tmp_path: Path) -> None:
    with pytest.raises(Exception, match="ZeroDivisionError"):
        run(tmp_path, "1 // comm.get_rank()")


def test_user_error_in_one_process_is_one_message(tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as end:
        run_in_two_processes(fail_in_second_process, str(tmp_path))
    assert end.value.code == 2
    message = (tmp_path / "stderr1").read_text()
    assert "error (process 1): no room" in message
    assert "Traceback" not in message


@pytest.mark.parametrize(
    ("kwargs", "text"),
    [
        ({"num_gpus": 1, "num_processes": 2}, "--num-gpus 0"),
        ({"num_gpus": -1}, "at least 0"),
        ({"num_gpus": 0, "num_processes": 0}, "at least 1"),
        ({"num_gpus": 0, "num_machines": 2}, "--dist-url"),
        ({"num_gpus": 999}, "999, but .* CUDA devices are visible"),
    ],
)
def test_contradicting_numbers(kwargs, text) -> None:
    with pytest.raises(ValueError, match=text):
        launch(print, **kwargs)


@pytest.mark.parametrize("num_gpus", [0, 1])
def test_a_single_process_is_this_one(num_gpus) -> None:
    calls = []
    launch(lambda *args: calls.append(args), num_gpus=num_gpus, args=(1, 2))
    assert calls == [(1, 2)]


# ---- processes that torchrun or srun has started ------------------------------------------------
TORCHRUN = {
    "TORCHELASTIC_RUN_ID": "1", "RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1",
    "LOCAL_WORLD_SIZE": "2",
}  # fmt: skip
SRUN = {
    "SLURM_STEP_ID": "0", "SLURM_PROCID": "3", "SLURM_NTASKS": "4", "SLURM_LOCALID": "1",
    "SLURM_STEP_TASKS_PER_NODE": "2(x2)", "SLURM_LAUNCH_NODE_IPADDR": "10.0.0.5",
}  # fmt: skip


def test_places_of_external_processes() -> None:
    assert find_external_process({}) is None
    assert find_external_process({**SRUN, "SLURM_NTASKS": "1"}) is None
    assert find_external_process(TORCHRUN) == ExternalProcess("torchrun", 3, 4, 1, 2, "env://")
    wanted = ExternalProcess("srun", 3, 4, 1, 2, "tcp://10.0.0.5:29500")
    assert find_external_process(SRUN) == wanted
    named = find_external_process({**SRUN, "MASTER_ADDR": "node7", "MASTER_PORT": "1234"})
    assert named.init_method == "tcp://node7:1234"


@pytest.mark.parametrize(
    ("environ", "text"),
    [
        ({**TORCHRUN, "RANK": ""}, "torchrun must set RANK to an integer of at least 0; it is ''"),
        ({**TORCHRUN, "LOCAL_RANK": "2"}, "contradict each other: rank 3 of 4, local rank 2 of 2"),
        ({**SRUN, "SLURM_STEP_TASKS_PER_NODE": "2,1"}, "is '2,1'; all nodes must run the same"),
        ({**SRUN, "SLURM_PROCID": "x"}, "srun must set SLURM_PROCID"),
    ],
)
def test_contradicting_variables(environ, text) -> None:
    with pytest.raises(ValueError, match=text):
        find_external_process(environ)


def test_numbers_that_contradict_the_launcher(monkeypatch) -> None:
    for name, value in TORCHRUN.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match="torchrun starts the processes; .* contradict it"):
        launch(print, num_gpus=0, num_processes=2)


JOIN = """
import sys
from detectron2.utils import comm
from person_search.engine import launch
def main():
    total = sum(comm.all_gather(comm.get_rank() + 1))
    print(f"rank {comm.get_rank()} of {comm.get_world_size()}, "
          f"local {comm.get_local_rank()} of {comm.get_local_size()}, sum {total}\\n", end="")
    sys.exit(7 if sys.argv[1] == "fail" else None)
launch(main, num_gpus=0)
"""


def test_torchrun(tmp_path: Path, child_env: dict[str, str]) -> None:
    (tmp_path / "join.py").write_text(JOIN)
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    command += ["--master-port", "0", "--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0"]
    run = subprocess.run(
        [*command, str(tmp_path / "join.py"), "end"], env=child_env, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr[-2000:]
    lines = sorted(run.stdout.split("\n"))[-2:]
    assert lines == [f"rank {i} of 2, local {i} of 2, sum 3" for i in (0, 1)]


def test_srun_and_the_exit_status(tmp_path: Path, child_env: dict[str, str]) -> None:
    """Slurm is not needed: srun only sets variables."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {**child_env, **SRUN, "SLURM_NTASKS": "2", "SLURM_STEP_TASKS_PER_NODE": "2"}
    common |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    processes = []
    for rank in ("0", "1"):
        env = {**common, "SLURM_PROCID": rank, "SLURM_LOCALID": rank}
        words = [sys.executable, "-c", JOIN, "fail"]
        processes.append(subprocess.Popen(words, env=env, stdout=subprocess.PIPE, text=True))
    outputs = [process.communicate()[0].strip() for process in processes]
    assert outputs == [f"rank {i} of 2, local {i} of 2, sum 3" for i in (0, 1)]
    assert [process.returncode for process in processes] == [7, 7]
