# SPDX-License-Identifier: Apache-2.0
"""Several processes on a CPU, started here, by torchrun or by srun: how they begin and end."""

import argparse
import importlib
import itertools
import os
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from tiny_runs import fail_in_second_process, train_by_launcher
from torch import distributed as dist
from two_processes import run_in_two_processes

from person_search.cli import add_launch_options
from person_search.engine import launch, launch_program
from person_search.engine.launch import ExternalProcess, find_external_process

launch_module = importlib.import_module(
    "person_search.engine.launch"
)  # a name of the function, too

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


def test_a_killed_process_ends_the_others_with_its_reason(tmp_path: Path, capsys) -> None:
    """The other one waits for it, and its broken connection is not the reason."""
    end = "if comm.get_rank(): os.kill(os.getpid(), 9)\ncomm.synchronize()"
    with pytest.raises(SystemExit) as raised:
        run(tmp_path, end)
    assert raised.value.code == 128 + signal.SIGKILL
    message = capsys.readouterr().err
    assert "error: process 1 of this machine ended by SIGKILL, for example where" in message


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
        ({"num_gpus": 0, "num_machines": 2, "dist_url": "10.0.0.1:29500"}, "must be tcp://"),
        ({"num_gpus": 0, "num_machines": 2, "dist_url": "tcp://10.0.0.1"}, "must be tcp://"),
        ({"num_gpus": 0, "num_machines": 2, "dist_url": "tcp://a:port"}, "must be tcp://"),
        ({"num_gpus": 0, "num_machines": 2, "machine_rank": 2}, "--machine-rank is 2 with"),
        ({"num_gpus": 0, "num_machines": 0}, "--machine-rank is 0 with --num-machines 0"),
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


def test_a_program_launches_by_its_command_line() -> None:
    parser, calls = argparse.ArgumentParser(), []
    add_launch_options(parser, num_gpus=0)
    args = parser.parse_args([])
    launch_program(lambda *given: calls.append(given), args, "more")
    assert calls == [(args, "more")]
    with pytest.raises(ValueError, match="Several machines need --dist-url"):
        launch_program(print, parser.parse_args(["--num-machines", "2"]))


# ---- machines that are lost ----------------------------------------------------------------------
class Lost(Exception):
    """In place of the end of this process."""


class EndsAfterFiveRounds(threading.Event):
    rounds = 5

    def wait(self, timeout: float | None = None) -> bool:
        self.rounds -= 1
        return self.rounds < 0


@pytest.fixture
def watch(monkeypatch):
    """Returns ``watch(store)``: this process is the second of two machines; rounds take 100 s."""

    def lost(what: str) -> None:
        raise Lost(what)

    def watch(store: dist.TCPStore) -> None:
        url = f"tcp://127.0.0.1:{store.port}"
        launch_module._watch_machines(url, 1, 2, True, EndsAfterFiveRounds())

    monkeypatch.setattr(launch_module, "_end_lost", lost)
    clock = SimpleNamespace(monotonic=itertools.count(step=100).__next__)
    monkeypatch.setattr(launch_module, "time", clock)
    return watch


def test_a_machine_without_a_sign_of_life_is_lost(watch) -> None:
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    with pytest.raises(Lost, match="machine 0 of 2"):
        watch(store)
    assert store.add("machine1", 0) >= 1, "it has given its own signs"


def test_a_machine_that_has_finished_is_not_lost(watch) -> None:
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    store.add("machine0", 1 << 40)
    watch(store)
    assert store.add("machine1", 0) == 5 + (1 << 40), "five signs, and that it has finished"


# ---- processes that torchrun or srun has started ------------------------------------------------
TORCHRUN = {
    "TORCHELASTIC_RUN_ID": "1", "RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1",
    "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "10.0.0.5", "MASTER_PORT": "29400",
}  # fmt: skip
PLAIN = {name: TORCHRUN[name] for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")}
SRUN = {
    "SLURM_STEP_ID": "0", "SLURM_PROCID": "3", "SLURM_NTASKS": "4", "SLURM_LOCALID": "1",
    "SLURM_STEP_TASKS_PER_NODE": "2(x2)", "SLURM_LAUNCH_NODE_IPADDR": "10.0.0.5",
}  # fmt: skip


def test_places_of_external_processes() -> None:
    assert find_external_process({}) is None
    assert find_external_process({**SRUN, "SLURM_NTASKS": "1"}) is None
    place = (3, 4, 1, 2, "tcp://10.0.0.5:29400")
    assert find_external_process(TORCHRUN) == ExternalProcess("torchrun", *place)
    assert find_external_process({**SRUN, **TORCHRUN}) == ExternalProcess("torchrun", *place)
    place = (3, 4, 0, 1, "tcp://10.0.0.5:29400")  # of a PyTorchJob: one process per machine
    assert find_external_process(PLAIN) == ExternalProcess("the environment", *place)
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
        ({**SRUN, "SLURM_LOCALID": "0"}, "must be consecutive .srun --distribution=block"),
        ({**PLAIN, "MASTER_PORT": ""}, "the environment must set MASTER_PORT"),
        ({**PLAIN, "WORLD_SIZE": "all"}, "WORLD_SIZE to an integer of at least 0; it is 'all'"),
    ],
)
def test_contradicting_variables(environ, text) -> None:
    with pytest.raises(ValueError, match=text):
        find_external_process(environ)


def test_numbers_that_contradict_the_launcher(monkeypatch) -> None:
    for name, value in TORCHRUN.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(
        ValueError, match="torchrun starts the processes; .* contradict its world size of 4"
    ):
        launch(print, num_gpus=0, num_processes=2)


TRAIN = """
import sys
from detectron2.utils import comm
from person_search.engine import launch
from tiny_runs import train_by_launcher
def main():
    train_by_launcher(sys.argv[1])
    sys.exit(int(sys.argv[2]))
launch(main, num_gpus=0)
"""


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    """Weights and optimizer state after a training by ``launch`` in two processes."""
    folder = tmp_path_factory.mktemp("launched")
    run_in_two_processes(train_by_launcher, str(folder))
    return result_in(folder)


def result_in(folder: Path) -> dict[str, torch.Tensor]:
    content = torch.load(folder / "model_final.pth", weights_only=True)
    states = content["trainer"]["_trainer"]["optimizer"]["state"]
    moments = {f"{i} {key}": value for i, state in states.items() for key, value in state.items()}
    return {**content["model"], **moments}


def assert_equal_to_the_bit(
    first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]
) -> None:
    assert first.keys() == second.keys() and len(first) > 20
    assert [name for name, value in first.items() if not torch.equal(value, second[name])] == []


def test_one_process_with_the_same_joint_batch(trained, tmp_path: Path) -> None:
    """The mean of two gradients is the same sum, whichever process computes them."""
    train_by_launcher(str(tmp_path), parts=2)
    assert_equal_to_the_bit(result_in(tmp_path), trained)


def test_resumes_with_another_number_of_processes(trained, tmp_path: Path, caplog) -> None:
    train_by_launcher(str(tmp_path / "one"), parts=2)
    run_in_two_processes(train_by_launcher, str(tmp_path / "one"), 1, True)
    train_by_launcher(str(tmp_path / "whole"), parts=2)
    train_by_launcher(str(tmp_path / "whole"), parts=2, more_iterations=True)
    assert_equal_to_the_bit(result_in(tmp_path / "one"), result_in(tmp_path / "whole"))


@pytest.mark.slow
def test_torchrun(trained, tmp_path: Path, child_env: dict[str, str]) -> None:
    (tmp_path / "train.py").write_text(TRAIN)
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    command += ["--master-port", "0", "--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0"]
    run = subprocess.run(
        [*command, tmp_path / "train.py", tmp_path / "out", "0"], env=with_helpers(child_env),
        capture_output=True, text=True,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr[-2000:]
    assert_equal_to_the_bit(result_in(tmp_path / "out"), trained)


def test_srun_and_the_exit_status(trained, tmp_path: Path, child_env: dict[str, str]) -> None:
    """Slurm is not needed: srun only sets variables."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {**with_helpers(child_env), **SRUN, "SLURM_NTASKS": "2"}
    common |= {"SLURM_STEP_TASKS_PER_NODE": "2", "MASTER_ADDR": "127.0.0.1"}
    common |= {"MASTER_PORT": str(port)}
    processes = []
    for rank in ("0", "1"):
        env = {**common, "SLURM_PROCID": rank, "SLURM_LOCALID": rank}
        words = [sys.executable, "-c", TRAIN, tmp_path, "7"]
        processes.append(subprocess.Popen(words, env=env, stdout=subprocess.DEVNULL))
    assert [process.wait() for process in processes] == [7, 7]
    assert_equal_to_the_bit(result_in(tmp_path), trained)


def with_helpers(env: dict[str, str]) -> dict[str, str]:
    helpers = str(Path(__file__).resolve().parents[1] / "helpers")
    return {**env, "PYTHONPATH": os.pathsep.join([helpers, env.get("PYTHONPATH", "")])}
