# SPDX-License-Identifier: Apache-2.0
"""A backbone that is partly frozen, and nothing to freeze: the warning where a training starts."""

import logging

import torch
from detectron2.config import CfgNode
from detectron2.layers import FrozenBatchNorm2d
from detectron2.modeling import ResNet
from torch import nn

logger = logging.getLogger(__name__)


def warn_of_frozen_random_weights(cfg: CfgNode, model: nn.Module) -> None:
    """Logs one line if a training is about to start with random weights that cannot learn.

    Detectron2's defaults freeze the first stages of a ResNet and have no statistics in its norms
    computed; both mean pre-trained weights, which only MODEL.WEIGHTS brings. Other backbones with
    frozen weights of their own, such as a diffusion model, are passed over.

    Args:
        model: with the weights that the training starts from; looked at is its ``backbone``.
    """
    backbone = getattr(model, "backbone", None)
    if cfg.MODEL.WEIGHTS or not isinstance(backbone, nn.Module):
        return
    faults, remedies = [], []
    frozen = {
        id(p): p.numel()
        for module in backbone.modules()
        if isinstance(module, ResNet)
        for p in module.parameters()
        if not p.requires_grad
    }
    if frozen and cfg.MODEL.BACKBONE.FREEZE_AT > 0:
        faults.append(
            f"MODEL.BACKBONE.FREEZE_AT {cfg.MODEL.BACKBONE.FREEZE_AT} freezes "
            f"{sum(frozen.values()):,} of its parameters"
        )
        remedies.append("MODEL.BACKBONE.FREEZE_AT 0")
    norms = [m for m in backbone.modules() if isinstance(m, FrozenBatchNorm2d)]
    idle = sum(_is_untouched(norm) for norm in norms)
    # freezing turns other norms into FrozenBN, too; without FREEZE_AT they are none
    if idle and cfg.MODEL.RESNETS.NORM == "FrozenBN":
        faults.append(f"{idle} layers of MODEL.RESNETS.NORM FrozenBN normalize nothing")
        remedies.append("MODEL.RESNETS.NORM BN (SyncBN on several GPUs)")
    if faults:
        logger.warning(
            "MODEL.WEIGHTS is empty, so the backbone starts from random weights, but "
            f"{' and '.join(faults)}. Set MODEL.WEIGHTS to pre-trained weights, e.g. "
            "detectron2://ImageNetPretrained/torchvision/R-50.pkl, or train from scratch with "
            f"{' and '.join(remedies)}."
        )


def _is_untouched(norm: FrozenBatchNorm2d) -> bool:
    """Whether the layer is as it was made: mean 0, variance 1 (or 1 - eps), nothing learnt."""
    expected = ((norm.weight, 1), (norm.bias, 0), (norm.running_mean, 0), (norm.running_var, 1))
    return all(torch.allclose(x, torch.full_like(x, y), atol=1e-4) for x, y in expected)
