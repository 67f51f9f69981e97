# SPDX-License-Identifier: Apache-2.0
"""ROI heads: what is in each proposed box, and where exactly."""

from detectron2._lite import absent, absent_class

from .box_head import ROI_BOX_HEAD_REGISTRY, FastRCNNConvFCHead, build_box_head
from .cascade_rcnn import CascadeROIHeads
from .fast_rcnn import FastRCNNOutputLayers
from .roi_heads import (
    ROI_HEADS_REGISTRY,
    Res5ROIHeads,
    ROIHeads,
    StandardROIHeads,
    build_roi_heads,
    select_foreground_proposals,
)

__all__ = [
    "CascadeROIHeads",
    "FastRCNNConvFCHead",
    "FastRCNNOutputLayers",
    "ROIHeads",
    "ROI_BOX_HEAD_REGISTRY",
    "ROI_HEADS_REGISTRY",
    "Res5ROIHeads",
    "StandardROIHeads",
    "build_box_head",
    "build_roi_heads",
    "select_foreground_proposals",
]

# Configs name these as defaults, and code imports them beside the box head.
KRCNNConvDeconvUpsampleHead = absent_class(__name__, "KRCNNConvDeconvUpsampleHead")
MaskRCNNConvUpsampleHead = absent_class(__name__, "MaskRCNNConvUpsampleHead")

__getattr__ = absent(
    __name__,
    "BaseKeypointRCNNHead",
    "BaseMaskRCNNHead",
    "ROI_KEYPOINT_HEAD_REGISTRY",
    "ROI_MASK_HEAD_REGISTRY",
    "RROIHeads",
    "build_keypoint_head",
    "build_mask_head",
)
