# SPDX-License-Identifier: Apache-2.0
"""Small convolutional blocks."""

import fvcore.nn.weight_init as weight_init
from torch import nn

from .batch_norm import FrozenBatchNorm2d, get_norm
from .wrappers import Conv2d


class CNNBlockBase(nn.Module):
    """A block of a CNN that states its channels and stride and can be frozen.

    It takes one (N, in_channels, H, W) tensor and returns one of
    (N, out_channels, H // stride, W // stride).
    """

    def __init__(self, in_channels, out_channels, stride):
        super().__init__()
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.stride = stride

    def freeze(self):
        """Stops the block from learning: parameters and the statistics of batch norm alike."""
        for parameter in self.parameters():
            parameter.requires_grad = False
        FrozenBatchNorm2d.convert_frozen_batchnorm(self)
        return self


class DepthwiseSeparableConv2d(nn.Module):
    """A convolution of every channel by itself, then a 1x1 convolution across channels."""

    def __init__(
        self,
        in_channels,
        out_channels,
        kernel_size=3,
        padding=1,
        dilation=1,
        *,
        norm1=None,
        activation1=None,
        norm2=None,
        activation2=None,
    ):
        """
        Args:
            in_channels: channels in, and of the first convolution.
            out_channels: channels out.
            kernel_size: of the first convolution, as are padding and dilation.
            padding: see above.
            dilation: see above.
            norm1: normalization after the first convolution, as ``get_norm`` takes it.
            activation1: callable after that.
            norm2: as norm1, for the second convolution.
            activation2: as activation1, for the second convolution.
        """
        super().__init__()
        self.depthwise = Conv2d(
            in_channels,
            in_channels,
            kernel_size=kernel_size,
            padding=padding,
            dilation=dilation,
            groups=in_channels,
            bias=not norm1,
            norm=get_norm(norm1, in_channels),
            activation=activation1,
        )
        self.pointwise = Conv2d(
            in_channels,
            out_channels,
            kernel_size=1,
            bias=not norm2,
            norm=get_norm(norm2, out_channels),
            activation=activation2,
        )
        weight_init.c2_msra_fill(self.depthwise)
        weight_init.c2_msra_fill(self.pointwise)

    def forward(self, x):
        return self.pointwise(self.depthwise(x))
