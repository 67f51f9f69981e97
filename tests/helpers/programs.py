# SPDX-License-Identifier: Apache-2.0
"""Loads the programs of the repository as modules and runs them in this process."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parents[2]


def load_program(path: str) -> ModuleType:
    """Returns a fresh module of a script, for example ``tools/demo.py``.

    The folder of the script is on ``sys.path`` while it is imported, as it is when Python runs it.
    """
    file = ROOT / path
    spec = importlib.util.spec_from_file_location(file.stem, file)
    module = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(file.parent))
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(file.parent))
    return module


def run_program_file(path: str, *arguments: object) -> int:
    """Runs a script with arguments in this process.

    Returns:
        Its exit status, also where it ends by SystemExit.
    """
    module = load_program(path)
    argv, sys.argv = sys.argv, [Path(path).name, *map(str, arguments)]
    try:
        return module.main() or 0
    except SystemExit as e:
        return e.code
    finally:
        sys.argv = argv
