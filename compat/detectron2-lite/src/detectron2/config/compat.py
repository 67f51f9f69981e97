# SPDX-License-Identifier: Apache-2.0
"""Keys of the config by version, and conversion of a config between versions.

Version 0 to 1 moved one key; version 1 to 2 renamed those of ``_RENAMES[2]`` and replaced the
anchor settings of RPN and of RetinaNet by one ``MODEL.ANCHOR_GENERATOR``.
"""

import logging

from .config import CfgNode
from .defaults import _C

# Version -> (name in the version before, name from this version on).
_RENAMES: dict[int, tuple[tuple[str, str], ...]] = {
    1: (("MODEL.RPN_HEAD.NAME", "MODEL.RPN.HEAD_NAME"),),
    2: (
        ("MODEL.WEIGHT", "MODEL.WEIGHTS"),
        ("MODEL.PANOPTIC_FPN.SEMANTIC_LOSS_SCALE", "MODEL.SEM_SEG_HEAD.LOSS_WEIGHT"),
        ("MODEL.PANOPTIC_FPN.RPN_LOSS_SCALE", "MODEL.RPN.LOSS_WEIGHT"),
        ("MODEL.PANOPTIC_FPN.INSTANCE_LOSS_SCALE", "MODEL.PANOPTIC_FPN.INSTANCE_LOSS_WEIGHT"),
        ("MODEL.PANOPTIC_FPN.COMBINE_ON", "MODEL.PANOPTIC_FPN.COMBINE.ENABLED"),
        (
            "MODEL.PANOPTIC_FPN.COMBINE_OVERLAP_THRESHOLD",
            "MODEL.PANOPTIC_FPN.COMBINE.OVERLAP_THRESH",
        ),
        (
            "MODEL.PANOPTIC_FPN.COMBINE_STUFF_AREA_LIMIT",
            "MODEL.PANOPTIC_FPN.COMBINE.STUFF_AREA_LIMIT",
        ),
        (
            "MODEL.PANOPTIC_FPN.COMBINE_INSTANCES_CONFIDENCE_THRESHOLD",
            "MODEL.PANOPTIC_FPN.COMBINE.INSTANCES_CONFIDENCE_THRESH",
        ),
        ("MODEL.ROI_HEADS.SCORE_THRESH", "MODEL.ROI_HEADS.SCORE_THRESH_TEST"),
        ("MODEL.ROI_HEADS.NMS", "MODEL.ROI_HEADS.NMS_THRESH_TEST"),
        ("MODEL.RETINANET.INFERENCE_SCORE_THRESHOLD", "MODEL.RETINANET.SCORE_THRESH_TEST"),
        ("MODEL.RETINANET.INFERENCE_TOPK_CANDIDATES", "MODEL.RETINANET.TOPK_CANDIDATES_TEST"),
        ("MODEL.RETINANET.INFERENCE_NMS_THRESHOLD", "MODEL.RETINANET.NMS_THRESH_TEST"),
        ("TEST.DETECTIONS_PER_IMG", "TEST.DETECTIONS_PER_IMAGE"),
        ("TEST.AUG_ON", "TEST.AUG.ENABLED"),
        ("TEST.AUG_MIN_SIZES", "TEST.AUG.MIN_SIZES"),
        ("TEST.AUG_MAX_SIZE", "TEST.AUG.MAX_SIZE"),
        ("TEST.AUG_FLIP", "TEST.AUG.FLIP"),
    ),
}
# Keys by which a file without VERSION is recognized as version 1.
_SIGNS_OF_VERSION_1 = ("MODEL.WEIGHT", "TEST.AUG_ON")


def upgrade_config(cfg: CfgNode, to_version: int | None = None) -> CfgNode:
    """Returns a copy of ``cfg`` with the keys of a newer version (default: the latest)."""
    to_version = _C.VERSION if to_version is None else to_version
    if cfg.VERSION > to_version:
        raise AssertionError(f"cannot upgrade VERSION {cfg.VERSION} to the older {to_version}")
    cfg = cfg.clone()
    for version in range(cfg.VERSION + 1, to_version + 1):
        for old, new in _RENAMES[version]:
            _move(cfg, old, new)
        if version == 2:
            _unify_anchor_settings(cfg)
        cfg.VERSION = version
    return cfg


def downgrade_config(cfg: CfgNode, to_version: int) -> CfgNode:
    """Returns a copy of ``cfg`` with the keys of an older version."""
    if cfg.VERSION < to_version:
        raise AssertionError(f"cannot downgrade VERSION {cfg.VERSION} to the newer {to_version}")
    cfg = cfg.clone()
    for version in range(cfg.VERSION, to_version, -1):
        for old, new in _RENAMES[version]:
            _move(cfg, new, old)
        if version == 2:
            _split_anchor_settings(cfg)
        cfg.VERSION = version - 1
    return cfg


def guess_version(cfg: CfgNode, filename: str) -> int:
    """Guesses the version of a loaded file that does not state one, and logs the guess."""
    logger = logging.getLogger(__name__)
    if any(_find(cfg, key) for key in _SIGNS_OF_VERSION_1):
        logger.warning("%s has no VERSION; by its keys it is taken for VERSION 1.", filename)
        return 1
    logger.warning("%s has no VERSION; it is taken for the latest, %d.", filename, _C.VERSION)
    return _C.VERSION


def _find(cfg: CfgNode, key: str) -> tuple[CfgNode, str] | None:
    """Returns the node that holds the dotted ``key`` and the last part of it, or None."""
    *path, leaf = key.split(".")
    node = cfg
    for part in path:
        node = node.get(part)
        if not isinstance(node, CfgNode):
            return None
    return (node, leaf) if leaf in node else None


def _remove(cfg: CfgNode, key: str) -> None:
    """Deletes ``key``, and the nodes above it that become empty."""
    found = _find(cfg, key)
    if found is None:
        return
    node, leaf = found
    del node[leaf]
    parent = key.rpartition(".")[0]
    if parent and not node:
        _remove(cfg, parent)


def _set(cfg: CfgNode, key: str, value) -> None:
    """Sets ``key``, making the nodes above it where they lack."""
    *path, leaf = key.split(".")
    node = cfg
    for part in path:
        if part not in node:
            node[part] = CfgNode()
        node = node[part]
    node[leaf] = value


def _move(cfg: CfgNode, source: str, target: str) -> None:
    found = _find(cfg, source)
    if found is not None:
        node, leaf = found
        value = node[leaf]
        _remove(cfg, source)
        _set(cfg, target, value)


def _unify_anchor_settings(cfg: CfgNode) -> None:
    is_retinanet = cfg.get("MODEL", {}).get("META_ARCHITECTURE") == "RetinaNet"
    section = "MODEL.RETINANET" if is_retinanet else "MODEL.RPN"
    for name in ("SIZES", "ASPECT_RATIOS"):
        _move(cfg, f"{section}.ANCHOR_{name}", f"MODEL.ANCHOR_GENERATOR.{name}")
        _remove(cfg, f"MODEL.RPN.ANCHOR_{name}")
        _remove(cfg, f"MODEL.RETINANET.ANCHOR_{name}")
    # Strides follow from the backbone since version 2.
    _remove(cfg, "MODEL.RETINANET.ANCHOR_STRIDES")


def _split_anchor_settings(cfg: CfgNode) -> None:
    for name in ("SIZES", "ASPECT_RATIOS"):
        found = _find(cfg, f"MODEL.ANCHOR_GENERATOR.{name}")
        if found is None:
            continue
        value = found[0][name]
        _remove(cfg, f"MODEL.ANCHOR_GENERATOR.{name}")
        _set(cfg, f"MODEL.RPN.ANCHOR_{name}", value)
        _set(cfg, f"MODEL.RETINANET.ANCHOR_{name}", value)
    _set(cfg, "MODEL.RETINANET.ANCHOR_STRIDES", [])
