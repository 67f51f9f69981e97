# SPDX-License-Identifier: Apache-2.0
"""Augmentations of geometry.

The order in which each draws from ``numpy.random`` is part of its interface: with the same seed,
Detectron2 picks the same transforms.
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
from .transform import ExtentTransform, ResizeTransform, RotationTransform

__all__ = [
    "FixedSizeCrop",
    "RandomApply",
    "RandomCrop",
    "RandomExtent",
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
    """Returns a single number twice, as a range or a choice of it alone; else ``value``."""
    return (value, value) if isinstance(value, (int, float)) else value


class RandomApply(Augmentation):
    """Applies another augmentation, or does nothing."""

    def __init__(self, tfm_or_aug, prob=0.5):
        """Takes an augmentation or transform, and the probability with which it is applied."""
        super().__init__()
        self.aug = _transform_to_aug(tfm_or_aug)
        assert 0.0 <= prob <= 1.0, f"prob must be in [0, 1], got {prob}"
        self.prob = prob

    def get_transform(self, *args):
        return self.aug.get_transform(*args) if self._draw() else NoOpTransform()

    def __call__(self, aug_input):
        return self.aug(aug_input) if self._draw() else NoOpTransform()

    def _draw(self) -> bool:
        return self._rand_range() < self.prob


class RandomFlip(Augmentation):
    """Mirrors the image, or does nothing."""

    def __init__(self, prob=0.5, *, horizontal=True, vertical=False):
        """
        Args:
            prob: probability of a flip.
            horizontal: exchange left and right.
            vertical: exchange top and bottom. Exactly one of the two must be asked for.
        """
        super().__init__()
        if bool(horizontal) == bool(vertical):
            raise ValueError(
                f"RandomFlip mirrors one axis, got horizontal={horizontal}, vertical={vertical}; "
                "for both, use two RandomFlips"
            )
        self._init(locals())

    def get_transform(self, image):
        height, width = image.shape[:2]
        if self._rand_range() >= self.prob:
            return NoOpTransform()
        return HFlipTransform(width) if self.horizontal else VFlipTransform(height)


class Resize(Augmentation):
    """Resizes to a fixed size."""

    def __init__(self, shape, interp=Image.BILINEAR):
        """Takes (height, width), or an integer for both, and the PIL interpolation."""
        self.shape = (shape, shape) if isinstance(shape, int) else tuple(shape)
        self.interp = interp

    def get_transform(self, image):
        height, width = image.shape[:2]
        return ResizeTransform(height, width, self.shape[0], self.shape[1], self.interp)


class ResizeShortestEdge(Augmentation):
    """Resizes the shorter side to a length, keeping the aspect ratio.

    If the longer side would then exceed ``max_size``, it is resized to that instead.
    """

    # TorchScript compiles the class of get_output_shape; these two it cannot.
    @torch.jit.unused
    def __init__(
        self,
        short_edge_length,
        max_size=sys.maxsize,
        sample_style="range",
        interp=Image.BILINEAR,
    ):
        """
        Args:
            short_edge_length: lengths to choose from, or the (smallest, largest) of a range; an
                integer for only one. A length of 0 leaves the image as it is.
            max_size: bound of the longer side.
            sample_style: "choice" or "range".
            interp: PIL interpolation.
        """
        super().__init__()
        self._init(locals())
        self.is_range = _is_range(sample_style)
        self.short_edge_length = _as_pair(short_edge_length)
        assert not self.is_range or len(self.short_edge_length) == 2, (
            f"a range is (smallest, largest) short_edge_length, got {short_edge_length}"
        )

    @torch.jit.unused
    def get_transform(self, image):
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
        # the shorter side is the length itself: scale * oldh may be a little off it
        newh, neww = (size, scale * oldw) if oldh < oldw else (scale * oldh, size)
        if max(newh, neww) > max_size:
            scale = max_size * 1.0 / max(newh, neww)
            newh, neww = newh * scale, neww * scale
        return (int(newh + 0.5), int(neww + 0.5))


class RandomResize(Augmentation):
    """Resizes to one of several sizes."""

    def __init__(self, shape_list, interp=Image.BILINEAR):
        """Takes a list of (height, width), and the PIL interpolation."""
        self._init(locals())

    def get_transform(self, image):
        index = np.random.choice(len(self.shape_list))
        return Resize(self.shape_list[index], self.interp).get_transform(image)


class ResizeScale(Augmentation):
    """Resizes to fit into a target size times a random scale, keeping the aspect ratio."""

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

    def _get_resize(self, image: np.ndarray, scale: float) -> Transform:
        height, width = image.shape[:2]
        factor = min(self.target_height * scale / height, self.target_width * scale / width)
        new_height, new_width = np.round(np.multiply((height, width), factor)).astype(int)
        return ResizeTransform(height, width, int(new_height), int(new_width), self.interp)

    def get_transform(self, image: np.ndarray) -> Transform:
        return self._get_resize(image, np.random.uniform(self.min_scale, self.max_scale))


class RandomRotation(Augmentation):
    """Rotates counter-clockwise. Needs OpenCV."""

    def __init__(self, angle, expand=True, center=None, sample_style="range", interp=None):
        """
        Args:
            angle: degrees; the (smallest, largest) of a range, or the angles to choose from.
            expand: see ``RotationTransform``.
            center: with "range", (least, greatest) center; with "choice", a list of centers. A
                center is (x, y) in parts of width and height.
            sample_style: "range" or "choice".
            interp: OpenCV interpolation.
        """
        super().__init__()
        self._init(locals())
        self.is_range = _is_range(sample_style)
        self.angle = _as_pair(angle)
        if center is not None:
            # one point is a range, or a choice, of that point alone
            is_point = isinstance(center[0], (float, int))
            self.center = (center, center) if is_point else center

    def get_transform(self, image):
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
        """Draws from the range between two options (axis by axis), or one of several."""
        if not self.is_range:
            return np.random.choice(options)
        return np.random.uniform(options[0], options[1])


class FixedSizeCrop(Augmentation):
    """Crops to a size at a random place, and pads what is smaller at the bottom and right."""

    def __init__(
        self,
        crop_size: tuple[int],
        pad: bool = True,
        pad_value: float = 128.0,
        seg_pad_value: int = 255,
    ):
        """
        Args:
            crop_size: (height, width).
            pad: pad images that are smaller.
            pad_value: what images are padded with.
            seg_pad_value: what segmentations are padded with.
        """
        super().__init__()
        self._init(locals())

    def _get_crop(self, image: np.ndarray) -> Transform:
        size, (height, width) = image.shape[:2], self.crop_size
        largest_offset = np.maximum(np.subtract(size, self.crop_size), 0)
        # one number for both axes
        offset = np.multiply(largest_offset, np.random.uniform(0.0, 1.0))
        y, x = np.round(offset).astype(int)
        return CropTransform(x, y, width, height, size[1], size[0])

    def _get_pad(self, image: np.ndarray) -> Transform:
        size = image.shape[:2]
        missing = np.maximum(np.subtract(self.crop_size, size), 0)
        left = np.minimum(size, self.crop_size)
        return PadTransform(
            0, 0, missing[1], missing[0], left[1], left[0], self.pad_value, self.seg_pad_value
        )

    def get_transform(self, image: np.ndarray) -> TransformList:
        crop = self._get_crop(image)
        return TransformList([crop, self._get_pad(image)] if self.pad else [crop])


class RandomCrop(Augmentation):
    """Crops a rectangle at a random place."""

    def __init__(self, crop_type: str, crop_size):
        """
        Args:
            crop_type: what ``crop_size`` means. "relative": the part of (height, width);
                "relative_range": the least part, the part is drawn for each axis; "absolute":
                (height, width) in pixels; "absolute_range": the least and greatest of both.
            crop_size: two numbers.
        """
        super().__init__()
        assert crop_type in ("relative_range", "relative", "absolute", "absolute_range"), crop_type
        self._init(locals())

    def get_transform(self, image):
        height, width = image.shape[:2]
        crop_height, crop_width = self.get_crop_size((height, width))
        assert height >= crop_height and width >= crop_width, (
            f"{self} asks for more than the image of {(height, width)}"
        )
        y = np.random.randint(height - crop_height + 1)
        x = np.random.randint(width - crop_width + 1)
        return CropTransform(x, y, crop_width, crop_height)

    def get_crop_size(self, image_size):
        """Returns the (height, width) to crop from an image of (height, width)."""
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


class RandomExtent(Augmentation):
    """Takes a rectangle around the center, scaled and shifted; it may reach over the image."""

    def __init__(self, scale_range, shift_range):
        """
        Args:
            scale_range: (least, greatest) size of the rectangle in parts of the image.
            shift_range: (x, y) width of the range of its shift in parts of the image.
        """
        super().__init__()
        self._init(locals())

    def get_transform(self, image):
        height, width = image.shape[:2]
        rect = np.array([-0.5 * width, -0.5 * height, 0.5 * width, 0.5 * height])
        rect *= np.random.uniform(self.scale_range[0], self.scale_range[1])
        rect[0::2] += self.shift_range[0] * width * (np.random.rand() - 0.5)
        rect[1::2] += self.shift_range[1] * height * (np.random.rand() - 0.5)
        rect[0::2] += 0.5 * width
        rect[1::2] += 0.5 * height
        return ExtentTransform(
            src_rect=(rect[0], rect[1], rect[2], rect[3]),
            output_size=(int(rect[3] - rect[1]), int(rect[2] - rect[0])),
        )
