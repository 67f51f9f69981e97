# SPDX-License-Identifier: Apache-2.0
"""Finds the installed projects through their packaging.

A project declares the function that adds its config keys as an entry point of the group
``person_search.projects`` (``ENTRY_POINTS`` in ``setup.py``). The core then knows its projects
without importing them, also those of other repositories.
"""

from importlib.metadata import EntryPoint, distributions

from detectron2.config import CfgNode

ENTRY_POINT_GROUP = "person_search.projects"


class ProjectError(RuntimeError):
    """No project is installed, or one of them cannot be loaded."""


def project_names() -> list[str]:
    """Returns the names of the installed projects, e.g. ``["psdiff"]``, without importing them."""
    return [point.name for point in _find(ENTRY_POINT_GROUP)]


def add_all_project_configs(cfg: CfgNode, group: str = ENTRY_POINT_GROUP) -> None:
    """Adds the keys of every installed project, in place; this also registers their models.

    Args:
        cfg: Config that has the keys of the core already.
        group: Group of the entry points.

    Raises:
        ProjectError: If there is no project, or one cannot be imported.
    """
    points = _find(group)
    if not points:
        raise ProjectError(
            f"no project is installed (entry points '{group}'), so there is no model to build. "
            "Install this repository: pip install -e ."
        )
    for point in points:
        try:
            add_config = point.load()
        except (ImportError, AttributeError) as e:
            raise ProjectError(
                f"the project '{point.name}' ({point.value}) cannot be loaded: {e}. "
                "Reinstall it (pip install -e .), or uninstall it."
            ) from e
        add_config(cfg)


def _find(group: str) -> list[EntryPoint]:
    """Returns the entry points of all distributions, one per name, sorted.

    ``importlib.metadata.entry_points`` reads only the first record of a distribution. A checkout
    may hold an outdated one (``*.egg-info``) that precedes the installed one.
    """
    found: dict[str, EntryPoint] = {}
    for distribution in distributions():
        for point in distribution.entry_points:
            if point.group == group:
                found.setdefault(point.name, point)
    return [found[name] for name in sorted(found)]
