# ruff: noqa: F401
# SPDX-License-Identifier: Apache-2.0
"""ROI heads: the second stage of a detector."""

from detectron2._lite import absent, absent_class

from .box_head import ROI_BOX_HEAD_REGISTRY, FastRCNNConvFCHead, build_box_head
from .fast_rcnn import FastRCNNOutputLayers
from .roi_heads import (
    ROI_HEADS_REGISTRY,
    Res5ROIHeads,
    ROIHeads,
    StandardROIHeads,
    build_roi_heads,
    select_foreground_proposals,
)

KRCNNConvDeconvUpsampleHead = absent_class(__name__, "KRCNNConvDeconvUpsampleHead")
MaskRCNNConvUpsampleHead = absent_class(__name__, "MaskRCNNConvUpsampleHead")

__getattr__ = absent(__name__)
