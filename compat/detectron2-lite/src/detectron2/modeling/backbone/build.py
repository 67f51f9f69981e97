# SPDX-License-Identifier: Apache-2.0
"""The registry of backbones."""

from detectron2.layers import ShapeSpec
from fvcore.common.registry import Registry

from .backbone import Backbone

BACKBONE_REGISTRY = Registry("BACKBONE")
BACKBONE_REGISTRY.__doc__ = """
Backbones, called as `obj(cfg, input_shape)` with the `ShapeSpec` of the image; they return a
`Backbone`.
"""


def build_backbone(cfg, input_shape: ShapeSpec | None = None) -> Backbone:
    """Builds the backbone named by cfg.MODEL.BACKBONE.NAME.

    Args:
        cfg: Full config.
        input_shape: Shape of the image, by default with the channels of cfg.MODEL.PIXEL_MEAN.
    """
    if input_shape is None:
        input_shape = ShapeSpec(channels=len(cfg.MODEL.PIXEL_MEAN))
    backbone = BACKBONE_REGISTRY.get(cfg.MODEL.BACKBONE.NAME)(cfg, input_shape)
    assert isinstance(backbone, Backbone), type(backbone)
    return backbone
