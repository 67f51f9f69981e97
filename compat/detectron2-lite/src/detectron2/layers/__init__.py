# SPDX-License-Identifier: Apache-2.0
"""Building blocks of networks."""

from detectron2._lite import absent, absent_class

from .batch_norm import CycleBatchNormList, FrozenBatchNorm2d, NaiveSyncBatchNorm, get_norm
from .blocks import CNNBlockBase
from .losses import ciou_loss, diou_loss
from .nms import batched_nms, nms
from .roi_align import ROIAlign, roi_align
from .shape_spec import ShapeSpec
from .wrappers import (
    BatchNorm2d,
    Conv2d,
    ConvTranspose2d,
    Linear,
    cat,
    cross_entropy,
    empty_input_loss_func_wrapper,
    interpolate,
    move_device_like,
    nonzero_tuple,
    shapes_to_tensor,
)

# Modules name these at the top for configs that seldom ask for them.
DeformConv = absent_class(__name__, "DeformConv")
ModulatedDeformConv = absent_class(__name__, "ModulatedDeformConv")
ROIAlignRotated = absent_class(__name__, "ROIAlignRotated")

__all__ = [
    "BatchNorm2d",
    "CNNBlockBase",
    "Conv2d",
    "ConvTranspose2d",
    "CycleBatchNormList",
    "DeformConv",
    "FrozenBatchNorm2d",
    "Linear",
    "ModulatedDeformConv",
    "NaiveSyncBatchNorm",
    "ROIAlign",
    "ROIAlignRotated",
    "ShapeSpec",
    "batched_nms",
    "cat",
    "ciou_loss",
    "cross_entropy",
    "diou_loss",
    "empty_input_loss_func_wrapper",
    "get_norm",
    "interpolate",
    "move_device_like",
    "nms",
    "nonzero_tuple",
    "roi_align",
    "shapes_to_tensor",
]

__getattr__ = absent(
    __name__,
    "ASPP",
    "DepthwiseSeparableConv2d",
    "batched_nms_rotated",
    "nms_rotated",
    "paste_masks_in_image",
    "roi_align_rotated",
)
