# SPDX-License-Identifier: Apache-2.0
"""Model parts that several methods share; importing this package registers the backbones."""

from person_search.modeling.crop_embedders import CROP_EMBEDDER_REGISTRY
from person_search.modeling.equal_sizes import run_by_size
from person_search.modeling.oim import OIMLoss
from person_search.modeling.slim_resnet import (
    build_slim_resnet_backbone,
    build_slim_resnet_fpn_backbone,
)
from person_search.modeling.swin_fpn import build_swin_fpn_backbone
from person_search.modeling.swin_weights import PretrainedSwin
from person_search.modeling.timm_fpn import build_timm_fpn_backbone

__all__ = [
    "CROP_EMBEDDER_REGISTRY",
    "OIMLoss",
    "PretrainedSwin",
    "build_slim_resnet_backbone",
    "build_slim_resnet_fpn_backbone",
    "build_swin_fpn_backbone",
    "build_timm_fpn_backbone",
    "run_by_size",
]
