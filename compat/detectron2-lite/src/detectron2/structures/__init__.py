# ruff: noqa: F401
# SPDX-License-Identifier: Apache-2.0
"""The data structures that models take and return."""

from detectron2._lite import absent, absent_class

from .boxes import Boxes, BoxMode, pairwise_ioa, pairwise_iou, pairwise_point_box_distance
from .image_list import ImageList
from .instances import Instances
from .keypoints import Keypoints
from .masks import BitMasks, PolygonMasks, polygons_to_bitmask

ROIMasks = absent_class(__name__, "ROIMasks")
RotatedBoxes = absent_class(__name__, "RotatedBoxes")

__getattr__ = absent(__name__)
