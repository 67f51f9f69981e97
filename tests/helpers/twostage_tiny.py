# SPDX-License-Identifier: Apache-2.0
"""A tiny config of TwoStage, shared by its tests."""

from detectron2.config import CfgNode, get_cfg

from person_search.config import add_person_search_config
from twostage import add_twostage_config

DETECTOR = "torchvision/fasterrcnn_mobilenet_v3_large_320_fpn"


def tiny_cfg(**changes) -> CfgNode:
    """Returns a config; the changes are keys below MODEL.TWO_STAGE."""
    cfg = get_cfg()
    add_person_search_config(cfg)
    add_twostage_config(cfg)
    cfg.MODEL.META_ARCHITECTURE, cfg.MODEL.DEVICE, cfg.MODEL.WEIGHTS = "TwoStage", "cpu", ""
    cfg.MODEL.MASK_ON = False
    cfg.MODEL.RESNETS.DEPTH, cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 18, 64
    cfg.MODEL.REID.EMBED_DIM, cfg.MODEL.REID.NUM_PIDS = 16, 3
    cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST = 0.0
    cfg.MODEL.RPN.POST_NMS_TOPK_TEST = 20
    cfg.INPUT.FORMAT = "RGB"
    cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST = 48, 64
    two = cfg.MODEL.TWO_STAGE
    two.DETECTOR, two.SCORE_THRESH = DETECTOR, 0.0
    two.REID, two.CROP_SIZE = "timm/mobilenetv2_035", [64, 32]
    for key, value in changes.items():
        two[key] = value
    return cfg
