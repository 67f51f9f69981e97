# SPDX-License-Identifier: Apache-2.0
"""Calling what a nested description with ``_target_`` keys describes."""

from collections.abc import Mapping
from typing import Any

from detectron2.utils.registry import locate


def instantiate(cfg: Any) -> Any:
    """Builds the object that ``cfg`` describes.

    Args:
        cfg: a mapping with ``_target_``, a callable or its dotted name, and the keyword arguments
            to call it with. Arguments are instantiated first.

    Returns:
        The result of the call. Lists are instantiated element by element; anything else,
        mappings without ``_target_`` included, is returned as it is.
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
