# SPDX-License-Identifier: Apache-2.0
"""The part of a config that decides what given weights compute."""

import hashlib
import json
from collections.abc import Iterator
from typing import Any

from detectron2.config import CfgNode

from person_search.config.build import default_config

IRRELEVANT_WORDS = (
    *("WEIGHT", "DEVICE", "NUM_PIDS", "TEACHER", "LOSS", "CACHE", "FREEZE", "LICENSE"),
)
"""Config keys that contain one of these words locate files or control training; they do not change
what given weights compute."""


def config_identity(cfg: CfgNode) -> dict[str, Any]:
    """Returns the config keys that change what is computed: ``MODEL`` and the image mapper."""
    keys = {
        key: value
        for key, value in _flatten(cfg.MODEL, "MODEL")
        if not any(word in key for word in IRRELEVANT_WORDS)
    }
    return {**keys, "DATALOADER.MAPPER": cfg.DATALOADER.MAPPER}


def config_hash(cfg: CfgNode) -> str:
    """Returns the SHA-256 of :func:`config_identity` and the size and format of the input.

    Keys that have their default value do not count, so that later versions may add keys.
    """
    default = _hashed_keys(default_config())
    keys = {key: value for key, value in _hashed_keys(cfg).items() if value != default.get(key)}
    return hashlib.sha256(json.dumps(keys, sort_keys=True, default=str).encode()).hexdigest()


def _hashed_keys(cfg: CfgNode) -> dict[str, Any]:
    names = ("FORMAT", "MIN_SIZE_TEST", "MAX_SIZE_TEST")
    return {**config_identity(cfg), **{f"INPUT.{name}": cfg.INPUT[name] for name in names}}


def _flatten(node: CfgNode, prefix: str) -> Iterator[tuple[str, Any]]:
    for key, value in node.items():
        if isinstance(value, CfgNode):
            yield from _flatten(value, f"{prefix}.{key}")
        else:
            yield f"{prefix}.{key}", value
