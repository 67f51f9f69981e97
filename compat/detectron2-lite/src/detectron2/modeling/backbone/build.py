# SPDX-License-Identifier: Apache-2.0
"""The registry of backbones."""

from detectron2.layers import ShapeSpec
from fvcore.common.registry import Registry

from .backbone import Backbone

BACKBONE_REGISTRY = Registry("BACKBONE")
BACKBONE_REGISTRY.__doc__ = """
Backbones, called as `obj(cfg, input_shape)` with the `ShapeSpec` of the image (its channels).
They return a `Backbone`.
"""


def build_backbone(cfg, input_shape: ShapeSpec | None = None) -> Backbone:
    """The backbone named by `cfg.MODEL.BACKBONE.NAME`.

    Args:
        cfg: a config.
        input_shape: of the image; by default as many channels as cfg.MODEL.PIXEL_MEAN has.
    """
    if input_shape is None:
        input_shape = ShapeSpec(channels=len(cfg.MODEL.PIXEL_MEAN))
    backbone = BACKBONE_REGISTRY.get(cfg.MODEL.BACKBONE.NAME)(cfg, input_shape)
    assert isinstance(backbone, Backbone), type(backbone)
    return backbone
