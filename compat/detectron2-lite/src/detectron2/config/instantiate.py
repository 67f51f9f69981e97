# SPDX-License-Identifier: Apache-2.0
"""Instantiation of objects from nested descriptions with ``_target_`` keys."""

from collections.abc import Mapping
from typing import Any

from detectron2.utils.registry import locate


def instantiate(cfg: Any) -> Any:
    """Instantiates the object that ``cfg`` describes.

    Args:
        cfg: Mapping with ``_target_``, a callable or its dotted name, and its keyword arguments,
            which are instantiated first.

    Returns:
        The result of the call. Lists are instantiated element by element; other values, including
        mappings without ``_target_``, are returned unchanged.
    """
    if isinstance(cfg, list):
        return [instantiate(item) for item in cfg]
    if not isinstance(cfg, Mapping) or "_target_" not in cfg:
        return cfg
    arguments = {key: instantiate(value) for key, value in cfg.items() if key != "_target_"}
    target = cfg["_target_"]
    target = locate(target) if isinstance(target, str) else instantiate(target)
    if not callable(target):
        raise AssertionError(
            f"_target_ must be a callable or the dotted name of one, got {target!r}"
        )
    return target(**arguments)
