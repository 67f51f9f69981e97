# SPDX-License-Identifier: Apache-2.0
"""Speed and time left, in a terminal and in a log file."""

import io
import logging
import sys

import pytest

from person_search.search import progress as module
from person_search.search.progress import Progress


@pytest.fixture
def clock(monkeypatch) -> list[float]:
    """A clock that the test moves."""
    now = [0.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    return now


def test_a_log_file_gets_a_line_now_and_then(clock, caplog, capsys) -> None:
    caplog.set_level(logging.INFO, logger="person_search")
    with Progress(1000, "index") as progress:
        for _ in range(40):
            clock[0] += 2
            progress.update(5)
    assert caplog.messages == [
        "index: 75 of 1000 images, 2.5 per second, about 06:10 left",
        "index: 150 of 1000 images, 2.5 per second, about 05:40 left",
    ]
    assert capsys.readouterr().err == "", "no bar, which would be thousands of lines there"


def test_a_terminal_gets_a_bar(clock, caplog, monkeypatch) -> None:
    caplog.set_level(logging.INFO, logger="person_search")
    terminal = io.StringIO()
    terminal.isatty = lambda: True
    monkeypatch.setattr(sys, "stderr", terminal)
    with Progress(3, "index") as progress:
        clock[0] += 100
        progress.update(3)
    assert "3/3" in terminal.getvalue() and "image/s" in terminal.getvalue()
    assert not caplog.messages


def test_the_other_processes_are_silent(clock, caplog, capsys) -> None:
    caplog.set_level(logging.INFO, logger="person_search")
    with Progress(3, "index", shown=False) as progress:
        clock[0] += 100
        progress.update(3)
    assert not caplog.messages and capsys.readouterr().err == ""


def test_more_than_was_announced(clock, caplog) -> None:
    """The frames of a video are not known before it has been read."""
    caplog.set_level(logging.INFO, logger="person_search")
    with Progress(2, "index") as progress:
        clock[0] += 30
        progress.update(3)
    assert caplog.messages == ["index: 3 of 2 images, 0.1 per second, about 00:00 left"]


def test_stages(clock, caplog, monkeypatch) -> None:
    caplog.set_level(logging.INFO, logger="person_search")
    with Progress(100, "index") as progress:
        for _ in range(2):
            clock[0] += 30
            progress.update(6, {"read": 0.5, "detect": 12.0})
    assert caplog.messages[0].endswith("left (read 12, detect 0.5 per second)")
    assert progress.stages() == "read 12, detect 0.5", "of all images and all their time"
