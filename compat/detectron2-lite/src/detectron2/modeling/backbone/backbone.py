# SPDX-License-Identifier: Apache-2.0
"""What every backbone offers to the parts built on top of it."""

from abc import ABCMeta, abstractmethod

from detectron2.layers import ShapeSpec
from torch import nn

__all__ = ["Backbone"]


class Backbone(nn.Module, metaclass=ABCMeta):
    """A network that maps an image batch (N, 3, H, W) to named feature maps.

    Subclasses set `_out_features` (names, in order), `_out_feature_channels` and
    `_out_feature_strides` (both by name), or override `output_shape`.
    """

    def __init__(self):
        super().__init__()

    @abstractmethod
    def forward(self):
        """Return a dict from feature name to (N, C, H / stride, W / stride)."""

    @property
    def size_divisibility(self) -> int:
        """Number that height and width of the input must be multiples of; 0 for any size."""
        return 0

    @property
    def padding_constraints(self) -> dict[str, int]:
        """Wishes about padding, passed to `ImageList.from_tensors`.

        Keys: "size_divisibility" (as the property, and preferred to it) and "square_size" (pad
        to a square of this side). Empty means no wish.
        """
        return {}

    def output_shape(self) -> dict[str, ShapeSpec]:
        """Channels and stride of each feature map."""
        channels, strides = self._out_feature_channels, self._out_feature_strides
        return {
            name: ShapeSpec(channels=channels[name], stride=strides[name])
            for name in self._out_features
        }
