# SPDX-License-Identifier: Apache-2.0
"""Model parts that several methods share; importing this package registers the backbones."""

from person_search.modeling.oim import OIMLoss
from person_search.modeling.slim_resnet import (
    build_slim_resnet_backbone,
    build_slim_resnet_fpn_backbone,
)
from person_search.modeling.swin_fpn import build_swin_fpn_backbone
from person_search.modeling.swin_weights import PretrainedSwin

__all__ = [
    "OIMLoss",
    "PretrainedSwin",
    "build_slim_resnet_backbone",
    "build_slim_resnet_fpn_backbone",
    "build_swin_fpn_backbone",
]
