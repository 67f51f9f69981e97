# ruff: noqa: F401
# SPDX-License-Identifier: Apache-2.0
"""Samplers for one process or several."""

from detectron2._lite import absent

from .distributed_sampler import (
    InferenceSampler,
    RandomSubsetTrainingSampler,
    RepeatFactorTrainingSampler,
    TrainingSampler,
)
from .grouped_batch_sampler import GroupedBatchSampler

__getattr__ = absent(__name__)
