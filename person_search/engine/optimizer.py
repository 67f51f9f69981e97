# SPDX-License-Identifier: Apache-2.0
"""Builds SGD or (fused) AdamW, with per-parameter or full-model gradient clipping."""

from functools import partial
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.solver import get_default_optimizer_params
from detectron2.solver.build import maybe_add_gradient_clipping
from torch import nn

OPTIMIZERS = ("SGD", "AdamW")
CLIP_TYPES = ("value", "norm", "full_model")
FUSED_DEVICES = {"cpu", "cuda"}
"""Devices on which PyTorch updates all parameters in one kernel."""


def build_optimizer(cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
    """Builds the optimizer over the parameters that require a gradient.

    ``SOLVER.CLIP_GRADIENTS.CLIP_TYPE`` has one type more than in Detectron2: ``full_model`` scales
    all gradients by one factor so that their joint norm is at most CLIP_VALUE ("norm" clips each
    parameter separately). With AMP, gradients are unscaled before they are clipped.

    Raises:
        ValueError: If the optimizer or clip type is unknown, or no parameter requires a gradient.
    """
    solver = cfg.SOLVER
    if solver.OPTIMIZER not in OPTIMIZERS:
        raise ValueError(f"SOLVER.OPTIMIZER is {solver.OPTIMIZER!r}; known: {OPTIMIZERS}.")
    clip = solver.CLIP_GRADIENTS
    if clip.ENABLED and clip.CLIP_TYPE not in CLIP_TYPES:
        raise ValueError(
            f"SOLVER.CLIP_GRADIENTS.CLIP_TYPE is {clip.CLIP_TYPE!r}; known: {CLIP_TYPES}."
        )
    params = get_default_optimizer_params(
        model,
        base_lr=solver.BASE_LR,
        weight_decay=solver.WEIGHT_DECAY,
        weight_decay_norm=solver.WEIGHT_DECAY_NORM,
        bias_lr_factor=solver.BIAS_LR_FACTOR,
        weight_decay_bias=solver.WEIGHT_DECAY_BIAS,
    )
    if not params:
        raise ValueError("No parameter of the model requires a gradient: nothing to train.")
    if solver.OPTIMIZER == "SGD":
        optimizer = torch.optim.SGD(
            params,
            lr=solver.BASE_LR,
            momentum=solver.MOMENTUM,
            nesterov=solver.NESTEROV,
            weight_decay=solver.WEIGHT_DECAY,
        )
    else:
        devices = {p.device.type for group in params for p in group["params"]}
        fused = True if devices <= FUSED_DEVICES else None  # None: the fastest of the others
        optimizer = torch.optim.AdamW(
            params, lr=solver.BASE_LR, weight_decay=solver.WEIGHT_DECAY, fused=fused
        )
        # a checkpoint may be of another device, or from before
        optimizer.register_load_state_dict_pre_hook(partial(_set_fused, fused))
    if clip.ENABLED and clip.CLIP_TYPE == "full_model":
        add_full_model_clipping(optimizer, clip.CLIP_VALUE, clip.NORM_TYPE)
        return optimizer
    return maybe_add_gradient_clipping(cfg, optimizer)


def _set_fused(
    fused: bool | None, optimizer: torch.optim.Optimizer, state_dict: dict[str, Any]
) -> dict[str, Any]:
    """Returns the state of an optimizer for one that is fused, or is not."""
    groups = [{**group, "fused": fused} for group in state_dict["param_groups"]]
    return {**state_dict, "param_groups": groups}


def add_full_model_clipping(
    optimizer: torch.optim.Optimizer, max_norm: float, norm_type: float = 2.0
) -> None:
    """Makes each ``optimizer.step()`` limit the joint norm of all gradients first.

    Args:
        optimizer: Optimizer, changed in place.
        max_norm: Largest joint norm.
        norm_type: Order of the norm.
    """

    def clip(optimizer: torch.optim.Optimizer, args: tuple, kwargs: dict) -> None:
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        nn.utils.clip_grad_norm_(parameters, max_norm, norm_type)

    optimizer.register_step_pre_hook(clip)
