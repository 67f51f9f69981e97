# SPDX-License-Identifier: Apache-2.0
"""The base class of the blocks of backbones."""

from torch import nn

from .batch_norm import FrozenBatchNorm2d


class CNNBlockBase(nn.Module):
    """Base class of a CNN block that can be frozen.

    A block maps (N, in_channels, H, W) to (N, out_channels, H // stride, W // stride).

    Args:
        in_channels: Number of input channels.
        out_channels: Number of output channels.
        stride: Stride of the block.
    """

    def __init__(self, in_channels, out_channels, stride):
        super().__init__()
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.stride = stride

    def freeze(self):
        """Freezes the parameters and converts the batch norms to ``FrozenBatchNorm2d``.

        Returns:
            The block itself.
        """
        for parameter in self.parameters():
            parameter.requires_grad = False
        FrozenBatchNorm2d.convert_frozen_batchnorm(self)
        return self
