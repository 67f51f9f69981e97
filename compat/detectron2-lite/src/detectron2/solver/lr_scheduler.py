# SPDX-License-Identifier: Apache-2.0
"""Learning rate schedules: fvcore's parameter schedulers applied to an optimizer, with warm-up."""

import logging
import math
from bisect import bisect_right

import torch
from fvcore.common.param_scheduler import (
    CompositeParamScheduler,
    ConstantParamScheduler,
    LinearParamScheduler,
    ParamScheduler,
)
from torch.optim.lr_scheduler import LRScheduler

__all__ = [
    "LRMultiplier",
    "LRScheduler",
    "WarmupCosineLR",
    "WarmupMultiStepLR",
    "WarmupParamScheduler",
]

logger = logging.getLogger(__name__)


def _check_warmup_method(method: str) -> None:
    if method not in ("linear", "constant"):
        raise ValueError(f"Unknown warmup method: {method}. Use linear or constant")


class WarmupParamScheduler(CompositeParamScheduler):
    """Puts a warm-up before another parameter scheduler."""

    def __init__(
        self,
        scheduler: ParamScheduler,
        warmup_factor: float,
        warmup_length: float,
        warmup_method: str = "linear",
        rescale_interval: bool = False,
    ):
        """
        Args:
            scheduler: what follows the warm-up.
            warmup_factor: first value, relative to the first value of `scheduler`.
            warmup_length: part of the training that the warm-up takes, in [0, 1].
            warmup_method: "linear" up to the value that `scheduler` has when the warm-up ends, or
                "constant" at the first value.
            rescale_interval: squeeze the whole `scheduler` into the rest of the training; otherwise
                the warm-up replaces its beginning.
        """
        _check_warmup_method(warmup_method)
        first = warmup_factor * scheduler(0.0)
        warmup: ParamScheduler = ConstantParamScheduler(first)
        if warmup_method == "linear":
            # It has to end where the schedule goes on after it.
            goes_on_at = 0.0 if rescale_interval else warmup_length
            warmup = LinearParamScheduler(first, scheduler(goes_on_at))
        super().__init__(
            [warmup, scheduler],
            lengths=[warmup_length, 1 - warmup_length],
            interval_scaling=["rescaled", "rescaled" if rescale_interval else "fixed"],
        )


class LRMultiplier(LRScheduler):
    """Sets each learning rate to its initial value times a parameter scheduler.

    The ratios between the parameter groups' learning rates stay as they are. Only the initial
    rates and the position are saved: the schedule belongs to the config.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        multiplier: ParamScheduler,
        max_iter: int,
        last_iter: int = -1,
    ):
        """
        Args:
            optimizer: whose learning rates to set.
            multiplier: factor as a function of the trained part, in [0, 1).
            max_iter: iterations of the whole training.
            last_iter: position to start from, as PyTorch's `last_epoch`.
        """
        if not isinstance(multiplier, ParamScheduler):
            raise ValueError(
                "LRMultiplier(multiplier=) must be an instance of fvcore ParamScheduler. "
                f"Got {multiplier} instead."
            )
        self._multiplier = multiplier
        self._max_iter = max_iter
        super().__init__(optimizer, last_epoch=last_iter)

    def state_dict(self):
        return {"base_lrs": self.base_lrs, "last_epoch": self.last_epoch}

    def get_lr(self) -> list[float]:
        factor = self._multiplier(self.last_epoch / self._max_iter)
        return [base_lr * factor for base_lr in self.base_lrs]


def _get_warmup_factor_at_iter(
    method: str, iter: int, warmup_iters: int, warmup_factor: float
) -> float:
    """The warm-up's factor at one iteration; 1 once it is over."""
    if iter >= warmup_iters:
        return 1.0
    _check_warmup_method(method)
    progress = iter / warmup_iters if method == "linear" else 0.0
    return warmup_factor * (1 - progress) + progress


class _WarmupLR(LRScheduler):
    """Common part of the two classic schedules: base rate * warm-up factor * decay."""

    def __init__(self, optimizer, warmup_factor, warmup_iters, warmup_method, last_epoch):
        logger.warning(
            f"{type(self).__name__} is deprecated! Use LRMultiplier with fvcore ParamScheduler "
            "instead!"
        )
        self.warmup_factor = warmup_factor
        self.warmup_iters = warmup_iters
        self.warmup_method = warmup_method
        super().__init__(optimizer, last_epoch)

    def _decay(self) -> float:
        raise NotImplementedError

    def get_lr(self) -> list[float]:
        warmup = _get_warmup_factor_at_iter(
            self.warmup_method, self.last_epoch, self.warmup_iters, self.warmup_factor
        )
        return [base_lr * warmup * self._decay() for base_lr in self.base_lrs]

    def _compute_values(self) -> list[float]:
        return self.get_lr()


class WarmupMultiStepLR(_WarmupLR):
    """Multiplies the rate by `gamma` at each milestone, after a warm-up."""

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        milestones: list[int],
        gamma: float = 0.1,
        warmup_factor: float = 0.001,
        warmup_iters: int = 1000,
        warmup_method: str = "linear",
        last_epoch: int = -1,
    ):
        if list(milestones) != sorted(milestones):
            raise ValueError(f"Milestones should be increasing integers. Got {milestones}")
        self.milestones = milestones
        self.gamma = gamma
        super().__init__(optimizer, warmup_factor, warmup_iters, warmup_method, last_epoch)

    def _decay(self) -> float:
        return self.gamma ** bisect_right(self.milestones, self.last_epoch)


class WarmupCosineLR(_WarmupLR):
    """Takes the rate to zero along half a cosine, after a warm-up."""

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        max_iters: int,
        warmup_factor: float = 0.001,
        warmup_iters: int = 1000,
        warmup_method: str = "linear",
        last_epoch: int = -1,
    ):
        self.max_iters = max_iters
        super().__init__(optimizer, warmup_factor, warmup_iters, warmup_method, last_epoch)

    def _decay(self) -> float:
        return 0.5 * (1.0 + math.cos(math.pi * self.last_epoch / self.max_iters))
