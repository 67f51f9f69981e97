# SPDX-License-Identifier: Apache-2.0
"""Config of a backbone on the tiny Stable Diffusion folder, shared by the tests of DiffPS."""

from detectron2.config import get_cfg
from detectron2.modeling import build_backbone

from diffps import add_diffps_config
from person_search.config import add_person_search_config


def tiny_backbone_cfg(folder, **overrides):
    """Config of the tiny backbone.

    Keywords are keys of MODEL.DIFFPS.BACKBONE, with ``__`` for a dot.
    """
    cfg = get_cfg()
    add_person_search_config(cfg)
    add_diffps_config(cfg)
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.BACKBONE.NAME = "DiffusionBackbone"
    cfg.MODEL.PIXEL_MEAN = [127.5] * 3
    cfg.MODEL.PIXEL_STD = [127.5] * 3
    cfg.INPUT.FORMAT = "RGB"
    cfg.MODEL.DIFFPS.INPUT.SIZE = [128, 128]
    backbone = cfg.MODEL.DIFFPS.BACKBONE
    backbone.MODEL = str(folder)
    backbone.FAMILY = "any"
    backbone.DTYPE = "float32"
    for key, value in overrides.items():
        node = backbone
        *path, last = key.split("__")
        for name in path:
            node = node[name]
        assert last in node, key
        node[last] = value
    return cfg


def tiny_backbone(folder, **overrides):
    return build_backbone(tiny_backbone_cfg(folder, **overrides))
