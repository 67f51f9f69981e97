# SPDX-License-Identifier: Apache-2.0
"""Detectron2 finds its projects here; of them lite has the point sampling of PointRend."""

from detectron2._lite import absent

__getattr__ = absent(__name__, "deeplab", "panoptic_deeplab")
