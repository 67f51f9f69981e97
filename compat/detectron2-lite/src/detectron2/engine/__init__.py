# ruff: noqa: F401
# SPDX-License-Identifier: Apache-2.0
"""Training loops, hooks, and the default setup of a training program."""

from detectron2._lite import absent

from .launch import DEFAULT_TIMEOUT, launch
from .train_loop import AMPTrainer, HookBase, SimpleTrainer, TrainerBase

# isort: split
# These import most other packages, which import the loops above.
from .defaults import (
    DefaultPredictor,
    DefaultTrainer,
    create_ddp_model,
    default_argument_parser,
    default_setup,
    default_writers,
)
from .hooks import (
    BestCheckpointer,
    CallbackHook,
    EvalHook,
    IterationTimer,
    LRScheduler,
    PeriodicCheckpointer,
    PeriodicWriter,
    PreciseBN,
)

__getattr__ = absent(__name__)
