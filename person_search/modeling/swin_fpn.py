# SPDX-License-Identifier: Apache-2.0
"""Swin Transformer with FPN, built from ``cfg.MODEL.SWIN``.

Detectron2 has the network but no builder for YAML configs. The stages are named ``p0`` .. ``p3``
(strides 4 .. 32), as the outputs of the network; the FPN over them returns ``p2`` .. ``p5``.
"""

from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, FPN

from person_search.modeling.swin_weights import PretrainedSwin


@BACKBONE_REGISTRY.register()
def build_swin_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> FPN:
    """Builds the Swin Transformer with an FPN over ``cfg.MODEL.FPN.IN_FEATURES``.

    Images may have any size; the model pads them to multiples of the FPN's ``size_divisibility``.

    Raises:
        ValueError: If the settings do not describe a Swin Transformer.
    """
    swin = cfg.MODEL.SWIN
    if len(swin.DEPTHS) != len(swin.HEADS):
        raise ValueError(
            f"MODEL.SWIN.DEPTHS {list(swin.DEPTHS)} and HEADS {list(swin.HEADS)} must each have "
            "one entry per stage."
        )
    widths = [swin.EMBED_DIM * 2**i for i in range(len(swin.HEADS))]
    if any(width % heads for width, heads in zip(widths, swin.HEADS, strict=True)):
        raise ValueError(
            f"MODEL.SWIN.HEADS is {list(swin.HEADS)}; each entry must divide the channels of its "
            f"stage, {widths} (EMBED_DIM, doubled from stage to stage)."
        )
    if not 0 <= swin.DROP_PATH < 1:
        raise ValueError(f"MODEL.SWIN.DROP_PATH is {swin.DROP_PATH}; it must be in [0, 1).")
    if swin.SEMANTIC_WEIGHT != -1 and not 0 <= swin.SEMANTIC_WEIGHT <= 1:
        raise ValueError(
            f"MODEL.SWIN.SEMANTIC_WEIGHT is {swin.SEMANTIC_WEIGHT}; it must be in [0, 1], or -1."
        )
    stages = [f"p{i}" for i in range(len(swin.DEPTHS))]
    in_features = list(cfg.MODEL.FPN.IN_FEATURES) or stages
    unknown = [name for name in in_features if name not in stages]
    if unknown:
        raise ValueError(
            f"MODEL.FPN.IN_FEATURES names {unknown}, but the Swin Transformer of "
            f"MODEL.SWIN.DEPTHS {list(swin.DEPTHS)} has {stages}."
        )
    bottom_up = PretrainedSwin(
        in_chans=input_shape.channels,
        embed_dim=swin.EMBED_DIM,
        depths=tuple(swin.DEPTHS),
        num_heads=tuple(swin.HEADS),
        window_size=swin.WINDOW_SIZE,
        drop_path_rate=swin.DROP_PATH,
        # A norm of a stage that is not an output would be a parameter without gradient.
        out_indices=tuple(stages.index(name) for name in in_features),
        frozen_stages=swin.FROZEN_STAGES,
        use_checkpoint=swin.ACTIVATION_CHECKPOINT,
        semantic_weight=swin.SEMANTIC_WEIGHT,
    )
    return FPN(
        bottom_up=bottom_up,
        in_features=in_features,
        out_channels=cfg.MODEL.FPN.OUT_CHANNELS,
        norm=cfg.MODEL.FPN.NORM,
        fuse_type=cfg.MODEL.FPN.FUSE_TYPE,
    )
