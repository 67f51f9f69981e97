# SPDX-License-Identifier: Apache-2.0
"""Heads that map the pooled features of a box to a vector.

Shape shorthand: M boxes, C channels, P pooled side, D output channels.
"""

import fvcore.nn.weight_init as weight_init
import numpy as np
import torch
from detectron2.config import configurable
from detectron2.layers import Conv2d, ShapeSpec, get_norm
from fvcore.common.registry import Registry
from torch import nn

ROI_BOX_HEAD_REGISTRY = Registry("ROI_BOX_HEAD")
ROI_BOX_HEAD_REGISTRY.__doc__ = """
Box heads, called as `obj(cfg, input_shape)` with the `ShapeSpec` of the pooled features; they
return an `nn.Module` with the property `output_shape` that maps (M, C, P, P) to features of boxes.
"""


# nn.Sequential, as in Detectron2, whose layers can be indexed
@ROI_BOX_HEAD_REGISTRY.register()
class FastRCNNConvFCHead(nn.Sequential):
    """3x3 convolutions, then linear layers, each followed by a ReLU.

    Args:
        input_shape: Shape of the pooled features.
        conv_dims: Output channels of the convolutions conv1, conv2, ...
        fc_dims: Output channels of the linear layers fc1, fc2, ...
        conv_norm: Normalization after the convolutions; see ``get_norm``.
    """

    @configurable
    def __init__(
        self, input_shape: ShapeSpec, *, conv_dims: list[int], fc_dims: list[int], conv_norm=""
    ):
        super().__init__()
        assert len(conv_dims) + len(fc_dims) > 0, (
            "cfg.MODEL.ROI_BOX_HEAD.NUM_CONV or NUM_FC must be positive"
        )
        size = (input_shape.channels, input_shape.height, input_shape.width)

        self.conv_norm_relus = []
        for index, dim in enumerate(conv_dims, start=1):
            conv = Conv2d(
                size[0],
                dim,
                kernel_size=3,
                padding=1,
                bias=not conv_norm,
                norm=get_norm(conv_norm, dim),
                activation=nn.ReLU(),
            )
            self.add_module(f"conv{index}", conv)
            self.conv_norm_relus.append(conv)
            size = (dim, *size[1:])

        self.fcs = []
        for index, dim in enumerate(fc_dims, start=1):
            if index == 1:
                self.add_module("flatten", nn.Flatten())
            fc = nn.Linear(int(np.prod(size)), dim)
            self.add_module(f"fc{index}", fc)
            self.add_module(f"fc_relu{index}", nn.ReLU())
            self.fcs.append(fc)
            size = dim
        self._output_size = size

        for conv in self.conv_norm_relus:
            weight_init.c2_msra_fill(conv)
        for fc in self.fcs:
            weight_init.c2_xavier_fill(fc)

    @classmethod
    def from_config(cls, cfg, input_shape):
        """Returns the arguments of ``__init__``."""
        head = cfg.MODEL.ROI_BOX_HEAD
        return {
            "input_shape": input_shape,
            "conv_dims": [head.CONV_DIM] * head.NUM_CONV,
            "fc_dims": [head.FC_DIM] * head.NUM_FC,
            "conv_norm": head.NORM,
        }

    def forward(self, x):
        """Maps (M, C, P, P) to (M, D), or to (M, D, P, P) without linear layers."""
        for part in self:
            x = part(x)
        return x

    @property
    @torch.jit.unused
    def output_shape(self) -> ShapeSpec:
        """Shape of the output."""
        size = self._output_size
        if isinstance(size, int):
            return ShapeSpec(channels=size)
        return ShapeSpec(channels=size[0], height=size[1], width=size[2])


def build_box_head(cfg, input_shape):
    """Builds the box head named by cfg.MODEL.ROI_BOX_HEAD.NAME."""
    return ROI_BOX_HEAD_REGISTRY.get(cfg.MODEL.ROI_BOX_HEAD.NAME)(cfg, input_shape)
