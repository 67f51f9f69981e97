# ruff: noqa: F401
# SPDX-License-Identifier: Apache-2.0
"""Backbones: networks that map images to feature maps."""

from detectron2._lite import absent

from .backbone import Backbone
from .build import BACKBONE_REGISTRY, build_backbone
from .fpn import FPN, build_resnet_fpn_backbone
from .resnet import (
    BasicStem,
    BottleneckBlock,
    ResNet,
    ResNetBlockBase,
    build_resnet_backbone,
    make_stage,
)
from .swin import SwinTransformer

__getattr__ = absent(__name__)
