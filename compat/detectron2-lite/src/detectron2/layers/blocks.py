# SPDX-License-Identifier: Apache-2.0
"""The base class of the blocks that backbones are made of."""

from torch import nn

from .batch_norm import FrozenBatchNorm2d


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
