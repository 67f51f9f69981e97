# SPDX-License-Identifier: Apache-2.0
"""Length, learning rate and optimizer of a teacher's training."""

import math
from collections.abc import Callable

import torch
from detectron2.config import CfgNode
from detectron2.engine import HookBase
from torch import nn

from psdiff.config import check_choice


def total_iterations(cfg: CfgNode, per_epoch: int) -> int:
    """Returns MAX_ITER if it is set, else EPOCHS times the iterations of an epoch."""
    teacher = cfg.MODEL.PSDIFF.TEACHER
    total = teacher.MAX_ITER or teacher.EPOCHS * per_epoch
    if total < (0 if teacher.NAME == "stripes" else 1):
        raise ValueError(
            f"MODEL.PSDIFF.TEACHER.EPOCHS is {teacher.EPOCHS} and MAX_ITER {teacher.MAX_ITER}; one "
            "of them must be at least 1."
        )
    return total


def rate_factor(cfg: CfgNode, per_epoch: int) -> Callable[[int], float]:
    """Returns a function that maps an iteration (from 0) to a factor on the learning rate."""
    teacher = cfg.MODEL.PSDIFF.TEACHER
    total = total_iterations(cfg, per_epoch)
    warmup = teacher.WARMUP_EPOCHS * per_epoch
    drops = [epoch * per_epoch for epoch in teacher.STEP_EPOCHS]
    check_choice("TEACHER.SCHEDULE", teacher.SCHEDULE, ("step", "cosine"))

    def factor(iteration: int) -> float:
        if teacher.SCHEDULE == "step":
            value = teacher.GAMMA ** sum(iteration >= drop for drop in drops)
        else:
            value = 0.5 * (1.0 + math.cos(math.pi * iteration / total))
        if iteration >= warmup:
            return value
        begin = teacher.WARMUP_FACTOR
        return (begin + (1.0 - begin) * (iteration / warmup)) * value

    return factor


class LearningRate(HookBase):
    """Sets the learning rate before each iteration; it has no state.

    Args:
        optimizer: Optimizer of the training.
        base: Base learning rate.
        factor: Function of :func:`rate_factor`.
    """

    def __init__(
        self, optimizer: torch.optim.Optimizer, base: float, factor: Callable[[int], float]
    ) -> None:
        self.optimizer, self.base, self.factor = optimizer, base, factor

    def before_step(self) -> None:
        """Sets and logs the learning rate."""
        rate = self.base * self.factor(self.trainer.iter)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.trainer.storage.put_scalar("lr", rate, smoothing_hint=False)


def build_teacher_optimizer(cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
    """Builds Adam, or SGD with momentum 0.9, for all trainable weights."""
    teacher = cfg.MODEL.PSDIFF.TEACHER
    weights = [p for p in model.parameters() if p.requires_grad]
    options = {"lr": teacher.BASE_LR, "weight_decay": teacher.WEIGHT_DECAY}
    check_choice("TEACHER.OPTIMIZER", teacher.OPTIMIZER, ("Adam", "SGD"))
    if teacher.OPTIMIZER == "Adam":
        return torch.optim.Adam(weights, **options)
    return torch.optim.SGD(weights, momentum=0.9, nesterov=True, **options)
