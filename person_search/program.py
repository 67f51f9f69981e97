# SPDX-License-Identifier: Apache-2.0
"""How a command of ``tools/`` runs once its arguments are read.

Detectron2 is imported inside the function only, so that ``--help`` answers at once and warnings
meant for the developers of libraries are off before the first of them is imported.
"""

import argparse
from collections.abc import Callable

from person_search.utils.quiet import quiet_libraries


def run_program(
    work: Callable[[argparse.Namespace], int | None], args: argparse.Namespace, log: bool = True
) -> int:
    """Calls ``work(args)`` with a quiet terminal, a checked Detectron2 and readable errors.

    Args:
        work: does everything; what it returns is the exit status, None means 0.
        args: must have ``traceback`` (bool): show where an error was raised, not just its message.
        log: show the log lines of the package, in Detectron2's format.

    Returns:
        The exit status. Wrong input ends the program with status 2 (``friendly_errors``).
    """
    quiet_libraries()
    from detectron2.utils.logger import setup_logger

    from person_search.engine import friendly_errors
    from person_search.utils.backend import check_backend

    if log:
        setup_logger(name="person_search", abbrev_name="person_search")
    with friendly_errors(args.traceback):
        check_backend()
        return work(args) or 0
