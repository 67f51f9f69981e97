# SPDX-License-Identifier: Apache-2.0
"""Feature Pyramid Network.

Shape shorthand: N images, C output channels, level i = log2(stride).
Output "p{i}" has stride 2**i. Checkpoints use fpn_lateral{i} and fpn_output{i}.
"""

import math

import fvcore.nn.weight_init as weight_init
from detectron2.layers import Conv2d, ShapeSpec, get_norm
from torch import nn
from torch.nn import functional as F

from .backbone import Backbone
from .build import BACKBONE_REGISTRY
from .resnet import build_resnet_backbone

__all__ = ["FPN", "build_resnet_fpn_backbone", "build_retinanet_resnet_fpn_backbone"]


class FPN(Backbone):
    """Bring maps of several strides to the same channels and pass coarse content down.

    Args:
        bottom_up: the backbone that makes the input maps.
        in_features: their names, finest first; strides double from one to the next.
        out_channels: C of every output.
        norm: normalization after the convolutions, "" for none (they then have a bias).
        top_block: a module with attributes `num_levels` and `in_feature`; maps the feature of
            that name (of `bottom_up` if it has it, else of this FPN) to a list of `num_levels`
            still coarser maps.
        fuse_type: "sum" or "avg" of the lateral and the upsampled map.
        square_pad: if > 0, images shall be padded to a square of this side.
    """

    def __init__(
        self,
        bottom_up,
        in_features,
        out_channels,
        norm="",
        top_block=None,
        fuse_type="sum",
        square_pad=0,
    ):
        super().__init__()
        assert isinstance(bottom_up, Backbone), type(bottom_up)
        assert in_features, "FPN needs at least one input feature (cfg.MODEL.FPN.IN_FEATURES)"
        assert fuse_type in {"avg", "sum"}, fuse_type

        shapes = [bottom_up.output_shape()[name] for name in in_features]
        strides = [shape.stride for shape in shapes]
        _assert_strides_are_log2_contiguous(strides)

        lateral_convs, output_convs = [], []
        for shape in shapes:
            lateral = _fpn_conv(shape.channels, out_channels, 1, norm)
            output = _fpn_conv(out_channels, out_channels, 3, norm)
            # Both are constructed before either is filled: the order of random draws matters.
            weight_init.c2_xavier_fill(lateral)
            weight_init.c2_xavier_fill(output)
            level = int(math.log2(shape.stride))
            self.add_module(f"fpn_lateral{level}", lateral)
            self.add_module(f"fpn_output{level}", output)
            lateral_convs.insert(0, lateral)
            output_convs.insert(0, output)
        # Coarsest first, the order in which forward() goes. Plain lists, so that no parameter
        # has two names.
        self.lateral_convs = lateral_convs
        self.output_convs = output_convs

        self.top_block = top_block
        self.in_features = tuple(in_features)
        self.bottom_up = bottom_up
        self._fuse_type = fuse_type
        self._square_pad = square_pad
        self._size_divisibility = strides[-1]

        first, last = int(math.log2(strides[0])), int(math.log2(strides[-1]))
        if top_block is not None:
            last += top_block.num_levels
        self._out_feature_strides = {f"p{i}": 2**i for i in range(first, last + 1)}
        self._out_features = list(self._out_feature_strides)
        self._out_feature_channels = dict.fromkeys(self._out_features, out_channels)

    @property
    def size_divisibility(self):
        """The coarsest input stride, so that upsampled maps fit the next finer ones."""
        return self._size_divisibility

    @property
    def padding_constraints(self):
        """See `Backbone.padding_constraints`; `square_pad` is its "square_size"."""
        return {"square_size": self._square_pad}

    def forward(self, x):
        """Features of an image batch.

        Args:
            x: input of `bottom_up`, (N, 3, H, W).

        Returns:
            A dict "p{i}" -> (N, C, H / 2**i, W / 2**i), finest first.
        """
        bottom_up = self.bottom_up(x)
        finest_first = []
        coarser = None
        for name, lateral, output in zip(
            reversed(self.in_features), self.lateral_convs, self.output_convs, strict=True
        ):
            merged = lateral(bottom_up[name])
            if coarser is not None:
                merged = merged + F.interpolate(coarser, scale_factor=2.0, mode="nearest")
                if self._fuse_type == "avg":
                    merged = merged / 2
            finest_first.insert(0, output(merged))
            coarser = merged

        if self.top_block is not None:
            source = self.top_block.in_feature
            top_input = (
                bottom_up[source]
                if source in bottom_up
                else finest_first[self._out_features.index(source)]
            )
            finest_first.extend(self.top_block(top_input))
        return dict(zip(self._out_features, finest_first, strict=True))


def _fpn_conv(in_channels: int, out_channels: int, kernel: int, norm) -> Conv2d:
    return Conv2d(
        in_channels,
        out_channels,
        kernel_size=kernel,
        padding=kernel // 2,
        bias=norm == "",
        norm=get_norm(norm, out_channels),
    )


def _assert_strides_are_log2_contiguous(strides):
    """Each stride must be twice the one before."""
    for finer, coarser in zip(strides, strides[1:], strict=False):
        assert coarser == 2 * finer, f"stride {coarser} does not follow {finer}: need doubling"


class LastLevelMaxPool(nn.Module):
    """The extra level p6 of Faster R-CNN: every second cell of p5."""

    def __init__(self):
        super().__init__()
        self.num_levels = 1
        self.in_feature = "p5"

    def forward(self, x):
        """(N, C, H, W) -> [(N, C, H / 2, W / 2)]."""
        return [F.max_pool2d(x, kernel_size=1, stride=2, padding=0)]


class LastLevelP6P7(nn.Module):
    """The extra levels p6 and p7 of RetinaNet: strided convolutions on top of the backbone.

    Args:
        in_channels: of the input map.
        out_channels: C.
        in_feature: name of the input map.
    """

    def __init__(self, in_channels, out_channels, in_feature="res5"):
        super().__init__()
        self.num_levels = 2
        self.in_feature = in_feature
        self.p6 = nn.Conv2d(in_channels, out_channels, 3, 2, 1)
        self.p7 = nn.Conv2d(out_channels, out_channels, 3, 2, 1)
        for conv in (self.p6, self.p7):
            weight_init.c2_xavier_fill(conv)

    def forward(self, c5):
        """(N, Cin, H, W) -> [(N, C, H / 2, W / 2), (N, C, H / 4, W / 4)]."""
        p6 = self.p6(c5)
        return [p6, self.p7(F.relu(p6))]


def _fpn_from_config(cfg, bottom_up: Backbone, top_block: nn.Module) -> FPN:
    return FPN(
        bottom_up=bottom_up,
        in_features=cfg.MODEL.FPN.IN_FEATURES,
        out_channels=cfg.MODEL.FPN.OUT_CHANNELS,
        norm=cfg.MODEL.FPN.NORM,
        top_block=top_block,
        fuse_type=cfg.MODEL.FPN.FUSE_TYPE,
    )


@BACKBONE_REGISTRY.register()
def build_resnet_fpn_backbone(cfg, input_shape: ShapeSpec) -> FPN:
    """ResNet and FPN with p6 by pooling."""
    return _fpn_from_config(cfg, build_resnet_backbone(cfg, input_shape), LastLevelMaxPool())


@BACKBONE_REGISTRY.register()
def build_retinanet_resnet_fpn_backbone(cfg, input_shape: ShapeSpec) -> FPN:
    """ResNet and FPN with p6 and p7 by convolutions."""
    bottom_up = build_resnet_backbone(cfg, input_shape)
    top_block = LastLevelP6P7(bottom_up.output_shape()["res5"].channels, cfg.MODEL.FPN.OUT_CHANNELS)
    return _fpn_from_config(cfg, bottom_up, top_block)
