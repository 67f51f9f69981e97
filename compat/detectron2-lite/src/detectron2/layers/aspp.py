# SPDX-License-Identifier: Apache-2.0
"""Atrous spatial pyramid pooling (Chen et al., "Rethinking Atrous Convolution", 2017)."""

from copy import deepcopy

import fvcore.nn.weight_init as weight_init
import torch
from torch import nn
from torch.nn import functional as F

from .batch_norm import get_norm
from .blocks import DepthwiseSeparableConv2d
from .wrappers import Conv2d


class ASPP(nn.Module):
    """Looks at a feature map with several dilations and with pooling at once."""

    def __init__(
        self,
        in_channels,
        out_channels,
        dilations,
        *,
        norm,
        activation,
        pool_kernel_size=None,
        dropout: float = 0.0,
        use_depthwise_separable_conv=False,
    ):
        """
        Args:
            in_channels: channels in.
            out_channels: channels of every branch and of the result.
            dilations: the dilations of the three 3x3 branches.
            norm: normalization, as ``get_norm`` takes it. The pooling branch has none, because
                pooling may leave it a single cell.
            activation: a module; every branch gets its own copy.
            pool_kernel_size: (height, width) to average over; None averages over the whole map.
            dropout: probability of dropout on the result.
            use_depthwise_separable_conv: for the 3x3 branches.
        """
        super().__init__()
        if len(dilations) != 3:
            raise AssertionError(f"ASPP expects 3 dilations, got {len(dilations)}")
        self.pool_kernel_size = pool_kernel_size
        self.dropout = dropout

        def plain_conv(channels_in, kernel_size, dilation=1, with_norm=True):
            conv = Conv2d(
                channels_in,
                out_channels,
                kernel_size=kernel_size,
                padding=dilation if kernel_size > 1 else 0,
                dilation=dilation,
                bias=not (with_norm and norm),
                norm=get_norm(norm, out_channels) if with_norm else None,
                activation=deepcopy(activation),
            )
            weight_init.c2_xavier_fill(conv)
            return conv

        def separable_conv(dilation):
            return DepthwiseSeparableConv2d(
                in_channels,
                out_channels,
                kernel_size=3,
                padding=dilation,
                dilation=dilation,
                norm1=norm,
                activation1=deepcopy(activation),
                norm2=norm,
                activation2=deepcopy(activation),
            )

        self.convs = nn.ModuleList([plain_conv(in_channels, 1)])
        for dilation in dilations:
            self.convs.append(
                separable_conv(dilation)
                if use_depthwise_separable_conv
                else plain_conv(in_channels, 3, dilation)
            )
        pool = (
            nn.AdaptiveAvgPool2d(1)
            if pool_kernel_size is None
            else nn.AvgPool2d(kernel_size=pool_kernel_size, stride=1)
        )
        self.convs.append(nn.Sequential(pool, plain_conv(in_channels, 1, with_norm=False)))
        self.project = plain_conv(5 * out_channels, 1)

    def forward(self, x):
        """Returns (N, out_channels, H, W) for (N, in_channels, H, W)."""
        size = x.shape[-2:]
        if self.pool_kernel_size is not None and any(
            length % kernel for length, kernel in zip(size, self.pool_kernel_size, strict=True)
        ):
            raise ValueError(
                f"pool_kernel_size {self.pool_kernel_size} must divide the input size {tuple(size)}"
            )
        branches = [conv(x) for conv in self.convs]
        branches[-1] = F.interpolate(branches[-1], size=size, mode="bilinear", align_corners=False)
        result = self.project(torch.cat(branches, dim=1))
        return F.dropout(result, self.dropout, training=self.training) if self.dropout else result
