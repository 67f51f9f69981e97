# SPDX-License-Identifier: Apache-2.0
"""ResNet with the variants of Detectron2: depths 18 to 152, ResNeXt groups, dilated res5.

Shape shorthand: N images, C channels, H x W cells.
"""

import fvcore.nn.weight_init as weight_init
import torch
from detectron2._lite import NotInLiteError, absence_message
from detectron2.layers import CNNBlockBase, Conv2d, ShapeSpec, get_norm
from torch import nn
from torch.nn import functional as F

from .backbone import Backbone
from .build import BACKBONE_REGISTRY

ResNetBlockBase = CNNBlockBase
"""Alias of ``CNNBlockBase``."""

_BLOCKS_PER_STAGE = {
    18: [2, 2, 2, 2],
    34: [3, 4, 6, 3],
    50: [3, 4, 6, 3],
    101: [3, 4, 23, 3],
    152: [3, 8, 36, 3],
}


def _conv(in_channels: int, out_channels: int, kernel: int, norm, **kwargs) -> Conv2d:
    """Returns a convolution without bias, followed by a normalization."""
    kwargs.setdefault("padding", kernel // 2)
    return Conv2d(
        in_channels,
        out_channels,
        kernel_size=kernel,
        bias=False,
        norm=get_norm(norm, out_channels),
        **kwargs,
    )


def _projection(in_channels: int, out_channels: int, stride: int, norm) -> Conv2d | None:
    """Returns the 1x1 convolution of the shortcut; None for an identity."""
    if in_channels == out_channels:
        return None
    return _conv(in_channels, out_channels, 1, norm, stride=stride)


def _init_convs(*convs: Conv2d | None) -> None:
    for conv in convs:
        if conv is not None:
            weight_init.c2_msra_fill(conv)


class BasicBlock(CNNBlockBase):
    """Two 3x3 convolutions and a shortcut (ResNet-18 and 34).

    Args:
        in_channels: Number of input channels.
        out_channels: Number of output channels.
        stride: Stride of the first convolution.
        norm: Normalization; see ``get_norm``.
    """

    def __init__(self, in_channels, out_channels, *, stride=1, norm="BN"):
        super().__init__(in_channels, out_channels, stride)
        # The order of the random draws must be that of Detectron2.
        self.shortcut = _projection(in_channels, out_channels, stride, norm)
        self.conv1 = _conv(in_channels, out_channels, 3, norm, stride=stride)
        self.conv2 = _conv(out_channels, out_channels, 3, norm)
        _init_convs(self.conv1, self.conv2, self.shortcut)

    def forward(self, x):
        """Maps (N, Cin, H, W) to (N, Cout, H / stride, W / stride)."""
        out = self.conv2(F.relu_(self.conv1(x)))
        out += self.shortcut(x) if self.shortcut is not None else x
        return F.relu_(out)


class BottleneckBlock(CNNBlockBase):
    """1x1, 3x3, 1x1 convolutions and a shortcut (ResNet-50, 101, 152 and ResNeXt).

    Args:
        in_channels: Number of input channels.
        out_channels: Number of output channels.
        bottleneck_channels: Number of channels of the 3x3 convolution.
        stride: Stride of the block.
        num_groups: Number of groups of the 3x3 convolution.
        norm: Normalization; see ``get_norm``.
        stride_in_1x1: Whether the first 1x1 convolution has the stride, as in the MSRA weights,
            instead of the 3x3 convolution, as in torchvision's weights.
        dilation: Dilation of the 3x3 convolution.
    """

    def __init__(
        self,
        in_channels,
        out_channels,
        *,
        bottleneck_channels,
        stride=1,
        num_groups=1,
        norm="BN",
        stride_in_1x1=False,
        dilation=1,
    ):
        super().__init__(in_channels, out_channels, stride)
        width = bottleneck_channels
        self.shortcut = _projection(in_channels, out_channels, stride, norm)
        self.conv1 = _conv(in_channels, width, 1, norm, stride=stride if stride_in_1x1 else 1)
        self.conv2 = _conv(
            width,
            width,
            3,
            norm,
            stride=1 if stride_in_1x1 else stride,
            padding=dilation,
            groups=num_groups,
            dilation=dilation,
        )
        self.conv3 = _conv(width, out_channels, 1, norm)
        _init_convs(self.conv1, self.conv2, self.conv3, self.shortcut)

    def forward(self, x):
        """Maps (N, Cin, H, W) to (N, Cout, H / stride, W / stride)."""
        out = F.relu_(self.conv1(x))
        out = F.relu_(self.conv2(out))
        out = self.conv3(out)
        out += self.shortcut(x) if self.shortcut is not None else x
        return F.relu_(out)


class BasicStem(CNNBlockBase):
    """The stem: a 7x7 convolution and a 3x3 max pooling, each with a stride of 2.

    Args:
        in_channels: Number of channels of the image.
        out_channels: Number of output channels.
        norm: Normalization; see ``get_norm``.
    """

    def __init__(self, in_channels=3, out_channels=64, norm="BN"):
        super().__init__(in_channels, out_channels, 4)
        self.in_channels = in_channels
        self.conv1 = _conv(in_channels, out_channels, 7, norm, stride=2)
        _init_convs(self.conv1)

    def forward(self, x):
        """Maps (N, Cin, H, W) to (N, Cout, H / 4, W / 4)."""
        return F.max_pool2d(F.relu_(self.conv1(x)), kernel_size=3, stride=2, padding=1)


class ResNet(Backbone):
    """ResNet with a stem, up to four stages res2 to res5, and an optional classifier.

    Args:
        stem: Stem.
        stages: List of blocks of each stage.
        num_classes: Number of classes of the classifier, the output "linear"; None for none.
        out_features: Names of the outputs: "stem", "res2", ..., "res5", "linear"; by default the
            last one. Stages after the last output are removed.
        freeze_at: See ``freeze``.
    """

    def __init__(self, stem, stages, num_classes=None, out_features=None, freeze_at=0):
        super().__init__()
        self.stem = stem
        self.num_classes = num_classes
        self._out_feature_strides = {"stem": stem.stride}
        self._out_feature_channels = {"stem": stem.out_channels}
        if out_features is not None:
            stages = stages[: max(_stage_number(name) for name in out_features)]
        assert len(stages) > 0, len(stages)

        stride = stem.stride
        names, modules = [], []
        for number, blocks in enumerate(stages, start=2):
            assert len(blocks) > 0, len(blocks)
            for block in blocks:
                assert isinstance(block, CNNBlockBase), f"{type(block)} is not a CNNBlockBase"
            name = f"res{number}"
            self.add_module(name, nn.Sequential(*blocks))
            names.append(name)
            modules.append(getattr(self, name))
            for block in blocks:
                stride *= block.stride
            self._out_feature_strides[name] = stride
            self._out_feature_channels[name] = blocks[-1].out_channels
        self.stage_names = tuple(names)
        self.stages = modules

        last = names[-1]
        if num_classes is not None:
            self.avgpool = nn.AdaptiveAvgPool2d((1, 1))
            self.linear = nn.Linear(stages[-1][-1].out_channels, num_classes)
            # Goyal et al., "Accurate, Large Minibatch SGD", Sec. 5.1
            nn.init.normal_(self.linear.weight, std=0.01)
            last = "linear"

        self._out_features: list[str] = [last] if out_features is None else list(out_features)
        assert len(self._out_features)
        children = [name for name, _ in self.named_children()]
        for name in self._out_features:
            assert name in children, f"unknown feature {name!r}; available: {children}"
        self.freeze(freeze_at)

    def forward(self, x):
        """Computes the features of an image batch.

        Args:
            x: (N, C, H, W) images.

        Returns:
            Dict with the ``out_features``; "linear" is (N, num_classes).
        """
        assert x.dim() == 4, f"images must be (N, C, H, W), got {x.shape}"
        outputs: dict[str, torch.Tensor] = {}
        # stem, stages, and optionally avgpool and linear
        for name, child in self.named_children():
            x = child(torch.flatten(x, 1) if name == "linear" else x)
            if name in self._out_features:
                outputs[name] = x
        return outputs

    def freeze(self, freeze_at=0):
        """Freezes the first stages.

        Args:
            freeze_at: Number of frozen stages: 1 for the stem, 2 for the stem and res2, ...

        Returns:
            The network itself.
        """
        if freeze_at >= 1:
            self.stem.freeze()
        for number, stage in enumerate(self.stages, start=2):
            if freeze_at >= number:
                for block in stage:
                    block.freeze()
        return self

    @staticmethod
    def make_stage(block_class, num_blocks, *, in_channels, out_channels, **kwargs):
        """Builds the blocks of one stage.

        Args:
            block_class: Subclass of ``CNNBlockBase``.
            num_blocks: Number of blocks.
            in_channels: Number of input channels of the first block.
            out_channels: Number of output channels of every block.
            **kwargs: Further arguments of ``block_class``. ``NAME_per_block`` is a list of the
                values of ``NAME`` for the blocks.

        Returns:
            List of blocks.
        """
        blocks = []
        for index in range(num_blocks):
            block_kwargs = {}
            for key, value in kwargs.items():
                if key.endswith("_per_block"):
                    assert len(value) == num_blocks, (
                        f"{key} has {len(value)} values for {num_blocks} blocks"
                    )
                    name = key.removesuffix("_per_block")
                    assert name not in kwargs, f"{name} and {key} are mutually exclusive"
                    block_kwargs[name] = value[index]
                else:
                    block_kwargs[key] = value
            blocks.append(
                block_class(
                    in_channels=in_channels if index == 0 else out_channels,
                    out_channels=out_channels,
                    **block_kwargs,
                )
            )
        return blocks

    @staticmethod
    def make_default_stages(depth, block_class=None, **kwargs):
        """Builds the four stages of a standard ResNet.

        Args:
            depth: 18, 34, 50, 101 or 152.
            block_class: Class of the blocks, by default ``BasicBlock`` for 18 and 34, otherwise
                ``BottleneckBlock``.
            **kwargs: Further arguments of ``make_stage``, except channels and stride.

        Returns:
            List of blocks of each stage.
        """
        shallow = depth < 50
        if block_class is None:
            block_class = BasicBlock if shallow else BottleneckBlock
        in_channels = [64, 64, 128, 256] if shallow else [64, 256, 512, 1024]
        out_channels = [64, 128, 256, 512] if shallow else [256, 512, 1024, 2048]
        stages = []
        for index, num_blocks in enumerate(_BLOCKS_PER_STAGE[depth]):
            stage_kwargs = dict(kwargs)
            if block_class is BottleneckBlock:
                stage_kwargs["bottleneck_channels"] = out_channels[index] // 4
            first_stride = 1 if index == 0 else 2
            stages.append(
                ResNet.make_stage(
                    block_class=block_class,
                    num_blocks=num_blocks,
                    stride_per_block=[first_stride] + [1] * (num_blocks - 1),
                    in_channels=in_channels[index],
                    out_channels=out_channels[index],
                    **stage_kwargs,
                )
            )
        return stages


def _stage_number(feature: str) -> int:
    """Returns the number of stages for a feature: 1 for res2 to 4 for res5, otherwise 0."""
    return {"res2": 1, "res3": 2, "res4": 3, "res5": 4}.get(feature, 0)


def make_stage(*args, **kwargs):
    """Alias of ``ResNet.make_stage``."""
    return ResNet.make_stage(*args, **kwargs)


@BACKBONE_REGISTRY.register()
def build_resnet_backbone(cfg, input_shape: ShapeSpec) -> ResNet:
    """Builds the ResNet of cfg.MODEL.RESNETS, frozen up to cfg.MODEL.BACKBONE.FREEZE_AT."""
    resnets = cfg.MODEL.RESNETS
    if resnets.DEPTH not in _BLOCKS_PER_STAGE:
        raise ValueError(
            f"cfg.MODEL.RESNETS.DEPTH is {resnets.DEPTH}; available: {sorted(_BLOCKS_PER_STAGE)}"
        )
    if any(resnets.DEFORM_ON_PER_STAGE):
        raise NotInLiteError(
            absence_message("cfg.MODEL.RESNETS.DEFORM_ON_PER_STAGE (deformable convolution)")
        )
    assert resnets.RES5_DILATION in {1, 2}, (
        f"cfg.MODEL.RESNETS.RES5_DILATION must be 1 or 2, got {resnets.RES5_DILATION}"
    )
    if resnets.DEPTH in (18, 34):
        assert resnets.RES2_OUT_CHANNELS == 64, (
            "ResNet-18 and 34 need cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 64"
        )
        assert resnets.RES5_DILATION == 1, "ResNet-18 and 34 need RES5_DILATION = 1"
        assert resnets.NUM_GROUPS == 1, "ResNet-18 and 34 need NUM_GROUPS = 1"
    stem = BasicStem(input_shape.channels, resnets.STEM_OUT_CHANNELS, norm=resnets.NORM)

    bottleneck = resnets.DEPTH >= 50
    in_channels, out_channels = resnets.STEM_OUT_CHANNELS, resnets.RES2_OUT_CHANNELS
    width = resnets.NUM_GROUPS * resnets.WIDTH_PER_GROUP
    stages = []
    # All four stages, although ResNet removes those after the last output: the modules after the
    # backbone then draw the same random weights as in Detectron2.
    for index, num_blocks in enumerate(_BLOCKS_PER_STAGE[resnets.DEPTH]):
        dilation = resnets.RES5_DILATION if index == 3 else 1
        # a dilated res5 has the resolution of res4
        first_stride = 1 if index == 0 or dilation == 2 else 2
        kwargs = {"norm": resnets.NORM}
        if bottleneck:
            kwargs |= {
                "bottleneck_channels": width,
                "num_groups": resnets.NUM_GROUPS,
                "stride_in_1x1": resnets.STRIDE_IN_1X1,
                "dilation": dilation,
            }
        stages.append(
            ResNet.make_stage(
                BottleneckBlock if bottleneck else BasicBlock,
                num_blocks,
                stride_per_block=[first_stride] + [1] * (num_blocks - 1),
                in_channels=in_channels,
                out_channels=out_channels,
                **kwargs,
            )
        )
        in_channels, out_channels, width = out_channels, out_channels * 2, width * 2
    return ResNet(
        stem, stages, out_features=resnets.OUT_FEATURES, freeze_at=cfg.MODEL.BACKBONE.FREEZE_AT
    )
