# SPDX-License-Identifier: Apache-2.0
"""Set-up of logging, logging less often than called, and small tables for log files."""

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

__all__ = ["setup_logger", "log_first_n", "log_every_n", "log_every_n_seconds"]

D2_LOG_BUFFER_SIZE_KEY = "D2_LOG_BUFFER_SIZE"
DEFAULT_LOG_BUFFER_SIZE = 1024 * 1024

_DATE_FORMAT = "%m/%d %H:%M:%S"
_LOG_COUNTER: Counter = Counter()
_LOG_TIMER: dict = {}


class _ColorfulFormatter(logging.Formatter):
    """Colors the level of warnings and errors and shortens the root module's name."""

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


def _log_file(output: str, rank: int) -> str:
    file_name = output
    if not output.endswith((".txt", ".log")):
        file_name = os.path.join(output, "log.txt")
    return f"{file_name}.rank{rank}" if rank > 0 else file_name


# Cached so that calling it again, as default_setup may do, adds no second set of handlers.
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
    """Send a package's log records of every level to the terminal and to a file.

    Args:
        output: file ending in .txt or .log, or a folder that gets a log.txt; None for no file.
        distributed_rank: rank of this process. Only rank 0 prints; the others' files end in
            `.rank<n>`.
        color: print colors.
        name: root of the loggers to set up.
        abbrev_name: how to print that root; "d2" for detectron2, unchanged for others.
        enable_propagation: also hand the records to the parent logger.
        configure_stdout: print at all.
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
        file_name = _log_file(output, distributed_rank)
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


# One stream a file: loggers of several packages share it without overwriting each other.
@functools.cache
def _cached_log_stream(filename):
    stream = PathManager.open(filename, "a", buffering=_get_log_stream_buffer_size(filename))
    atexit.register(stream.close)
    return stream


def _get_log_stream_buffer_size(filename: str) -> int:
    """Line buffering for local files; remote ones are costly to flush."""
    if "://" not in filename:
        return 1
    return int(os.environ.get(D2_LOG_BUFFER_SIZE_KEY, DEFAULT_LOG_BUFFER_SIZE))


def _find_caller() -> tuple[str, tuple]:
    """Who called the logging helper.

    Returns:
        module name, and a key made of file, line and function.
    """
    helpers = os.path.join("utils", "logger.")
    frame = sys._getframe(2)
    # As Detectron2 does: step over everything in files of a package's utils/logger.
    while helpers in frame.f_code.co_filename:
        frame = frame.f_back
    module = frame.f_globals["__name__"]
    # A script has no logger of its own set up; the package's prints.
    module = "detectron2" if module == "__main__" else module
    return module, (frame.f_code.co_filename, frame.f_lineno, frame.f_code.co_name)


def _count_call(key: tuple) -> int:
    """How often `key` was counted, this time included."""
    _LOG_COUNTER[key] += 1
    return _LOG_COUNTER[key]


def _log(lvl: int, msg: str, name: str | None, caller_module: str) -> None:
    logging.getLogger(name or caller_module).log(lvl, msg)


def log_first_n(lvl, msg, n=1, *, name=None, key="caller"):
    """Log only the first `n` times.

    Args:
        lvl: logging level.
        msg: the message.
        n: how often.
        name: logger; that of the calling module by default.
        key: what is counted: the "caller" (this line of code), the "message", or a tuple of both.
    """
    parts = (key,) if isinstance(key, str) else key
    assert parts, 'key must name what is counted: "caller", "message" or both'
    module, place = _find_caller()
    identities = {"caller": place, "message": (msg,)}
    counted = itertools.chain.from_iterable(identities.get(part, ()) for part in sorted(parts))
    if _count_call(tuple(counted)) <= n:
        _log(lvl, msg, name, module)


def log_every_n(lvl, msg, n=1, *, name=None):
    """Log the first of every `n` calls from the same line of code."""
    module, place = _find_caller()
    if (_count_call(place) - 1) % n == 0:
        _log(lvl, msg, name, module)


def log_every_n_seconds(lvl, msg, n=1, *, name=None):
    """Log unless the same line of code logged less than `n` seconds ago."""
    module, place = _find_caller()
    now = time.time()
    if now - _LOG_TIMER.get(place, -math.inf) >= n:
        _LOG_TIMER[place] = now
        _log(lvl, msg, name, module)


def create_small_table(small_dict: dict) -> str:
    """A table of one row, the keys of `small_dict` above its values."""
    return tabulate(
        [tuple(small_dict.values())],
        headers=tuple(small_dict),
        tablefmt="pipe",
        floatfmt=".3f",
        stralign="center",
        numalign="center",
    )


def _log_api_usage(identifier: str):
    """Tell PyTorch's usage log which component ran."""
    torch._C._log_api_usage_once("detectron2." + identifier)
