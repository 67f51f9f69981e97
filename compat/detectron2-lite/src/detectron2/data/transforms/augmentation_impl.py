# SPDX-License-Identifier: Apache-2.0
"""Geometric augmentations.

Each draws from ``numpy.random`` in the order of Detectron2, so that the same seed gives the same
transforms.
"""

import sys

import numpy as np
import torch
from fvcore.transforms.transform import (
    CropTransform,
    HFlipTransform,
    NoOpTransform,
    PadTransform,
    Transform,
    TransformList,
    VFlipTransform,
)
from PIL import Image

from .augmentation import Augmentation, _transform_to_aug
from .transform import ResizeTransform, RotationTransform

__all__ = [
    "FixedSizeCrop",
    "RandomApply",
    "RandomCrop",
    "RandomFlip",
    "RandomResize",
    "RandomRotation",
    "Resize",
    "ResizeScale",
    "ResizeShortestEdge",
]


def _is_range(sample_style: str) -> bool:
    assert sample_style in ("range", "choice"), (
        f'sample_style must be "range" or "choice", got {sample_style!r}'
    )
    return sample_style == "range"


def _as_pair(value):
    """Returns a single number twice; other values unchanged."""
    return (value, value) if isinstance(value, (int, float)) else value


class RandomApply(Augmentation):
    """Applies another augmentation at random.

    Args:
        tfm_or_aug: Augmentation or transform.
        prob: Probability of applying it.
    """

    def __init__(self, tfm_or_aug, prob=0.5):
        super().__init__()
        self.aug = _transform_to_aug(tfm_or_aug)
        assert 0.0 <= prob <= 1.0, f"prob must be in [0, 1], got {prob}"
        self.prob = prob

    def get_transform(self, *args):
        """Returns the transform of the augmentation, or no transform."""
        return self.aug.get_transform(*args) if self._draw() else NoOpTransform()

    def __call__(self, aug_input):
        """Applies the augmentation in place, or does nothing; returns the transform."""
        return self.aug(aug_input) if self._draw() else NoOpTransform()

    def _draw(self) -> bool:
        return self._rand_range() < self.prob


class RandomFlip(Augmentation):
    """Flips the image at random, either horizontally or vertically.

    Args:
        prob: Probability of a flip.
        horizontal: Whether to flip horizontally.
        vertical: Whether to flip vertically.
    """

    def __init__(self, prob=0.5, *, horizontal=True, vertical=False):
        super().__init__()
        if bool(horizontal) == bool(vertical):
            raise ValueError(
                f"RandomFlip flips one axis, got horizontal={horizontal}, vertical={vertical}; "
                "for both, use two RandomFlips"
            )
        self._init(locals())

    def get_transform(self, image):
        """Returns the flip, or no transform."""
        height, width = image.shape[:2]
        if self._rand_range() >= self.prob:
            return NoOpTransform()
        return HFlipTransform(width) if self.horizontal else VFlipTransform(height)


class Resize(Augmentation):
    """Resizes to a fixed size.

    Args:
        shape: (height, width), or an integer for both.
        interp: PIL interpolation.
    """

    def __init__(self, shape, interp=Image.BILINEAR):
        self.shape = (shape, shape) if isinstance(shape, int) else tuple(shape)
        self.interp = interp

    def get_transform(self, image):
        """Returns the resize transform."""
        height, width = image.shape[:2]
        return ResizeTransform(height, width, self.shape[0], self.shape[1], self.interp)


class ResizeShortestEdge(Augmentation):
    """Resizes the shorter side to a length, keeping the aspect ratio.

    If the longer side exceeds ``max_size`` then, the longer side is resized to ``max_size``.

    Args:
        short_edge_length: List of lengths in pixels to choose from, (minimum, maximum) of a range,
            or a single length. A length of 0 does not resize the image.
        max_size: Maximum length of the longer side in pixels.
        sample_style: "choice" or "range".
        interp: PIL interpolation.
    """

    # unused, so that TorchScript can compile get_output_shape
    @torch.jit.unused
    def __init__(
        self,
        short_edge_length,
        max_size=sys.maxsize,
        sample_style="range",
        interp=Image.BILINEAR,
    ):
        super().__init__()
        self._init(locals())
        self.is_range = _is_range(sample_style)
        self.short_edge_length = _as_pair(short_edge_length)
        assert not self.is_range or len(self.short_edge_length) == 2, (
            f"a range is (minimum, maximum) short_edge_length, got {short_edge_length}"
        )

    @torch.jit.unused
    def get_transform(self, image):
        """Returns the resize transform, or no transform."""
        height, width = image.shape[:2]
        lengths = self.short_edge_length
        if self.is_range:
            size = np.random.randint(lengths[0], lengths[1] + 1)
        else:
            size = np.random.choice(lengths)
        if size == 0:
            return NoOpTransform()
        new_height, new_width = self.get_output_shape(height, width, size, self.max_size)
        return ResizeTransform(height, width, new_height, new_width, self.interp)

    @staticmethod
    def get_output_shape(
        oldh: int, oldw: int, short_edge_length: int, max_size: int
    ) -> tuple[int, int]:
        """Returns the (height, width) that an image of (oldh, oldw) is resized to."""
        size = short_edge_length * 1.0
        scale = size / min(oldh, oldw)
        # the shorter side is set to the exact length
        newh, neww = (size, scale * oldw) if oldh < oldw else (scale * oldh, size)
        if max(newh, neww) > max_size:
            scale = max_size * 1.0 / max(newh, neww)
            newh, neww = newh * scale, neww * scale
        return (int(newh + 0.5), int(neww + 0.5))


class RandomResize(Augmentation):
    """Resizes to a random size from a list.

    Args:
        shape_list: List of (height, width).
        interp: PIL interpolation.
    """

    def __init__(self, shape_list, interp=Image.BILINEAR):
        self._init(locals())

    def get_transform(self, image):
        """Returns the resize transform."""
        index = np.random.choice(len(self.shape_list))
        return Resize(self.shape_list[index], self.interp).get_transform(image)


class ResizeScale(Augmentation):
    """Resizes to a target size times a random scale, keeping the aspect ratio.

    Args:
        min_scale: Minimum scale.
        max_scale: Maximum scale.
        target_height: Target height in pixels.
        target_width: Target width in pixels.
        interp: PIL interpolation.
    """

    def __init__(
        self,
        min_scale: float,
        max_scale: float,
        target_height: int,
        target_width: int,
        interp: int = Image.BILINEAR,
    ):
        super().__init__()
        self._init(locals())

    def get_transform(self, image: np.ndarray) -> Transform:
        """Returns the resize transform."""
        scale = np.random.uniform(self.min_scale, self.max_scale)
        height, width = image.shape[:2]
        factor = min(self.target_height * scale / height, self.target_width * scale / width)
        new_height, new_width = np.round(np.multiply((height, width), factor)).astype(int)
        return ResizeTransform(height, width, int(new_height), int(new_width), self.interp)


class RandomRotation(Augmentation):
    """Rotates counter-clockwise. It needs OpenCV.

    Args:
        angle: (minimum, maximum) in degrees of a range, or list of angles to choose from.
        expand: Whether to enlarge the image so that it holds the whole rotated image.
        center: (minimum, maximum) of a range, or list of centers to choose from. A center is (x, y)
            relative to width and height.
        sample_style: "range" or "choice".
        interp: OpenCV interpolation.
    """

    def __init__(self, angle, expand=True, center=None, sample_style="range", interp=None):
        super().__init__()
        self._init(locals())
        self.is_range = _is_range(sample_style)
        self.angle = _as_pair(angle)
        if center is not None:
            is_point = isinstance(center[0], (float, int))
            self.center = (center, center) if is_point else center

    def get_transform(self, image):
        """Returns a random rotation, or no transform for an angle of 0."""
        height, width = image.shape[:2]
        angle = self._draw(self.angle)
        center = None
        if self.center is not None:
            part_x, part_y = self._draw(self.center)
            center = (width * part_x, height * part_y)
        if angle % 360 == 0:
            return NoOpTransform()
        return RotationTransform(
            height, width, angle, expand=self.expand, center=center, interp=self.interp
        )

    def _draw(self, options):
        """Draws from the range between two options, or one of several."""
        if not self.is_range:
            return np.random.choice(options)
        return np.random.uniform(options[0], options[1])


class FixedSizeCrop(Augmentation):
    """Crops to a fixed size at a random position; pads smaller images at the bottom and right.

    Args:
        crop_size: (height, width) in pixels.
        pad: Whether to pad smaller images.
        pad_value: Padding value of images.
        seg_pad_value: Padding value of segmentations.
    """

    def __init__(
        self,
        crop_size: tuple[int],
        pad: bool = True,
        pad_value: float = 128.0,
        seg_pad_value: int = 255,
    ):
        super().__init__()
        self._init(locals())

    def get_transform(self, image: np.ndarray) -> TransformList:
        """Returns a random crop, followed by the padding."""
        size, (height, width) = image.shape[:2], self.crop_size
        largest_offset = np.maximum(np.subtract(size, self.crop_size), 0)
        # one random number for both axes
        offset = np.multiply(largest_offset, np.random.uniform(0.0, 1.0))
        y, x = np.round(offset).astype(int)
        crop = CropTransform(x, y, width, height, size[1], size[0])
        if not self.pad:
            return TransformList([crop])
        missing = np.maximum(np.subtract(self.crop_size, size), 0)
        cropped = np.minimum(size, self.crop_size)
        pad = PadTransform(
            0, 0, missing[1], missing[0], cropped[1], cropped[0], self.pad_value, self.seg_pad_value
        )
        return TransformList([crop, pad])


class RandomCrop(Augmentation):
    """Crops a rectangle at a random position.

    Args:
        crop_type: Meaning of ``crop_size``. "relative": fractions of height and width;
            "relative_range": minimum fractions, the fractions are random; "absolute": (height,
            width) in pixels; "absolute_range": (minimum, maximum) of height and width in pixels.
        crop_size: Two numbers.
    """

    def __init__(self, crop_type: str, crop_size):
        super().__init__()
        assert crop_type in ("relative_range", "relative", "absolute", "absolute_range"), crop_type
        self._init(locals())

    def get_transform(self, image):
        """Returns a random crop."""
        height, width = image.shape[:2]
        crop_height, crop_width = self.get_crop_size((height, width))
        assert height >= crop_height and width >= crop_width, (
            f"{self} needs a larger image than {(height, width)}"
        )
        y = np.random.randint(height - crop_height + 1)
        x = np.random.randint(width - crop_width + 1)
        return CropTransform(x, y, crop_width, crop_height)

    def get_crop_size(self, image_size):
        """Returns a random (height, width) of the crop for an image of (height, width)."""
        height, width = image_size
        if self.crop_type == "relative":
            part_y, part_x = self.crop_size
            return int(height * part_y + 0.5), int(width * part_x + 0.5)
        if self.crop_type == "relative_range":
            least = np.asarray(self.crop_size, dtype=np.float32)
            part_y, part_x = least + np.random.rand(2) * (1 - least)
            return int(height * part_y + 0.5), int(width * part_x + 0.5)
        if self.crop_type == "absolute":
            return (min(self.crop_size[0], height), min(self.crop_size[1], width))
        least, greatest = self.crop_size
        assert least <= greatest, f"absolute_range needs (least, greatest), got {self.crop_size}"
        crop_height = np.random.randint(min(height, least), min(height, greatest) + 1)
        crop_width = np.random.randint(min(width, least), min(width, greatest) + 1)
        return crop_height, crop_width
