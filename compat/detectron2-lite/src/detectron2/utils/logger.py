# SPDX-License-Identifier: Apache-2.0
"""Logging: setup, rate-limited messages, and small tables."""

import atexit
import functools
import itertools
import logging
import math
import os
import sys
import time
from collections import Counter

import torch
from detectron2.utils.file_io import PathManager
from tabulate import tabulate
from termcolor import colored

D2_LOG_BUFFER_SIZE_KEY = "D2_LOG_BUFFER_SIZE"

_DATE_FORMAT = "%m/%d %H:%M:%S"
_LOG_COUNTER: Counter = Counter()
_LOG_TIMER: dict = {}


class _ColorfulFormatter(logging.Formatter):
    """Colors the level of warnings and errors, and abbreviates the name of the root logger."""

    def __init__(self, *args, **kwargs):
        self._root_name = kwargs.pop("root_name") + "."
        abbrev_name = kwargs.pop("abbrev_name", "")
        self._abbrev_name = abbrev_name + "." if abbrev_name else ""
        super().__init__(*args, **kwargs)

    def formatMessage(self, record):
        record.name = record.name.replace(self._root_name, self._abbrev_name)
        text = super().formatMessage(record)
        if record.levelno == logging.WARNING:
            return f"{colored('WARNING', 'red', attrs=['blink'])} {text}"
        if record.levelno in (logging.ERROR, logging.CRITICAL):
            return f"{colored('ERROR', 'red', attrs=['blink', 'underline'])} {text}"
        return text


# cached, so that a second call does not add the handlers again
@functools.cache
def setup_logger(
    output=None,
    distributed_rank=0,
    *,
    color=True,
    name="detectron2",
    abbrev_name=None,
    enable_propagation: bool = False,
    configure_stdout: bool = True,
) -> logging.Logger:
    """Sets up a logger for the terminal and a file, and returns it.

    Args:
        output: File name with the extension .txt or .log, or folder of a file log.txt; None for no
            file.
        distributed_rank: Rank of this process. Only rank 0 prints; the files of the other ranks
            have the suffix ``.rank<n>``.
        color: Whether to print colors.
        name: Name of the logger.
        abbrev_name: Abbreviation of the name in the terminal; by default "d2" for detectron2.
        enable_propagation: Whether to propagate records to the parent logger.
        configure_stdout: Whether to print.
    """
    if abbrev_name is None:
        abbrev_name = "d2" if name == "detectron2" else name
    plain = logging.Formatter(
        "[%(asctime)s] %(name)s %(levelname)s: %(message)s", datefmt=_DATE_FORMAT
    )
    handlers = []
    if configure_stdout and distributed_rank == 0:
        handler = logging.StreamHandler(stream=sys.stdout)
        handler.setFormatter(
            _ColorfulFormatter(
                colored("[%(asctime)s %(name)s]: ", "green") + "%(message)s",
                datefmt=_DATE_FORMAT,
                root_name=name,
                abbrev_name=str(abbrev_name),
            )
            if color
            else plain
        )
        handlers.append(handler)
    if output is not None:
        file_name = output
        if not output.endswith((".txt", ".log")):
            file_name = os.path.join(output, "log.txt")
        if distributed_rank > 0:
            file_name = f"{file_name}.rank{distributed_rank}"
        PathManager.mkdirs(os.path.dirname(file_name))
        handler = logging.StreamHandler(_cached_log_stream(file_name))
        handler.setFormatter(plain)
        handlers.append(handler)
    root = logging.getLogger(name)
    root.propagate = enable_propagation
    root.setLevel(logging.DEBUG)
    for handler in handlers:
        handler.setLevel(logging.DEBUG)
        root.addHandler(handler)
    return root


# one stream per file, which the loggers of several packages share
@functools.cache
def _cached_log_stream(filename):
    # line buffering for local files; flushing remote files is expensive
    size = 1 if "://" not in filename else os.environ.get(D2_LOG_BUFFER_SIZE_KEY, 1024 * 1024)
    stream = PathManager.open(filename, "a", buffering=int(size))
    atexit.register(stream.close)
    return stream


def _find_caller() -> tuple[str, tuple]:
    """Returns the module that called the logging function, and its file, line and function."""
    frame = sys._getframe(2)
    # as in Detectron2: skips the frames in files of a package's utils/logger
    while os.path.join("utils", "logger.") in frame.f_code.co_filename:
        frame = frame.f_back
    module = frame.f_globals["__name__"]
    # the logger of a script is usually not set up
    module = "detectron2" if module == "__main__" else module
    return module, (frame.f_code.co_filename, frame.f_lineno, frame.f_code.co_name)


def log_first_n(lvl, msg, n=1, *, name=None, key="caller"):
    """Logs a message only for the first n times.

    Args:
        lvl: Logging level.
        msg: Message.
        n: Maximum number of times.
        name: Name of the logger; by default that of the calling module.
        key: What to count: "caller" (the line of code), "message", or a tuple of both.
    """
    parts = (key,) if isinstance(key, str) else key
    assert parts, 'key must be "caller", "message" or both'
    module, caller = _find_caller()
    identities = {"caller": caller, "message": (msg,)}
    counted = tuple(itertools.chain(*(identities.get(part, ()) for part in sorted(parts))))
    _LOG_COUNTER[counted] += 1
    if _LOG_COUNTER[counted] <= n:
        logging.getLogger(name or module).log(lvl, msg)


def log_every_n(lvl, msg, n=1, *, name=None):
    """Logs the first of every ``n`` calls from the same line of code."""
    module, caller = _find_caller()
    _LOG_COUNTER[caller] += 1
    if n == 1 or _LOG_COUNTER[caller] % n == 1:
        logging.getLogger(name or module).log(lvl, msg)


def log_every_n_seconds(lvl, msg, n=1, *, name=None):
    """Logs unless the same line of code logged less than ``n`` seconds ago."""
    module, caller = _find_caller()
    now = time.time()
    if now - _LOG_TIMER.get(caller, -math.inf) >= n:
        _LOG_TIMER[caller] = now
        logging.getLogger(name or module).log(lvl, msg)


def create_small_table(small_dict: dict) -> str:
    """Returns a table of one row with the keys of ``small_dict`` as headers."""
    return tabulate(
        [tuple(small_dict.values())],
        headers=tuple(small_dict),
        tablefmt="pipe",
        floatfmt=".3f",
        stralign="center",
        numalign="center",
    )


def _log_api_usage(identifier: str):
    """Reports the use of a component to PyTorch's usage log."""
    torch._C._log_api_usage_once("detectron2." + identifier)
