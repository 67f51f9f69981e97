# ruff: noqa: F401
# SPDX-License-Identifier: Apache-2.0
"""Optimizers and learning rate schedules from the config."""

from detectron2._lite import absent

from .build import build_lr_scheduler, build_optimizer, get_default_optimizer_params
from .lr_scheduler import LRMultiplier, LRScheduler, WarmupParamScheduler

__getattr__ = absent(__name__)
