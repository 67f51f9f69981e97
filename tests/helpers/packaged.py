# SPDX-License-Identifier: Apache-2.0
"""Reads the projects from setup.py, so that tests of the repository include new ones."""

import ast
import importlib
from functools import cache
from pathlib import Path

from detectron2.config import CfgNode, get_cfg

from person_search.config import add_person_search_config

ROOT = Path(__file__).resolve().parents[2]


@cache
def setup_literal(name: str) -> dict:
    """Reads a constant of setup.py without running it."""
    for node in ast.parse((ROOT / "setup.py").read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == name:
            return ast.literal_eval(node.value)
    raise AssertionError(f"setup.py has no constant {name}")


def project_entry_points() -> dict[str, str]:
    """Project -> ``module:function`` that adds its config keys."""
    lines = setup_literal("ENTRY_POINTS")["person_search.projects"]
    return dict(line.split(" = ") for line in lines)


def full_cfg() -> CfgNode:
    """The default config with the keys of the core and of every project in setup.py."""
    cfg = get_cfg()
    add_person_search_config(cfg)
    for place in project_entry_points().values():
        module, function = place.split(":")
        getattr(importlib.import_module(module), function)(cfg)
    return cfg
