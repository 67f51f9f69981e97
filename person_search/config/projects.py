# SPDX-License-Identifier: Apache-2.0
"""The projects that are installed beside the core, found through their packaging.

A project states the function that adds its config keys as an entry point of the group
``person_search.projects`` (``ENTRY_POINTS`` in ``setup.py``). The core thereby knows its projects
without importing them, and a project in a repository of its own joins in the same way.
"""

from importlib.metadata import EntryPoint, distributions

from detectron2.config import CfgNode

ENTRY_POINT_GROUP = "person_search.projects"


class ProjectError(RuntimeError):
    """No project is installed, or one of them cannot be loaded."""


def project_names() -> list[str]:
    """Names of the projects that have config keys, e.g. ``["psdiff"]``; they are not imported."""
    return [point.name for point in _find(ENTRY_POINT_GROUP)]


def add_all_project_configs(cfg: CfgNode, group: str = ENTRY_POINT_GROUP) -> None:
    """Adds the keys of every installed project, in place; this also registers their models.

    Args:
        cfg: must have the keys of the core already.
        group: of the entry points.

    Raises:
        ProjectError: there is no project, or one cannot be imported.
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
                "Install it again (pip install -e .), or uninstall it."
            ) from e
        add_config(cfg)


def _find(group: str) -> list[EntryPoint]:
    """Entry points of all distributions, one per name, sorted.

    ``importlib.metadata.entry_points`` looks at the first of several records of a distribution
    only. A checkout can hold an outdated one (``*.egg-info``) that comes before the installed one.
    """
    found: dict[str, EntryPoint] = {}
    for distribution in distributions():
        for point in distribution.entry_points:
            if point.group == group:
                found.setdefault(point.name, point)
    return [found[name] for name in sorted(found)]
