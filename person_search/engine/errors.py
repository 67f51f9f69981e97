# SPDX-License-Identifier: Apache-2.0
"""Errors that a user can correct end a program with one message in place of a traceback."""

import errno
import logging
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

from detectron2.utils import comm

from person_search.config import ProjectError
from person_search.data import BadImageError
from person_search.utils.backend import BackendError

TRACEBACK_VARIABLE = "PERSON_SEARCH_TRACEBACK"
USER_ERRORS = (
    ValueError,
    KeyError,
    OSError,
    BadImageError,
    ProjectError,
    BackendError,
    FloatingPointError,  # training that diverged, half precision that overflowed
)
USAGE_ERROR = 2
"""Exit status of a program that ended with a message in place of a traceback."""


@contextmanager
def friendly_errors(traceback: bool = False) -> Iterator[None]:
    """Ends the program with one message if input, config, weights or the disk are at fault.

    These are the errors of :data:`USER_ERRORS`, among them FileNotFoundError and a full disk; the
    exit status is 2. Other errors are defects of this code and keep their traceback. The log file
    in OUTPUT_DIR always gets the traceback. An error that all processes raise alike (its class has
    ``in_all_processes``) is shown by the main process only.

    Args:
        traceback: Whether to keep all tracebacks, as does the environment variable
            PERSON_SEARCH_TRACEBACK.

    Raises:
        SystemExit: With status 2, after the message.
    """
    if traceback or os.environ.get(TRACEBACK_VARIABLE, "0") not in ("", "0"):
        yield
        return
    training = logging.getLogger("detectron2.engine.train_loop")
    training.addFilter(_is_defect)
    try:
        yield
    except USER_ERRORS as e:
        log_folders = _log_to_files("Ended by an error:")
        shared = getattr(e, "in_all_processes", False)
        if not shared or comm.is_main_process():
            alone = shared or comm.get_world_size() == 1
            rank = "" if alone else f" (process {comm.get_rank()})"
            print(f"error{rank}: {_message(e, log_folders)}", file=sys.stderr)
            print("(--traceback shows where it was raised)", file=sys.stderr, flush=True)
        if shared:  # the end of one process stops the others: not before the message is shown
            comm.synchronize()
        raise SystemExit(USAGE_ERROR) from e
    finally:
        training.removeFilter(_is_defect)


def _message(error: BaseException, folders: list[str]) -> str:
    # str(KeyError) is the repr of its argument
    text = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
    if "in DataLoader worker process" in text:  # the worker's traceback; its last line is the error
        text = text.strip().splitlines()[-1].partition(": ")[2]
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        if error.filename is None:  # raised by a write, which knows no path
            places = dict.fromkeys([*folders, ".", tempfile.gettempdir()])
            text += "; free space: " + ", ".join(
                f"{shutil.disk_usage(folder).free / 1e6:,.0f} MB in {os.path.abspath(folder)}"
                for folder in places
            )
    return text.strip().rstrip(".") or type(error).__name__


def _is_defect(record: logging.LogRecord) -> bool:
    """Filters the traceback that Detectron2's training loop logs of errors handled here."""
    return not (record.exc_info and isinstance(record.exc_info[1], USER_ERRORS))


def _log_to_files(text: str) -> list[str]:
    """Logs a text and the current traceback to the log files, and returns their folders."""
    logger, folders = logging.getLogger("detectron2"), []
    for handler in logger.handlers:
        stream = getattr(handler, "stream", None)
        name = getattr(stream, "name", None)
        closed = getattr(stream, "closed", True)
        if isinstance(name, str) and os.path.isfile(name) and not closed:
            handler.handle(
                logger.makeRecord(logger.name, logging.ERROR, "", 0, text, (), sys.exc_info())
            )
            folders.append(os.path.dirname(name) or ".")
    return folders
