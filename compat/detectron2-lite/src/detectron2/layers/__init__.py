# ruff: noqa: F401
# SPDX-License-Identifier: Apache-2.0
"""Building blocks of networks."""

from detectron2._lite import absent, absent_class
from torchvision.ops import complete_box_iou_loss as ciou_loss
from torchvision.ops import distance_box_iou_loss as diou_loss

from .batch_norm import FrozenBatchNorm2d, get_norm
from .blocks import CNNBlockBase
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

DeformConv = absent_class(__name__, "DeformConv")
ModulatedDeformConv = absent_class(__name__, "ModulatedDeformConv")
ROIAlignRotated = absent_class(__name__, "ROIAlignRotated")

__getattr__ = absent(__name__)
