# SPDX-License-Identifier: Apache-2.0
"""Common entry point of the command-line programs.

Every program is built the same way::

    def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
        parser = program_parser(__doc__, config=True)
        parser.add_argument("--output", type=Path, required=True, help="output folder")
        return parser.parse_args(argv)

    def main(argv: Sequence[str] | None = None) -> int:
        return run_program(work, parse_args(argv))

    if __name__ == "__main__":
        sys.exit(main())

This module imports the standard library only, and a program imports torch and Detectron2 inside
the functions that need them. ``--help`` then answers at once, and developer warnings of third-party
libraries are silenced before the first of them is imported.
"""

import argparse
import importlib.util
import logging
import sys
import warnings
from collections.abc import Callable

INTERRUPTED = 130
"""Exit status after Ctrl-C."""

NO_DETECTRON2 = (
    "error: Detectron2 is not installed; it is not on PyPI. Install one of the two: pip install "
    "--no-build-isolation 'git+https://github.com/facebookresearch/detectron2.git', or the wheel "
    "detectron2_lite that accompanies person-search (compat/detectron2-lite in its repository)."
)


def program_parser(
    description: str | None, *, config: bool = False, prog: str | None = None
) -> argparse.ArgumentParser:
    """Returns an argument parser with the options that all programs share.

    Args:
        description: Text above the options, printed as it is; usually ``__doc__``.
        config: Adds ``--config-file`` (required) and the config overrides ``opts``, which come
            after all options as in Detectron2: ``KEY VALUE KEY VALUE ...``.
        prog: Name of the program. Default: the name of the script.
    """
    parser = argparse.ArgumentParser(
        prog=prog, description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_common_options(parser, config=config)
    return parser


def add_common_options(parser: argparse.ArgumentParser, *, config: bool = False) -> None:
    """Adds the shared options to an existing parser, for example that of a sub-command.

    Args:
        parser: Parser to extend.
        config: See :func:`program_parser`.
    """
    parser.add_argument(
        "--traceback", action="store_true", help="print the full traceback of an error"
    )
    if config:
        parser.add_argument(
            "--config-file",
            required=True,
            metavar="FILE",
            help="config file (YAML), or name below configs/: PSDiff/psdiff_r50_fpn_prw.yaml",
        )
        parser.add_argument(
            "opts",
            nargs=argparse.REMAINDER,
            metavar="KEY VALUE",
            help="config overrides, after all options, for example MODEL.DEVICE cpu",
        )


def add_launch_options(parser: argparse.ArgumentParser, *, num_gpus: int) -> None:
    """Adds the options of :func:`person_search.engine.launch_program`.

    Args:
        parser: Parser to extend.
        num_gpus: Default of --num-gpus.
    """
    add = parser.add_argument
    add("--num-gpus", type=int, default=num_gpus, metavar="NUMBER",
        help=f"GPUs per machine, one process each; 0 for a CPU (default: {num_gpus})")  # fmt: skip
    add("--num-processes", type=int, default=1, metavar="NUMBER",
        help="processes per machine on the CPU (default: 1)")  # fmt: skip
    add("--num-machines", type=int, default=1, metavar="NUMBER",
        help="number of machines (default: 1)")  # fmt: skip
    add("--machine-rank", type=int, default=0, metavar="NUMBER",
        help="rank of this machine, from 0 (default: 0)")  # fmt: skip
    add("--dist-url", default="auto", metavar="URL",
        help="where machines meet, for example tcp://10.0.0.1:29500")  # fmt: skip


def quiet_libraries() -> None:
    """Silences developer warnings of third-party libraries; call it before importing Detectron2.

    Warnings of this project and all errors still appear.
    """
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.")
    for name in ("torch.fx", "torch.fx._symbolic_trace"):
        logging.getLogger(name).setLevel(logging.ERROR)


def run_program(
    work: Callable[[argparse.Namespace], int | None],
    args: argparse.Namespace,
    *,
    log: bool = True,
    resume_hint: str = "",
) -> int:
    """Calls ``work(args)`` with a quiet terminal, a checked Detectron2 and one-line errors.

    Args:
        work: Does the work of the program. Its return value is the exit status; None means 0.
        args: Parsed arguments, with the attribute ``traceback`` of :func:`program_parser`.
        log: Shows the log lines of ``person_search`` in Detectron2's format.
        resume_hint: Sentence printed after Ctrl-C, for programs that can continue.

    Returns:
        The exit status: 0, what ``work`` returned, or :data:`INTERRUPTED` after Ctrl-C.

    Raises:
        SystemExit: With status 2 after one message, where input, config, weights or the disk are
            at fault; see :func:`person_search.engine.friendly_errors`.
    """
    quiet_libraries()
    if importlib.util.find_spec("detectron2") is None:
        print(NO_DETECTRON2, file=sys.stderr)
        return 2
    for stream in (sys.stdout, sys.stderr):  # file names may have characters that cannot be printed
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    try:
        from detectron2.utils.logger import setup_logger

        from person_search.engine import friendly_errors
        from person_search.utils.backend import check_backend

        if log:
            setup_logger(name="person_search", abbrev_name="person_search")
        with friendly_errors(args.traceback):
            check_backend()
            return work(args) or 0
    except KeyboardInterrupt:
        print(f"\nInterrupted. {resume_hint}".rstrip(), file=sys.stderr)
        return INTERRUPTED
