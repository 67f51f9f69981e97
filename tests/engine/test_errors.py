# SPDX-License-Identifier: Apache-2.0
"""What a user sees of errors."""

import logging

import pytest

from person_search.config import ProjectError
from person_search.data import BadImageError
from person_search.engine import friendly_errors
from person_search.utils import BackendError


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (ValueError("value 3 is wrong."), "error: value 3 is wrong\n"),
        (KeyError("no key 'x'"), "error: no key 'x'\n"),
        (FileNotFoundError("no file y"), "error: no file y\n"),
        (BadImageError("cannot read z"), "error: cannot read z\n"),
        (ProjectError("no project"), "error: no project\n"),
        (BackendError("no Detectron2"), "error: no Detectron2\n"),
        (ValueError(), "error: ValueError\n"),
    ],
)
def test_user_errors_are_one_message(error, text, capsys, monkeypatch) -> None:
    monkeypatch.delenv("PERSON_SEARCH_TRACEBACK", raising=False)
    with pytest.raises(SystemExit) as end, friendly_errors():
        raise error
    assert end.value.code == 2
    assert capsys.readouterr().err == text + "(--traceback shows where it was raised)\n"


def test_traceback_on_demand(monkeypatch) -> None:
    with pytest.raises(ValueError), friendly_errors(traceback=True):
        raise ValueError
    monkeypatch.setenv("PERSON_SEARCH_TRACEBACK", "1")
    with pytest.raises(ValueError), friendly_errors():
        raise ValueError


@pytest.mark.parametrize("error", [TypeError, RuntimeError, KeyboardInterrupt, AssertionError])
def test_defects_keep_their_traceback(error) -> None:
    with pytest.raises(error), friendly_errors():
        raise error


def test_log_file_gets_the_traceback(tmp_path, monkeypatch) -> None:
    monkeypatch.delenv("PERSON_SEARCH_TRACEBACK", raising=False)
    logger = logging.getLogger("detectron2")
    with open(tmp_path / "log.txt", "w") as file:
        handler = logging.StreamHandler(file)
        logger.addHandler(handler)
        try:
            with pytest.raises(SystemExit), friendly_errors():
                raise ValueError("wrong")
        finally:
            logger.removeHandler(handler)
    text = (tmp_path / "log.txt").read_text()
    assert "Traceback" in text and "ValueError: wrong" in text


def test_a_full_disk_without_a_path_shows_free_space(tmp_path, capsys) -> None:
    logger = logging.getLogger("detectron2")
    with open(tmp_path / "log.txt", "w") as file:
        handler = logging.StreamHandler(file)
        logger.addHandler(handler)
        try:
            with pytest.raises(SystemExit), friendly_errors(), open("/dev/full", "w") as full:
                full.write("x")
                full.flush()
        finally:
            logger.removeHandler(handler)
    shown = capsys.readouterr().err
    assert "No space left on device; free space: " in shown and f" MB in {tmp_path}" in shown
