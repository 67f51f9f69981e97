# SPDX-License-Identifier: Apache-2.0
"""A ResNet of any width and depth, with and without FPN, for CPU demos and tests.

Detectron2's builder fixes the widths of ResNet-18/34 at 64 to 512 channels, which takes too long to
train on a CPU. This one combines the same public blocks at any width. Features are named ``res2``
.. ``res5`` (strides 4 .. 32) and ``p2`` .. ``p5`` as usual.
"""

from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, FPN, ResNet
from detectron2.modeling.backbone.resnet import BasicBlock, BasicStem


@BACKBONE_REGISTRY.register()
def build_slim_resnet_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> ResNet:
    """Builds a ResNet of basic blocks from ``cfg.MODEL.SLIM_RESNET``.

    Returns:
        Backbone with one output per entry of ``WIDTHS``: ``res2`` (stride 4), ``res3`` (8), ...

    Raises:
        ValueError: If the settings do not describe a network that can be trained from scratch.
    """
    slim = cfg.MODEL.SLIM_RESNET
    if len(slim.WIDTHS) != len(slim.BLOCKS):
        raise ValueError(
            f"MODEL.SLIM_RESNET.WIDTHS {list(slim.WIDTHS)} and BLOCKS {list(slim.BLOCKS)} must "
            "each have one entry per stage."
        )
    if any(a == b for a, b in zip(slim.WIDTHS, slim.WIDTHS[1:], strict=False)):
        # a basic block has a shortcut convolution only if the number of channels changes
        raise ValueError(f"MODEL.SLIM_RESNET.WIDTHS {list(slim.WIDTHS)}: neighbors must differ.")
    norm = slim.NORM
    if norm == "FrozenBN":
        raise ValueError(
            "The slim ResNet is trained from scratch, so MODEL.SLIM_RESNET.NORM cannot be "
            "'FrozenBN'; use 'BN', 'SyncBN' (several GPUs) or 'GN'."
        )
    stem = BasicStem(in_channels=input_shape.channels, out_channels=slim.STEM_WIDTH, norm=norm)
    stages, width_in = [], slim.STEM_WIDTH
    for index, (width, blocks) in enumerate(zip(slim.WIDTHS, slim.BLOCKS, strict=True)):
        first_stride = 1 if index == 0 else 2
        stages.append(
            ResNet.make_stage(
                BasicBlock,
                blocks,
                stride_per_block=[first_stride] + [1] * (blocks - 1),
                in_channels=width_in,
                out_channels=width,
                norm=norm,
            )
        )
        width_in = width
    return ResNet(stem, stages, out_features=[f"res{i + 2}" for i in range(len(stages))])


@BACKBONE_REGISTRY.register()
def build_slim_resnet_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> FPN:
    """Builds the slim ResNet with an FPN over ``cfg.MODEL.FPN.IN_FEATURES`` (empty: all stages)."""
    bottom_up = build_slim_resnet_backbone(cfg, input_shape)
    stages = list(bottom_up.output_shape())
    unknown = [name for name in cfg.MODEL.FPN.IN_FEATURES if name not in stages]
    if unknown:
        raise ValueError(
            f"MODEL.FPN.IN_FEATURES names {unknown}, but the slim ResNet of "
            f"MODEL.SLIM_RESNET.WIDTHS {list(cfg.MODEL.SLIM_RESNET.WIDTHS)} has {stages}."
        )
    return FPN(
        bottom_up=bottom_up,
        in_features=list(cfg.MODEL.FPN.IN_FEATURES) or stages,
        out_channels=cfg.MODEL.FPN.OUT_CHANNELS,
        norm=cfg.MODEL.FPN.NORM,
        fuse_type=cfg.MODEL.FPN.FUSE_TYPE,
    )
