# ruff: noqa: F401, F403
# SPDX-License-Identifier: Apache-2.0
"""Transforms of images with their annotations, and augmentations that choose transforms."""

from detectron2._lite import absent
from fvcore.transforms.transform import *
from fvcore.transforms.transform import Transform, TransformList

from .augmentation import *
from .augmentation_color import *
from .augmentation_impl import *
from .transform import *

__getattr__ = absent(__name__)
