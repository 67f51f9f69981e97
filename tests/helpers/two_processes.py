# SPDX-License-Identifier: Apache-2.0
"""Two processes on a CPU that start quickly: forked from a server with all imports done."""

import multiprocessing
from collections.abc import Callable
from typing import Any

from person_search.config import project_names
from person_search.engine import launch

multiprocessing.set_forkserver_preload(
    ["person_search.engine", "person_search.testing", *project_names()]
)


def run_in_two_processes(function: Callable[..., Any], *args: Any) -> None:
    """Calls an importable function in two processes, as ``launch`` does.

    The server is started once per test process. Its environment variables and standard output are
    those of that moment.
    """
    launch(function, num_gpus=0, num_processes=2, start_method="forkserver", args=args)
