# SPDX-License-Identifier: Apache-2.0
"""Computes the feature map of the detection branch from one frozen activation."""

from detectron2.config import configurable
from detectron2.layers import ShapeSpec
from torch import nn


class DetAggregator(nn.Sequential):
    """1x1 convolution, norm, ReLU, depth-wise 3x3 convolution, norm; no ReLU at the end.

    (B, C, H, W) -> (B, dim, H, W).

    Args:
        in_channels: C.
        dim: Channels of the result.
    """

    @configurable
    def __init__(self, *, in_channels: int, dim: int) -> None:
        super().__init__(
            nn.Conv2d(in_channels, dim, kernel_size=1, bias=False),
            nn.BatchNorm2d(dim),
            nn.ReLU(inplace=True),
            nn.Conv2d(dim, dim, kernel_size=3, padding=1, groups=dim, bias=False),
            nn.BatchNorm2d(dim),
        )
        self.dim = dim

    @classmethod
    def from_config(cls, cfg, input_shape: dict[str, ShapeSpec]) -> dict:
        """Returns the arguments of the constructor."""
        det_agg = cfg.MODEL.DIFFPS.DET_AGG
        shape = feature_shape(input_shape, det_agg.IN_FEATURE, "MODEL.DIFFPS.DET_AGG.IN_FEATURE")
        return {"in_channels": shape.channels, "dim": det_agg.DIM}


def feature_shape(input_shape: dict[str, ShapeSpec], name: str, key: str) -> ShapeSpec:
    """Returns the shape of a feature; raises ValueError with the config key if it is missing."""
    if name not in input_shape:
        raise ValueError(
            f"{key} is '{name}', but the backbone has {sorted(input_shape)}. Add it to "
            "MODEL.DIFFPS.BACKBONE.OUT_FEATURES."
        )
    return input_shape[name]
