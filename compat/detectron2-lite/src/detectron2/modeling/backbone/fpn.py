# SPDX-License-Identifier: Apache-2.0
"""Feature Pyramid Network.

Shape shorthand: N images, C output channels.
The output "p{i}" has stride 2**i; its convolutions are fpn_lateral{i} and fpn_output{i}.
"""

import math

import fvcore.nn.weight_init as weight_init
from detectron2._lite import absent
from detectron2.layers import Conv2d, ShapeSpec, get_norm
from torch import nn
from torch.nn import functional as F

from .backbone import Backbone
from .build import BACKBONE_REGISTRY
from .resnet import build_resnet_backbone

__getattr__ = absent(__name__, "LastLevelP6P7", "build_retinanet_resnet_fpn_backbone")


class FPN(Backbone):
    """Feature Pyramid Network (Lin et al., CVPR 2017).

    Args:
        bottom_up: Backbone of the input features.
        in_features: Names of the input features, finest first, with contiguous strides.
        out_channels: Number of channels C of every output.
        norm: Normalization after the convolutions; "" for none, then they have a bias.
        top_block: Module with attributes ``num_levels`` and ``in_feature``. It maps the feature
            with this name, of ``bottom_up`` or else of the FPN, to ``num_levels`` coarser features.
        fuse_type: "sum" or "avg" of the lateral and the upsampled feature.
        square_pad: Side of the square to which images are padded; 0 for no square.
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
        for finer, coarser in zip(strides, strides[1:], strict=False):
            assert coarser == 2 * finer, f"strides {finer} and {coarser} are not log2 contiguous"

        def conv(in_channels: int, kernel: int) -> Conv2d:
            return Conv2d(
                in_channels,
                out_channels,
                kernel_size=kernel,
                padding=kernel // 2,
                bias=norm == "",
                norm=get_norm(norm, out_channels),
            )

        lateral_convs, output_convs = [], []
        for shape in shapes:
            # The order of the random draws must be that of Detectron2.
            lateral = conv(shape.channels, 1)
            output = conv(out_channels, 3)
            weight_init.c2_xavier_fill(lateral)
            weight_init.c2_xavier_fill(output)
            level = int(math.log2(shape.stride))
            self.add_module(f"fpn_lateral{level}", lateral)
            self.add_module(f"fpn_output{level}", output)
            lateral_convs.insert(0, lateral)
            output_convs.insert(0, output)
        # coarsest first; plain lists, so that no parameter has two names
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
        """The coarsest input stride."""
        return self._size_divisibility

    @property
    def padding_constraints(self):
        """See ``Backbone.padding_constraints``."""
        return {"square_size": self._square_pad}

    def forward(self, x):
        """Computes the features of an image batch.

        Args:
            x: (N, 3, H, W) images.

        Returns:
            Dict from "p{i}" to (N, C, H / 2**i, W / 2**i) features, finest first.
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


class LastLevelMaxPool(nn.Module):
    """The extra level p6 of Faster R-CNN, downsampled from p5."""

    def __init__(self):
        super().__init__()
        self.num_levels = 1
        self.in_feature = "p5"

    def forward(self, x):
        """Maps (N, C, H, W) to [(N, C, H / 2, W / 2)]."""
        return [F.max_pool2d(x, kernel_size=1, stride=2, padding=0)]


@BACKBONE_REGISTRY.register()
def build_resnet_fpn_backbone(cfg, input_shape: ShapeSpec) -> FPN:
    """Returns a ResNet with FPN and the extra level p6."""
    return FPN(
        bottom_up=build_resnet_backbone(cfg, input_shape),
        in_features=cfg.MODEL.FPN.IN_FEATURES,
        out_channels=cfg.MODEL.FPN.OUT_CHANNELS,
        norm=cfg.MODEL.FPN.NORM,
        top_block=LastLevelMaxPool(),
        fuse_type=cfg.MODEL.FPN.FUSE_TYPE,
    )
