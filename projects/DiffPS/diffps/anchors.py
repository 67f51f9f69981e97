# SPDX-License-Identifier: Apache-2.0
"""Anchors with whole-numbered corners, as torchvision makes them."""

from detectron2.modeling import ANCHOR_GENERATOR_REGISTRY
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator
from torch import Tensor


@ANCHOR_GENERATOR_REGISTRY.register()
class RoundedAnchorGenerator(DefaultAnchorGenerator):
    """Detectron2's anchors, the corners of those of one cell rounded to whole pixels.

    With ``MODEL.ANCHOR_GENERATOR.OFFSET`` 0 these are the anchors of torchvision's detectors,
    though in another order within a cell.
    """

    def generate_cell_anchors(self, *args, **kwargs) -> Tensor:
        return super().generate_cell_anchors(*args, **kwargs).round()
