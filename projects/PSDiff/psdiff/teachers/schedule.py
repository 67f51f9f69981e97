# SPDX-License-Identifier: Apache-2.0
"""Length of a teacher's training and its learning rate, as a pure function of the iteration."""

import math
from collections.abc import Callable

import torch
from detectron2.config import CfgNode
from detectron2.engine import HookBase
from torch import nn


def total_iterations(cfg: CfgNode, per_epoch: int) -> int:
    """MAX_ITER if it is given, else EPOCHS times the iterations of an epoch."""
    teacher = cfg.MODEL.PSDIFF.TEACHER
    total = teacher.MAX_ITER or teacher.EPOCHS * per_epoch
    if total < 1:
        raise ValueError(
            f"MODEL.PSDIFF.TEACHER.EPOCHS is {teacher.EPOCHS} and MAX_ITER {teacher.MAX_ITER}; one "
            "of them must be at least 1."
        )
    return total


def rate_factor(cfg: CfgNode, per_epoch: int) -> Callable[[int], float]:
    """Returns what the base learning rate is multiplied with at an iteration (from 0)."""
    teacher = cfg.MODEL.PSDIFF.TEACHER
    total = total_iterations(cfg, per_epoch)
    warmup = teacher.WARMUP_EPOCHS * per_epoch
    drops = [epoch * per_epoch for epoch in teacher.STEP_EPOCHS]

    def step(iteration: int) -> float:
        return teacher.GAMMA ** sum(iteration >= drop for drop in drops)

    def cosine(iteration: int) -> float:
        return 0.5 * (1.0 + math.cos(math.pi * iteration / total))

    shapes = {"step": step, "cosine": cosine}
    if teacher.SCHEDULE not in shapes:
        raise ValueError(
            f"MODEL.PSDIFF.TEACHER.SCHEDULE is '{teacher.SCHEDULE}'; allowed: {', '.join(shapes)}."
        )

    def factor(iteration: int) -> float:
        if iteration >= warmup:
            return shapes[teacher.SCHEDULE](iteration)
        share = iteration / warmup
        begin = teacher.WARMUP_FACTOR
        return (begin + (1.0 - begin) * share) * shapes[teacher.SCHEDULE](iteration)

    return factor


class LearningRate(HookBase):
    """Sets the learning rate before each iteration; it has no state to be resumed."""

    def __init__(
        self, optimizer: torch.optim.Optimizer, base: float, factor: Callable[[int], float]
    ) -> None:
        self.optimizer, self.base, self.factor = optimizer, base, factor

    def before_step(self) -> None:
        rate = self.base * self.factor(self.trainer.iter)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.trainer.storage.put_scalar("lr", rate, smoothing_hint=False)


def build_teacher_optimizer(cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
    """Adam or SGD with momentum 0.9 over all weights that are trained."""
    teacher = cfg.MODEL.PSDIFF.TEACHER
    weights = [p for p in model.parameters() if p.requires_grad]
    options = {"lr": teacher.BASE_LR, "weight_decay": teacher.WEIGHT_DECAY}
    if teacher.OPTIMIZER == "Adam":
        return torch.optim.Adam(weights, **options)
    if teacher.OPTIMIZER == "SGD":
        return torch.optim.SGD(weights, momentum=0.9, nesterov=True, **options)
    raise ValueError(
        f"MODEL.PSDIFF.TEACHER.OPTIMIZER is '{teacher.OPTIMIZER}'; allowed: 'Adam', 'SGD'."
    )
