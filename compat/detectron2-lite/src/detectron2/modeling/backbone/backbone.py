# SPDX-License-Identifier: Apache-2.0
"""Base class of backbones."""

from abc import ABCMeta, abstractmethod

from detectron2.layers import ShapeSpec
from torch import nn


class Backbone(nn.Module, metaclass=ABCMeta):
    """Base class of networks that map images (N, 3, H, W) to named feature maps.

    Subclasses set ``_out_features`` (list of names), ``_out_feature_channels`` and
    ``_out_feature_strides`` (dicts by name), or override ``output_shape``.
    """

    def __init__(self):
        super().__init__()

    @abstractmethod
    def forward(self):
        """Returns a dict from name to (N, C, H / stride, W / stride) features."""

    @property
    def size_divisibility(self) -> int:
        """Number of which the sides of the input must be multiples; 0 for any size."""
        return 0

    @property
    def padding_constraints(self) -> dict[str, int]:
        """Padding constraints of ``ImageList.from_tensors``."""
        return {}

    def output_shape(self) -> dict[str, ShapeSpec]:
        """Returns the channels and stride of each feature map."""
        channels, strides = self._out_feature_channels, self._out_feature_strides
        return {
            name: ShapeSpec(channels=channels[name], stride=strides[name])
            for name in self._out_features
        }
