# SPDX-License-Identifier: Apache-2.0
"""Configuration: a tree of keys with defaults, and classes that can be built from it."""

from detectron2._lite import absent

from .compat import downgrade_config, upgrade_config
from .config import CfgNode, configurable, get_cfg, global_cfg, set_global_cfg
from .instantiate import instantiate

__all__ = [
    "CfgNode",
    "configurable",
    "downgrade_config",
    "get_cfg",
    "global_cfg",
    "instantiate",
    "set_global_cfg",
    "upgrade_config",
]

__getattr__ = absent(__name__, "LazyCall", "LazyConfig")
