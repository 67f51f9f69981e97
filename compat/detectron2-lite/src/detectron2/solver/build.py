# SPDX-License-Identifier: Apache-2.0
"""Optimizer, parameter groups, gradient clipping and scheduler from the config."""

import logging
from collections.abc import Callable
from enum import Enum
from typing import Any

import torch
from detectron2.config import CfgNode
from fvcore.common.param_scheduler import (
    CosineParamScheduler,
    MultiStepParamScheduler,
    StepWithFixedGammaParamScheduler,
)
from torch import nn

from .lr_scheduler import LRMultiplier, LRScheduler, WarmupParamScheduler

_NORM_TYPES = (
    nn.BatchNorm1d,
    nn.BatchNorm2d,
    nn.BatchNorm3d,
    nn.SyncBatchNorm,
    nn.GroupNorm,
    nn.InstanceNorm1d,
    nn.InstanceNorm2d,
    nn.InstanceNorm3d,
    nn.LayerNorm,
    nn.LocalResponseNorm,
)


class GradientClipType(Enum):
    """Values of cfg.SOLVER.CLIP_GRADIENTS.CLIP_TYPE."""

    VALUE = "value"
    NORM = "norm"


def maybe_add_gradient_clipping(
    cfg: CfgNode, optimizer: type[torch.optim.Optimizer]
) -> type[torch.optim.Optimizer]:
    """Makes an optimizer clip gradients before each step if cfg.SOLVER.CLIP_GRADIENTS is enabled.

    Args:
        cfg: Full config.
        optimizer: Class of an optimizer, or an instance, which is changed in place.

    Returns:
        ``optimizer``, or a subclass of it that clips the gradient of each parameter.
    """
    settings = cfg.SOLVER.CLIP_GRADIENTS
    if not settings.ENABLED:
        return optimizer
    clip_value, norm_type = settings.CLIP_VALUE, settings.NORM_TYPE
    by_value = GradientClipType(settings.CLIP_TYPE) is GradientClipType.VALUE
    instance = optimizer if isinstance(optimizer, torch.optim.Optimizer) else None
    base = optimizer if instance is None else type(instance)

    def step(self, closure=None):
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                if by_value:
                    nn.utils.clip_grad_value_(parameter, clip_value)
                else:
                    nn.utils.clip_grad_norm_(parameter, clip_value, norm_type)
        return base.step(self, closure)

    clipping_class = type(base.__name__ + "WithGradientClip", (base,), {"step": step})
    if instance is None:
        return clipping_class
    instance.__class__ = clipping_class
    return instance


def build_optimizer(cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
    """Returns SGD with the settings of cfg.SOLVER."""
    params = get_default_optimizer_params(
        model,
        base_lr=cfg.SOLVER.BASE_LR,
        weight_decay_norm=cfg.SOLVER.WEIGHT_DECAY_NORM,
        bias_lr_factor=cfg.SOLVER.BIAS_LR_FACTOR,
        weight_decay_bias=cfg.SOLVER.WEIGHT_DECAY_BIAS,
    )
    sgd = maybe_add_gradient_clipping(cfg, torch.optim.SGD)
    return sgd(
        params,
        lr=cfg.SOLVER.BASE_LR,
        momentum=cfg.SOLVER.MOMENTUM,
        nesterov=cfg.SOLVER.NESTEROV,
        weight_decay=cfg.SOLVER.WEIGHT_DECAY,
        foreach=True,
    )


def get_default_optimizer_params(
    model: nn.Module,
    base_lr: float | None = None,
    weight_decay: float | None = None,
    weight_decay_norm: float | None = None,
    bias_lr_factor: float | None = 1.0,
    weight_decay_bias: float | None = None,
    lr_factor_func: Callable[[str], float] | None = None,
    overrides: dict[str, dict[str, float]] | None = None,
) -> list[dict[str, Any]]:
    """Returns the parameter groups of a model for an optimizer.

    Frozen parameters are excluded and shared parameters appear once, in the order of
    ``model.modules()``.

    Args:
        model: Model to optimize.
        base_lr: Learning rate of every group; by default that of the optimizer.
        weight_decay: Weight decay of every group; by default that of the optimizer.
        weight_decay_norm: Weight decay of the parameters of normalization layers.
        bias_lr_factor: Factor of the learning rate of parameters named ``bias``; needs ``base_lr``.
        weight_decay_bias: Weight decay of parameters named ``bias``.
        lr_factor_func: Function from the full name of a parameter to the factor of its learning
            rate; needs ``base_lr``.
        overrides: Dict from the last part of the name of a parameter to settings, which override
            all others.

    Returns:
        List of groups with ``params`` and their settings. Parameters with equal settings share a
        group.
    """
    overrides = dict(overrides or {})
    bias = {} if weight_decay_bias is None else {"weight_decay": weight_decay_bias}
    if bias_lr_factor not in (None, 1.0):
        if base_lr is None:
            raise ValueError(f"bias_lr_factor={bias_lr_factor} needs base_lr")
        bias["lr"] = base_lr * bias_lr_factor
    if bias:
        if "bias" in overrides:
            raise ValueError(
                f"'bias' has settings in overrides ({overrides['bias']}) and from bias_lr_factor "
                f"or weight_decay_bias ({bias}); use one of them"
            )
        overrides["bias"] = bias
    if lr_factor_func is not None and base_lr is None:
        raise ValueError("lr_factor_func needs base_lr")

    common = {"lr": base_lr, "weight_decay": weight_decay}
    common = {name: value for name, value in common.items() if value is not None}
    groups, seen = [], set()
    for module_name, module in model.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            if not parameter.requires_grad or parameter in seen:
                continue
            seen.add(parameter)
            settings = dict(common)
            if weight_decay_norm is not None and isinstance(module, _NORM_TYPES):
                settings["weight_decay"] = weight_decay_norm
            if lr_factor_func is not None:
                settings["lr"] *= lr_factor_func(f"{module_name}.{name}")
            settings.update(overrides.get(name, {}))
            groups.append({"params": [parameter], **settings})
    return reduce_param_groups(groups)


def _expand_param_groups(params: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Returns one group per parameter; the settings of later groups take precedence."""
    expanded: dict[Any, dict[str, Any]] = {}
    for group in params:
        assert "params" in group, f"a parameter group must have 'params', got {sorted(group)}"
        settings = {name: value for name, value in group.items() if name != "params"}
        for parameter in group["params"]:
            expanded.setdefault(parameter, {"params": [parameter]}).update(settings)
    return list(expanded.values())


def reduce_param_groups(params: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Merges parameter groups with equal settings, which makes fused optimizers faster."""
    reduced: dict[tuple, dict[str, Any]] = {}
    for group in _expand_param_groups(params):
        settings = {name: value for name, value in group.items() if name != "params"}
        merged = reduced.setdefault(tuple(settings.items()), {"params": [], **settings})
        merged["params"] += group["params"]
    return list(reduced.values())


def build_lr_scheduler(cfg: CfgNode, optimizer: torch.optim.Optimizer) -> LRScheduler:
    """Returns the scheduler named by cfg.SOLVER.LR_SCHEDULER_NAME, with warmup."""
    solver = cfg.SOLVER
    name = solver.LR_SCHEDULER_NAME
    if name == "WarmupMultiStepLR":
        steps = [step for step in solver.STEPS if step <= solver.MAX_ITER]
        if len(steps) != len(solver.STEPS):
            logging.getLogger(__name__).warning(
                f"SOLVER.STEPS={solver.STEPS} contains values larger than "
                f"SOLVER.MAX_ITER={solver.MAX_ITER}, which are ignored"
            )
        scheduler = MultiStepParamScheduler(
            values=[solver.GAMMA**k for k in range(len(steps) + 1)],
            milestones=steps,
            num_updates=solver.MAX_ITER,
        )
    elif name == "WarmupCosineLR":
        end_value = solver.BASE_LR_END / solver.BASE_LR
        assert 0.0 <= end_value <= 1.0, (
            f"SOLVER.BASE_LR_END={solver.BASE_LR_END} must be between 0 and "
            f"SOLVER.BASE_LR={solver.BASE_LR}"
        )
        scheduler = CosineParamScheduler(1, end_value)
    elif name == "WarmupStepWithFixedGammaLR":
        scheduler = StepWithFixedGammaParamScheduler(
            base_value=1.0,
            gamma=solver.GAMMA,
            num_decays=solver.NUM_DECAYS,
            num_updates=solver.MAX_ITER,
        )
    else:
        raise ValueError(
            f"Unknown LR scheduler: {name} (SOLVER.LR_SCHEDULER_NAME); available: "
            "WarmupMultiStepLR, WarmupCosineLR, WarmupStepWithFixedGammaLR"
        )
    multiplier = WarmupParamScheduler(
        scheduler,
        warmup_factor=solver.WARMUP_FACTOR,
        warmup_length=min(1.0, solver.WARMUP_ITERS / solver.MAX_ITER),
        warmup_method=solver.WARMUP_METHOD,
        rescale_interval=solver.RESCALE_INTERVAL,
    )
    return LRMultiplier(optimizer, multiplier=multiplier, max_iter=solver.MAX_ITER)
