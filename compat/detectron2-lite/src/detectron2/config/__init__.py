# ruff: noqa: F401
# SPDX-License-Identifier: Apache-2.0
"""Configs: a tree of keys with defaults, and classes that can be built from it."""

from detectron2._lite import absent

from .config import CfgNode, configurable, get_cfg, global_cfg, set_global_cfg
from .instantiate import instantiate

__getattr__ = absent(__name__)
