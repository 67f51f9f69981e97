# SPDX-License-Identifier: Apache-2.0
"""Command line: arguments, config from them, and errors that a user can read."""

import argparse
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from detectron2.config import CfgNode
from detectron2.engine import default_argument_parser
from detectron2.utils import comm

from person_search.config import ProjectError, check_device, check_model, merge_into
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
"""Exit status of a run that ended with a message instead of a traceback."""


def argument_parser() -> argparse.ArgumentParser:
    """Returns Detectron2's argument parser with our additions."""
    parser = default_argument_parser()
    parser.add_argument(
        "--num-processes",
        type=int,
        default=1,
        help="number of processes *per machine* on a CPU; needs --num-gpus 0",
    )
    parser.add_argument(
        "--untrained",
        action="store_true",
        help="with --eval-only: load no weights at all, to see what an untrained model scores",
    )
    parser.add_argument(
        "--traceback",
        action="store_true",
        help=f"show the traceback of every error (or set {TRACEBACK_VARIABLE}=1)",
    )
    # Detectron2's default is one fixed port, which two runs on one machine would fight for
    parser.set_defaults(dist_url="auto")
    return parser


def merge_config(cfg: CfgNode, args: argparse.Namespace) -> None:
    """Merges ``args.config_file`` and ``args.opts`` into a config, and adapts it to the machine.

    ``--num-gpus 0`` sets MODEL.DEVICE to "cpu".

    Raises:
        FileNotFoundError: no such config file.
        ValueError: no config file, a key that does not exist (with the nearest one that does), a
            value of the wrong type, broken YAML, an unknown model, no data set, or a device that is
            not there.
    """
    if not args.config_file:
        raise ValueError(
            "--config-file is missing. The ones to choose from are in configs/, e.g. "
            "--config-file configs/PSDiff/tiny/psdiff_slim_synthetic.yaml."
        )
    merge_into(cfg, args.config_file, args.opts or ())
    check_model(cfg)
    split = "TEST" if args.eval_only else "TRAIN"
    if not cfg.DATASETS[split]:
        raise ValueError(
            f"DATASETS.{split} is empty: name a data set in the config, or on the command line, "
            f"e.g. DATASETS.{split} \"('prw_{split.lower()}',)\"."
        )
    if args.num_gpus == 0:
        cfg.MODEL.DEVICE = "cpu"
    check_device(cfg, remedy="--num-gpus 0 (or MODEL.DEVICE cpu)")


def _message(error: BaseException) -> str:
    # str(KeyError) is the repr of its argument
    text = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
    if "in DataLoader worker process" in text:  # the worker's traceback; its last line is the error
        text = text.strip().splitlines()[-1].partition(": ")[2]
    return text.strip().rstrip(".") or type(error).__name__


@contextmanager
def friendly_errors(traceback: bool = False) -> Iterator[None]:
    """Ends the program with one message where input, config, weights or disk are at fault.

    These are ValueError, KeyError, OSError (so also FileNotFoundError and a full disk),
    BadImageError, ProjectError, BackendError and FloatingPointError; the exit status is 2.
    Everything else is a defect of ours and keeps its traceback. The log file in OUTPUT_DIR gets the
    traceback in any case, once it is set up. An error that all processes raise alike (its class has
    ``in_all_processes``) is shown by the main one only.

    Args:
        traceback: keep all tracebacks; also by the environment variable PERSON_SEARCH_TRACEBACK.
    """
    if traceback or os.environ.get(TRACEBACK_VARIABLE, "0") not in ("", "0"):
        yield
        return
    training = logging.getLogger("detectron2.engine.train_loop")
    training.addFilter(_is_defect)
    try:
        yield
    except USER_ERRORS as e:
        _log_to_files("Ended by an error:")
        shared = getattr(e, "in_all_processes", False)
        if not shared or comm.is_main_process():
            alone = shared or comm.get_world_size() == 1
            rank = "" if alone else f" (process {comm.get_rank()})"
            print(f"error{rank}: {_message(e)}", file=sys.stderr)
            print("(--traceback shows where it was raised)", file=sys.stderr, flush=True)
        if shared:  # the end of one process stops the others: not before it has been said
            comm.synchronize()
        raise SystemExit(USAGE_ERROR) from e
    finally:
        training.removeFilter(_is_defect)


def _is_defect(record: logging.LogRecord) -> bool:
    """Filter: Detectron2's training loop logs a traceback that friendly_errors stands in for."""
    return not (record.exc_info and isinstance(record.exc_info[1], USER_ERRORS))


def _log_to_files(text: str) -> None:
    """Logs a text and the current traceback to the log files, not to the terminal."""
    logger = logging.getLogger("detectron2")
    for handler in logger.handlers:
        stream = getattr(handler, "stream", None)
        name = getattr(stream, "name", None)
        closed = getattr(stream, "closed", True)
        if isinstance(name, str) and os.path.isfile(name) and not closed:
            handler.handle(
                logger.makeRecord(logger.name, logging.ERROR, "", 0, text, (), sys.exc_info())
            )
