# SPDX-License-Identifier: Apache-2.0
"""Saving and loading of checkpoints, those of other code bases included."""

from detectron2._lite import absent
from fvcore.common.checkpoint import Checkpointer, PeriodicCheckpointer

from .detection_checkpoint import DetectionCheckpointer

__all__ = ["Checkpointer", "DetectionCheckpointer", "PeriodicCheckpointer"]

__getattr__ = absent(__name__, "catalog")
