# SPDX-License-Identifier: Apache-2.0
"""Transforms of images and of what is drawn on them, and random choices of transforms."""

# Transform first: the other modules register further data types on it.
from fvcore.transforms.transform import Transform, TransformList  # isort: skip
from detectron2._lite import absent
from fvcore.transforms.transform import *  # noqa: F403
from fvcore.transforms.transform import __all__ as _fvcore_names

from .augmentation import *  # noqa: F403
from .augmentation import __all__ as _augmentation_names
from .augmentation_color import *  # noqa: F403
from .augmentation_color import __all__ as _color_names
from .augmentation_impl import *  # noqa: F403
from .augmentation_impl import __all__ as _impl_names
from .transform import *  # noqa: F403
from .transform import __all__ as _transform_names

__all__ = [
    "Transform",
    "TransformList",
    *_fvcore_names,
    *_transform_names,
    *_augmentation_names,
    *_impl_names,
    *_color_names,
]

__getattr__ = absent(__name__, "MinIoURandomCrop", "RandomCrop_CategoryAreaConstraint")
