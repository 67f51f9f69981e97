# SPDX-License-Identifier: Apache-2.0
"""Several processes on a CPU: how they end, and numbers that contradict each other."""

from pathlib import Path

import pytest
from tiny_runs import fail_in_second_process
from two_processes import run_in_two_processes

from person_search.engine import launch

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


def test_user_error_in_one_process_is_one_message(capfd) -> None:
    with pytest.raises(SystemExit) as end:
        launch(fail_in_second_process, num_gpus=0, num_processes=2)
    assert end.value.code == 2
    message = capfd.readouterr().err
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
