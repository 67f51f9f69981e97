# SPDX-License-Identifier: Apache-2.0
"""Detects which Detectron2 is in use: the real one or ``compat/detectron2-lite``.

Both have the import name ``detectron2``, so pip silently lets one overwrite the files of the other.
This module reads the metadata of installed distributions and refuses none and both. A source
checkout of the real one on ``PYTHONPATH`` has no metadata or only its own egg-info folder, and does
not count as a second installation.
"""

import functools
import importlib
import importlib.util
import logging
import os
from importlib import metadata
from pathlib import Path

IMPORT_NAME = "detectron2"
REAL_DISTRIBUTION = "detectron2"
LITE_DISTRIBUTION = "detectron2-lite"

INSTALL_HELP = """\
Install exactly one of the two (from the root of the checkout):
  small stand-in, for tests, CPU demos and machines without a compiler:
    pip install -c constraints.txt ./compat/detectron2-lite
  real Detectron2:
    pip install --no-build-isolation 'git+https://github.com/facebookresearch/detectron2.git'
  or, without compiling, use a source checkout of the real one: PYTHONPATH=<checkout>"""

logger = logging.getLogger(__name__)


class BackendError(RuntimeError):
    """Detectron2 cannot be imported, or two distributions have its import name."""


def installed_distributions() -> list[str]:
    """Returns which of the two distributions are installed."""
    # looked up by name: metadata.packages_distributions() reads the file lists of all packages
    return [
        name
        for name in (REAL_DISTRIBUTION, LITE_DISTRIBUTION)
        if any(metadata.distributions(name=name)) and not _is_checkout_on_pythonpath(name)
    ]


def backend_location() -> Path | None:
    """Returns the folder from which ``import detectron2`` loads, or None if it cannot be loaded.

    A folder without ``__init__.py``, which an uninstalled package or an empty submodule leaves
    behind, imports as an empty namespace package. It counts as not loadable.
    """
    spec = importlib.util.find_spec(IMPORT_NAME)
    if spec is None or spec.origin is None:
        return None
    return Path(spec.origin).resolve().parent


def check_backend() -> str:
    """Checks that exactly one Detectron2 is installed, and logs which, once per process.

    Returns:
        The text of :func:`backend_name`.

    Raises:
        BackendError: If none or both are installed. The message has the commands to repair it.
    """
    installed = installed_distributions()
    if len(installed) > 1:
        raise BackendError(
            f"{' and '.join(installed)} are both installed and share the import name "
            f"'{IMPORT_NAME}', so each may have overwritten files of the other.\n"
            f"Remove both: pip uninstall {' '.join(installed)}\n{INSTALL_HELP}"
        )
    location = backend_location()
    if location is None:
        raise BackendError(f"Detectron2 is not installed.{_hollow_hint()}\n{INSTALL_HELP}")
    name = backend_name()
    _log_once(f"detectron2 backend: {name} ({location})")
    return name


def backend_name() -> str:
    """Returns the name of the Detectron2 in use, e.g. ``"real 0.6"`` or ``"lite 0.1.0"``.

    Raises:
        BackendError: If ``import detectron2`` fails.
    """
    if backend_location() is None:
        raise BackendError(f"Detectron2 is not installed.{_hollow_hint()}\n{INSTALL_HELP}")
    try:
        module = importlib.import_module(IMPORT_NAME)
    except ImportError as e:
        raise BackendError(
            f"Detectron2 is at {backend_location()} but cannot be imported: {e}. "
            "One of its requirements is probably missing; reinstall it.\n" + INSTALL_HELP
        ) from e
    lite_version = getattr(module, "__lite__", None)
    if lite_version is not None:
        return f"lite {lite_version}"
    return f"real {getattr(module, '__version__', 'of unknown version')}"


def _is_checkout_on_pythonpath(distribution: str) -> bool:
    """Returns whether the metadata is the egg-info folder of a checkout on PYTHONPATH."""
    home = Path(str(metadata.distribution(distribution).locate_file(""))).resolve()
    entries = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    return any(entry and Path(entry).resolve() == home for entry in entries)


def _hollow_hint() -> str:
    spec = importlib.util.find_spec(IMPORT_NAME)
    if spec is None or not spec.submodule_search_locations:
        return ""
    folders = ", ".join(spec.submodule_search_locations)
    return f" The folder {folders} has its name but is not a package; remove or rename it."


@functools.cache
def _log_once(message: str) -> None:
    logger.info(message)
