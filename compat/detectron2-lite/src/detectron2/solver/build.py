# SPDX-License-Identifier: Apache-2.0
"""Optimizer, parameter groups, gradient clipping and schedule from the config."""

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


def _create_gradient_clipper(cfg: CfgNode) -> Callable[[torch.Tensor], Any]:
    """A function that clips the gradient of one parameter as cfg.SOLVER.CLIP_GRADIENTS says."""
    clip_value, norm_type = cfg.CLIP_VALUE, cfg.NORM_TYPE
    if GradientClipType(cfg.CLIP_TYPE) is GradientClipType.VALUE:
        return lambda parameter: nn.utils.clip_grad_value_(parameter, clip_value)
    return lambda parameter: nn.utils.clip_grad_norm_(parameter, clip_value, norm_type)


def _generate_optimizer_class_with_gradient_clipping(
    optimizer: type[torch.optim.Optimizer],
    *,
    per_param_clipper: Callable | None = None,
    global_clipper: Callable | None = None,
) -> type[torch.optim.Optimizer]:
    """A subclass of `optimizer` whose `step` clips first.

    Args:
        optimizer: the class to extend.
        per_param_clipper: called with each parameter that has a gradient.
        global_clipper: called once with the list of all parameters.
    """
    assert per_param_clipper is None or global_clipper is None, "Give one kind of clipper, not both"

    def step(self, closure=None):
        parameters = [p for group in self.param_groups for p in group["params"]]
        if per_param_clipper is not None:
            for parameter in parameters:
                if parameter.grad is not None:
                    per_param_clipper(parameter)
        else:
            global_clipper(parameters)
        return optimizer.step(self, closure)

    return type(optimizer.__name__ + "WithGradientClip", (optimizer,), {"step": step})


def maybe_add_gradient_clipping(
    cfg: CfgNode, optimizer: type[torch.optim.Optimizer]
) -> type[torch.optim.Optimizer]:
    """Let an optimizer clip gradients before each step if cfg.SOLVER.CLIP_GRADIENTS is enabled.

    Args:
        cfg: the whole config.
        optimizer: a class, or an instance, which is then changed in place.

    Returns:
        `optimizer`, or the class that extends it.
    """
    if not cfg.SOLVER.CLIP_GRADIENTS.ENABLED:
        return optimizer
    instance = optimizer if isinstance(optimizer, torch.optim.Optimizer) else None
    clipping_class = _generate_optimizer_class_with_gradient_clipping(
        optimizer if instance is None else type(instance),
        per_param_clipper=_create_gradient_clipper(cfg.SOLVER.CLIP_GRADIENTS),
    )
    if instance is None:
        return clipping_class
    instance.__class__ = clipping_class
    return instance


def build_optimizer(cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
    """SGD with the settings of cfg.SOLVER."""
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


def _bias_overrides(
    base_lr: float | None, bias_lr_factor: float | None, weight_decay_bias: float | None
) -> dict[str, float]:
    settings = {} if weight_decay_bias is None else {"weight_decay": weight_decay_bias}
    if bias_lr_factor in (None, 1.0):
        return settings
    if base_lr is None:
        raise ValueError(f"bias_lr_factor={bias_lr_factor} needs a base_lr to be multiplied with")
    return {"lr": base_lr * bias_lr_factor, **settings}


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
    """Parameter groups of a model for an optimizer.

    Frozen parameters are left out and shared ones appear once. The order of the parameters is that
    of `model.modules()`, the same for a training and its resumption.

    Args:
        model: the model.
        base_lr: learning rate of every group; the optimizer's when None.
        weight_decay: weight decay of every group; the optimizer's when None.
        weight_decay_norm: weight decay of normalization layers' own parameters.
        bias_lr_factor: factor on the learning rate of parameters named `bias`; needs `base_lr`.
        weight_decay_bias: weight decay of parameters named `bias`.
        lr_factor_func: full parameter name -> factor on its learning rate; needs `base_lr`.
        overrides: last part of a parameter's name -> settings, which win over the others.

    Returns:
        Groups with `params` and their settings; parameters of equal settings share a group.
    """
    overrides = dict(overrides or {})
    bias = _bias_overrides(base_lr, bias_lr_factor, weight_decay_bias)
    if bias:
        if "bias" in overrides:
            raise ValueError(
                f"'bias' is in overrides ({overrides['bias']}) and has settings from "
                f"bias_lr_factor or weight_decay_bias ({bias}): give one of the two"
            )
        overrides["bias"] = bias
    if lr_factor_func is not None and base_lr is None:
        raise ValueError("lr_factor_func gives factors: it needs a base_lr to be multiplied with")

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
    """One group a parameter, where later groups' settings win over earlier ones'."""
    expanded: dict[Any, dict[str, Any]] = {}
    for group in params:
        assert "params" in group, f"A parameter group without 'params': {sorted(group)}"
        settings = {name: value for name, value in group.items() if name != "params"}
        for parameter in group["params"]:
            expanded.setdefault(parameter, {"params": [parameter]}).update(settings)
    return list(expanded.values())


def reduce_param_groups(params: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Join groups of equal settings: fused optimizers run faster on few large groups."""
    reduced: dict[tuple, dict[str, Any]] = {}
    for group in _expand_param_groups(params):
        settings = {name: value for name, value in group.items() if name != "params"}
        joined = reduced.setdefault(tuple(settings.items()), {"params": [], **settings})
        joined["params"].extend(group["params"])
    return list(reduced.values())


def _multi_step(cfg: CfgNode) -> MultiStepParamScheduler:
    steps = [step for step in cfg.SOLVER.STEPS if step <= cfg.SOLVER.MAX_ITER]
    if len(steps) != len(cfg.SOLVER.STEPS):
        logging.getLogger(__name__).warning(
            f"The training ends at SOLVER.MAX_ITER={cfg.SOLVER.MAX_ITER}, before some of "
            f"SOLVER.STEPS={cfg.SOLVER.STEPS}; these steps have no effect"
        )
    return MultiStepParamScheduler(
        values=[cfg.SOLVER.GAMMA**k for k in range(len(steps) + 1)],
        milestones=steps,
        num_updates=cfg.SOLVER.MAX_ITER,
    )


def _cosine(cfg: CfgNode) -> CosineParamScheduler:
    end_value = cfg.SOLVER.BASE_LR_END / cfg.SOLVER.BASE_LR
    assert 0.0 <= end_value <= 1.0, (
        f"SOLVER.BASE_LR_END={cfg.SOLVER.BASE_LR_END} must lie between 0 and "
        f"SOLVER.BASE_LR={cfg.SOLVER.BASE_LR}"
    )
    return CosineParamScheduler(1, end_value)


def _fixed_gamma(cfg: CfgNode) -> StepWithFixedGammaParamScheduler:
    return StepWithFixedGammaParamScheduler(
        base_value=1.0,
        gamma=cfg.SOLVER.GAMMA,
        num_decays=cfg.SOLVER.NUM_DECAYS,
        num_updates=cfg.SOLVER.MAX_ITER,
    )


_SCHEDULES = {
    "WarmupMultiStepLR": _multi_step,
    "WarmupCosineLR": _cosine,
    "WarmupStepWithFixedGammaLR": _fixed_gamma,
}


def build_lr_scheduler(cfg: CfgNode, optimizer: torch.optim.Optimizer) -> LRScheduler:
    """The schedule that cfg.SOLVER.LR_SCHEDULER_NAME names, with the config's warm-up."""
    solver = cfg.SOLVER
    name = solver.LR_SCHEDULER_NAME
    if name not in _SCHEDULES:
        raise ValueError(
            f"Unknown LR scheduler: {name} (SOLVER.LR_SCHEDULER_NAME). Use one of "
            f"{', '.join(_SCHEDULES)}"
        )
    multiplier = WarmupParamScheduler(
        _SCHEDULES[name](cfg),
        warmup_factor=solver.WARMUP_FACTOR,
        warmup_length=min(1.0, solver.WARMUP_ITERS / solver.MAX_ITER),
        warmup_method=solver.WARMUP_METHOD,
        rescale_interval=solver.RESCALE_INTERVAL,
    )
    return LRMultiplier(optimizer, multiplier=multiplier, max_iter=solver.MAX_ITER)
