# SPDX-License-Identifier: Apache-2.0
"""A PSDiff of a few thousand weights and inputs for it, shared by the tests of this folder."""

import shlex

import torch
from detectron2.config import get_cfg
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances

from person_search.config import add_person_search_config
from psdiff import add_psdiff_config

EMBED_DIM = 16
PAPER_KEYS = shlex.split(
    """
    MODEL.DEVICE cpu MODEL.WEIGHTS '' MODEL.BACKBONE.NAME build_slim_resnet_fpn_backbone
    MODEL.SLIM_RESNET.STEM_WIDTH 8 MODEL.SLIM_RESNET.WIDTHS [8,12] MODEL.SLIM_RESNET.BLOCKS [1,1]
    MODEL.FPN.IN_FEATURES "['res2','res3']" MODEL.FPN.OUT_CHANNELS 16 MODEL.REID.EMBED_DIM 16
    MODEL.PSDIFF.NUM_PROPOSALS 6 MODEL.PSDIFF.CDL.IN_FEATURES "['p2','p3']" MODEL.PSDIFF.CDL.HEADS 2
    MODEL.PSDIFF.CDL.POOLER_RESOLUTION 3 MODEL.PSDIFF.SCORE_THRESH 0.0
    MODEL.PSDIFF.TEACHER.BACKBONE build_slim_resnet_backbone MODEL.PSDIFF.TEACHER.MAX_ITER 2
    MODEL.PSDIFF.TEACHER.BACKBONE_WEIGHTS '' MODEL.PSDIFF.TEACHER.CROP_SIZE [32,16]
    INPUT.MIN_SIZE_TRAIN (64,) INPUT.MIN_SIZE_TEST 64
"""
)
"""Overrides that make a config of the paper tiny, teacher included."""


def tiny_cfg(**psdiff_overrides):
    """Config of the tiny model; keywords are keys of MODEL.PSDIFF, with ``__`` for a dot."""
    cfg = get_cfg()
    add_person_search_config(cfg)
    add_psdiff_config(cfg)
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.META_ARCHITECTURE = "PSDiff"
    cfg.MODEL.BACKBONE.NAME = "build_slim_resnet_fpn_backbone"
    cfg.MODEL.SLIM_RESNET.STEM_WIDTH = 8
    cfg.MODEL.SLIM_RESNET.WIDTHS = [8, 12]
    cfg.MODEL.SLIM_RESNET.BLOCKS = [1, 1]
    cfg.MODEL.FPN.OUT_CHANNELS = 16
    cfg.MODEL.REID.EMBED_DIM = EMBED_DIM
    cfg.MODEL.PSDIFF.NUM_PROPOSALS = 12
    cfg.MODEL.PSDIFF.STEPS = 3
    cfg.MODEL.PSDIFF.CDL.IN_FEATURES = ["p2", "p3"]
    cfg.MODEL.PSDIFF.CDL.POOLER_RESOLUTION = 3
    cfg.MODEL.PSDIFF.CDL.HEADS = 2
    cfg.MODEL.PSDIFF.CDL.DC_DIM = 4
    cfg.MODEL.PSDIFF.CDL.DC_OUT = 4
    cfg.MODEL.PSDIFF.SCORE_THRESH = 0.0
    for key, value in psdiff_overrides.items():
        node = cfg.MODEL.PSDIFF
        *path, last = key.split("__")
        for name in path:
            node = node[name]
        assert last in node, key
        node[last] = value
    return cfg


def tiny_model(seed=0, **psdiff_overrides):
    torch.manual_seed(seed)
    return build_model(tiny_cfg(**psdiff_overrides))


def image_input(image_id=0, size=(48, 64), queries=0, seed=0):
    """What the mapper gives in testing."""
    g = torch.Generator().manual_seed(seed * 100 + image_id)
    image = torch.randint(0, 256, (3, *size), generator=g, dtype=torch.uint8)
    boxes = torch.tensor([[4.0, 6.0, 20.0, 40.0], [30.0, 5.0, 44.0, 33.0]])[:queries]
    return {
        "image": image,
        "height": size[0] * 2,
        "width": size[1] * 2,
        "image_id": image_id,
        "queries": Instances(
            size, pred_boxes=Boxes(boxes), pred_classes=torch.zeros(queries, dtype=torch.int64)
        ),
    }


def training_input(persons=2, size=(48, 64), seed=0):
    """What the mapper gives in training."""
    item = image_input(size=size, seed=seed)
    g = torch.Generator().manual_seed(seed)
    boxes = torch.tensor([[4.0, 6.0, 20.0, 40.0], [30.0, 5.0, 44.0, 33.0], [8.0, 2.0, 15.0, 22.0]])
    feats = torch.randn(3, EMBED_DIM, generator=g)
    item["instances"] = Instances(
        size,
        gt_boxes=Boxes(boxes[:persons]),
        gt_classes=torch.zeros(persons, dtype=torch.int64),
        gt_pids=torch.arange(persons),
        gt_reid_feats=torch.nn.functional.normalize(feats[:persons], dim=1),
    )
    return item
