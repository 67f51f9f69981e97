# SPDX-License-Identifier: Apache-2.0
"""Several processes on a CPU: how they end, whatever their work did."""

from pathlib import Path

import pytest

from person_search.engine import launch

# what the processes run is text for exec(): a function of a test module could not be imported there
WORK = """
import atexit, pathlib, sys
from detectron2.utils import comm
mark = pathlib.Path({folder!r}) / str(comm.get_rank())
atexit.register(mark.write_text, "left")
sys.stdout.write(f"[process {{comm.get_rank()}} of {{comm.get_world_size()}}]")
{end}
"""


def run(folder: Path, end: str = "") -> None:
    launch(exec, num_gpus=0, num_processes=2, args=(WORK.format(folder=str(folder), end=end),))


def test_all_is_done_that_is_done_at_exit(tmp_path: Path, capfd) -> None:
    run(tmp_path, "raise SystemExit")
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == dict.fromkeys(
        "01", "left"
    )
    printed = capfd.readouterr().out  # also what was still waiting to be printed
    assert "[process 0 of 2]" in printed and "[process 1 of 2]" in printed


def test_exit_status(tmp_path: Path, capfd) -> None:
    """One process says why it ends, the other goes on until it is stopped."""
    end = "import time\nif comm.get_rank(): raise SystemExit('why')\ntime.sleep(60)"
    with pytest.raises(SystemExit) as raised:
        run(tmp_path, end)
    assert raised.value.code == 1 and "why" in capfd.readouterr().err


def test_error_of_one_process_is_this_ones(tmp_path: Path) -> None:
    with pytest.raises(Exception, match="ZeroDivisionError"):
        run(tmp_path, "1 // comm.get_rank()")
