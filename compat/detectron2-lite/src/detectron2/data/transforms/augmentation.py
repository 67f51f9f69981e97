# SPDX-License-Identifier: Apache-2.0
"""Augmentations: policies that choose a transform, at random or by the input.

An ``Augmentation`` takes an ``AugInput`` and returns a ``Transform``, which is deterministic and
applies to all data types of the image. All random numbers come from ``numpy.random``.
"""

import inspect
import pprint
from typing import Any

import numpy as np
from fvcore.transforms.transform import Transform, TransformList

__all__ = [
    "AugInput",
    "Augmentation",
    "AugmentationList",
    "StandardAugInput",
    "TransformGen",
    "apply_augmentations",
    "apply_transform_gens",
]


def _check_image(image: np.ndarray) -> None:
    assert isinstance(image, np.ndarray), f"an image must be a NumPy array, got {type(image)}"
    assert image.ndim in (2, 3), f"an image must be (H, W) or (H, W, C), got {image.shape}"


class Augmentation:
    """A policy that chooses a transform.

    A subclass defines ``get_transform``. The names of its arguments are those of the attributes of
    the ``AugInput`` that it needs; a single argument is always the image.
    """

    input_args: tuple[str, ...] | None = None
    """Names of the attributes; by default from the signature of ``get_transform``."""

    def _init(self, params: dict[str, Any] | None = None) -> None:
        """Sets attributes from ``locals()`` of ``__init__``, except self and private names."""
        for name, value in (params or {}).items():
            if name != "self" and not name.startswith("_"):
                setattr(self, name, value)

    def get_transform(self, *args) -> Transform:
        """Returns the transform for an input, which must not be changed."""
        raise NotImplementedError(f"{type(self).__name__} must define get_transform")

    def __call__(self, aug_input) -> Transform:
        """Chooses a transform, applies it to ``aug_input`` in place, and returns it."""
        transform = self.get_transform(*self._arguments_from(aug_input))
        assert isinstance(transform, (Transform, TransformList)), (
            f"{type(self).__name__}.get_transform must return a Transform, got {transform!r}"
        )
        aug_input.transform(transform)
        return transform

    def _arguments_from(self, aug_input) -> list[Any]:
        if self.input_args is None:
            parameters = list(inspect.signature(self.get_transform).parameters.values())
            if len(parameters) == 1:
                self.input_args = ("image",)
            else:
                variadic = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
                if any(p.kind in variadic for p in parameters):
                    raise TypeError(
                        f"{type(self).__name__}.get_transform takes *args or **kwargs; name the "
                        "arguments, or override __call__"
                    )
                self.input_args = tuple(p.name for p in parameters)
        try:
            return [getattr(aug_input, name) for name in self.input_args]
        except AttributeError as e:
            raise AttributeError(
                f"{type(self).__name__}.get_transform needs {self.input_args} of its input, "
                f"which lacks one of them: {e}"
            ) from e

    def _rand_range(self, low=1.0, high=None, size=None):
        """Draws from [low, high), or from [0, low) if ``high`` is None."""
        if high is None:
            low, high = 0, low
        return np.random.uniform(low, high, size=[] if size is None else size)

    def __repr__(self) -> str:
        """Shows the arguments of ``__init__`` that differ from their defaults."""
        shown = []
        for name, parameter in inspect.signature(self.__init__).parameters.items():
            variadic = (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
            if parameter.kind in variadic or not hasattr(self, name):
                return super().__repr__()
            value = getattr(self, name)
            if value is parameter.default:
                continue
            text = pprint.pformat(value)
            shown.append(f"{name}={'...' if chr(10) in text else text}")
        return f"{type(self).__name__}({', '.join(shown)})"

    __str__ = __repr__


class _TransformToAug(Augmentation):
    """An augmentation that always returns the same transform."""

    def __init__(self, tfm: Transform):
        self.tfm = tfm

    def get_transform(self, *args) -> Transform:
        return self.tfm

    def __repr__(self) -> str:
        return repr(self.tfm)

    __str__ = __repr__


def _transform_to_aug(tfm_or_aug) -> Augmentation:
    """Converts a transform to an augmentation; returns an augmentation unchanged."""
    assert isinstance(tfm_or_aug, (Transform, TransformList, Augmentation)), (
        f"expected a Transform or an Augmentation, got {tfm_or_aug!r}"
    )
    is_rule = isinstance(tfm_or_aug, Augmentation)
    return tfm_or_aug if is_rule else _TransformToAug(tfm_or_aug)


class AugmentationList(Augmentation):
    """Applies augmentations one after another.

    Args:
        augs: List of augmentations and transforms.
    """

    def __init__(self, augs):
        super().__init__()
        self.augs = [_transform_to_aug(aug) for aug in augs]

    def __call__(self, aug_input) -> TransformList:
        """Applies the augmentations in place and returns their transforms."""
        return TransformList([aug(aug_input) for aug in self.augs])

    def __repr__(self) -> str:
        return f"AugmentationList[{', '.join(str(aug) for aug in self.augs)}]"

    __str__ = __repr__


class AugInput:
    """Input of augmentations, changed in place: an image with optional boxes and segmentation.

    A subclass may have more attributes, if its ``transform`` handles them.

    Attributes:
        image: (H, W) or (H, W, C) array, uint8 in [0, 255] or floating point.
        boxes: (N, 4) boxes x0, y0, x1, y1, or None.
        sem_seg: (H, W) array of class per pixel, or None.
    """

    def __init__(
        self,
        image: np.ndarray,
        *,
        boxes: np.ndarray | None = None,
        sem_seg: np.ndarray | None = None,
    ):
        _check_image(image)
        self.image = image
        self.boxes = boxes
        self.sem_seg = sem_seg

    def transform(self, tfm: Transform) -> None:
        """Applies a transform to all attributes."""
        self.image = tfm.apply_image(self.image)
        for name, apply in (("boxes", tfm.apply_box), ("sem_seg", tfm.apply_segmentation)):
            value = getattr(self, name)
            if value is not None:
                setattr(self, name, apply(value))

    def apply_augmentations(self, augmentations: list[Augmentation | Transform]) -> TransformList:
        """Applies augmentations in order and returns the chosen transforms."""
        return AugmentationList(augmentations)(self)


def apply_augmentations(augmentations: list[Augmentation | Transform], inputs):
    """Applies augmentations in order.

    Args:
        augmentations: List of augmentations and transforms.
        inputs: Image, or ``AugInput``, which is changed in place.

    Returns:
        The augmented image or ``AugInput``, and the ``TransformList`` that was applied.
    """
    if isinstance(inputs, np.ndarray):
        aug_input = AugInput(inputs)
        transforms = aug_input.apply_augmentations(augmentations)
        return aug_input.image, transforms
    return inputs, inputs.apply_augmentations(augmentations)


# Aliases for backward compatibility.
apply_transform_gens = apply_augmentations
TransformGen = Augmentation
StandardAugInput = AugInput
