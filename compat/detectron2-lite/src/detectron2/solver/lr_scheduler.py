# SPDX-License-Identifier: Apache-2.0
"""Learning rate schedulers based on fvcore's parameter schedulers, with warmup."""

import torch
from detectron2._lite import absent
from fvcore.common.param_scheduler import (
    CompositeParamScheduler,
    ConstantParamScheduler,
    LinearParamScheduler,
    ParamScheduler,
)
from torch.optim.lr_scheduler import LRScheduler

__getattr__ = absent(__name__, "WarmupCosineLR", "WarmupMultiStepLR")


class WarmupParamScheduler(CompositeParamScheduler):
    """Adds a warmup stage to another parameter scheduler.

    Args:
        scheduler: Scheduler after the warmup.
        warmup_factor: First value, relative to the first value of ``scheduler``.
        warmup_length: Fraction of the training for the warmup, in [0, 1].
        warmup_method: "linear" increase to the value of ``scheduler`` at the end of the warmup, or
            "constant" first value.
        rescale_interval: Whether to rescale ``scheduler`` to the rest of the training. Otherwise
            the warmup replaces its beginning.
    """

    def __init__(
        self,
        scheduler: ParamScheduler,
        warmup_factor: float,
        warmup_length: float,
        warmup_method: str = "linear",
        rescale_interval: bool = False,
    ):
        if warmup_method not in ("linear", "constant"):
            raise ValueError(f"Unknown warmup method: {warmup_method}. Use linear or constant")
        first = warmup_factor * scheduler(0.0)
        warmup: ParamScheduler = ConstantParamScheduler(first)
        if warmup_method == "linear":
            # The end of the warmup must equal the value of the scheduler there.
            end = scheduler(0.0 if rescale_interval else warmup_length)
            warmup = LinearParamScheduler(first, end)
        super().__init__(
            [warmup, scheduler],
            lengths=[warmup_length, 1 - warmup_length],
            interval_scaling=["rescaled", "rescaled" if rescale_interval else "fixed"],
        )


class LRMultiplier(LRScheduler):
    """Multiplies the learning rates of an optimizer by a parameter scheduler.

    The state consists of the initial learning rates and the iteration; the multiplier is not saved.

    Args:
        optimizer: Optimizer whose learning rates are set.
        multiplier: Scheduler of the factor, as a function of the progress in [0, 1).
        max_iter: Total number of iterations.
        last_iter: Last iteration; PyTorch's ``last_epoch``.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        multiplier: ParamScheduler,
        max_iter: int,
        last_iter: int = -1,
    ):
        if not isinstance(multiplier, ParamScheduler):
            raise ValueError(
                "LRMultiplier(multiplier=) must be an instance of fvcore ParamScheduler. "
                f"Got {multiplier} instead."
            )
        self._multiplier = multiplier
        self._max_iter = max_iter
        super().__init__(optimizer, last_epoch=last_iter)

    def state_dict(self):
        """Returns the initial learning rates and the last iteration."""
        return {"base_lrs": self.base_lrs, "last_epoch": self.last_epoch}

    def get_lr(self) -> list[float]:
        """Returns the learning rate of each parameter group."""
        factor = self._multiplier(self.last_epoch / self._max_iter)
        return [base_lr * factor for base_lr in self.base_lrs]
