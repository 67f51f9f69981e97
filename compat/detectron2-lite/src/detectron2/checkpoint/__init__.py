# ruff: noqa: F401
# SPDX-License-Identifier: Apache-2.0
"""Saving and loading of checkpoints."""

from detectron2._lite import absent
from fvcore.common.checkpoint import Checkpointer, PeriodicCheckpointer

from .detection_checkpoint import DetectionCheckpointer

__getattr__ = absent(__name__)
