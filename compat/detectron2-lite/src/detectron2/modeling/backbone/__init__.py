# SPDX-License-Identifier: Apache-2.0
"""Backbones: networks that turn images into feature maps."""

from detectron2._lite import absent

from .backbone import Backbone
from .build import BACKBONE_REGISTRY, build_backbone
from .fpn import FPN, build_resnet_fpn_backbone, build_retinanet_resnet_fpn_backbone
from .resnet import (
    BasicStem,
    BottleneckBlock,
    ResNet,
    ResNetBlockBase,
    build_resnet_backbone,
    make_stage,
)
from .swin import SwinTransformer

__all__ = [
    "BACKBONE_REGISTRY",
    "Backbone",
    "BasicStem",
    "BottleneckBlock",
    "FPN",
    "ResNet",
    "ResNetBlockBase",
    "SwinTransformer",
    "build_backbone",
    "build_resnet_backbone",
    "build_resnet_fpn_backbone",
    "build_retinanet_resnet_fpn_backbone",
    "make_stage",
]

__getattr__ = absent(
    __name__, "MViT", "RegNet", "SimpleFeaturePyramid", "ViT", "get_vit_lr_decay_rate"
)
