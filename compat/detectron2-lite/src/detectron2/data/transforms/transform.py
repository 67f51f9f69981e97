# SPDX-License-Identifier: Apache-2.0
"""Deterministic transforms in addition to those of fvcore.

Coordinates are continuous: pixel (row i, column j) covers [j, j + 1) x [i, i + 1) in (x, y).
"""

from collections.abc import Callable

import numpy as np
import torch
from fvcore.transforms.transform import (
    CropTransform,
    NoOpTransform,
    Transform,
    TransformList,
)
from PIL import Image
from torch.nn import functional as F

__all__ = [
    "ColorTransform",
    "PILColorTransform",
    "ResizeTransform",
    "RotationTransform",
]

_TORCH_MODES = {Image.NEAREST: "nearest", Image.BILINEAR: "bilinear", Image.BICUBIC: "bicubic"}


def _through_pil(img: np.ndarray, operation: Callable[[Image.Image], Image.Image]) -> np.ndarray:
    """Applies a PIL operation to an (H, W) or (H, W, C) array; PIL does not accept (H, W, 1)."""
    single = img.ndim == 3 and img.shape[2] == 1
    result = np.asarray(operation(Image.fromarray(img[:, :, 0] if single else img)))
    return result[:, :, None] if single else result


class ResizeTransform(Transform):
    """Resizes the image, with PIL if it is uint8, otherwise with PyTorch without antialiasing.

    Args:
        h: Height of the image.
        w: Width of the image.
        new_h: New height.
        new_w: New width.
        interp: PIL interpolation, bilinear by default.
    """

    def __init__(self, h, w, new_h, new_w, interp=None):
        super().__init__()
        self.h, self.w = h, w
        self.new_h, self.new_w = new_h, new_w
        self.interp = Image.BILINEAR if interp is None else interp

    def apply_image(self, img, interp=None):
        """Resizes an (H, W) or (H, W, C) image."""
        assert img.shape[:2] == (self.h, self.w), (
            f"the transform is for images of {(self.h, self.w)}, got {img.shape}"
        )
        assert img.ndim <= 4
        method = interp if interp is not None else self.interp
        if img.dtype == np.uint8:
            return _through_pil(img, lambda image: image.resize((self.new_w, self.new_h), method))

        # from_numpy does not accept negative strides, which flips produce
        if any(stride < 0 for stride in img.strides):
            img = np.ascontiguousarray(img)
        tensor = torch.from_numpy(img)
        trailing = tensor.shape[2:]
        planes = tensor.reshape(self.h, self.w, -1).permute(2, 0, 1)[None]
        mode = _TORCH_MODES[method]
        planes = F.interpolate(
            planes,
            (self.new_h, self.new_w),
            mode=mode,
            align_corners=None if mode == "nearest" else False,
        )
        return planes[0].permute(1, 2, 0).reshape(self.new_h, self.new_w, *trailing).numpy()

    def apply_coords(self, coords):
        """Scales (N, 2) coordinates in place."""
        for axis, scale in enumerate((self.new_w * 1.0 / self.w, self.new_h * 1.0 / self.h)):
            # "*=" fails for integer coordinates
            coords[:, axis] = coords[:, axis] * scale
        return coords

    def apply_segmentation(self, segmentation):
        """Resizes a segmentation with nearest-neighbor interpolation."""
        return self.apply_image(segmentation, interp=Image.NEAREST)

    def inverse(self):
        """Returns the transform to the old size."""
        return ResizeTransform(self.new_h, self.new_w, self.h, self.w, self.interp)


class RotationTransform(Transform):
    """Rotates the image counter-clockwise. It needs OpenCV (the package opencv-python).

    Args:
        h: Height of the image.
        w: Width of the image.
        angle: Angle in degrees.
        expand: Whether to enlarge the image so that it holds the whole rotated image.
        center: (x, y) of the center of rotation, by default the center of the image. It has no
            effect with ``expand``.
        interp: OpenCV interpolation, linear by default.
    """

    def __init__(self, h, w, angle, expand=True, center=None, interp=None):
        super().__init__()
        cv2 = _opencv()
        self.h, self.w = h, w
        self.angle = angle
        self.expand = expand
        self.image_center = np.array([w, h]) / 2
        self.center = self.image_center if center is None else center
        self.interp = cv2.INTER_LINEAR if interp is None else interp
        self.bound_w, self.bound_h = w, h
        if expand:
            radians = np.deg2rad(angle)
            cos, sin = np.abs(np.cos(radians)), np.abs(np.sin(radians))
            bound = np.rint([h * sin + w * cos, h * cos + w * sin])
            self.bound_w, self.bound_h = bound.astype(int)
        self.rm_coords = self.create_rotation_matrix()
        # in OpenCV, the center of the first pixel has the coordinates (0, 0)
        self.rm_image = self.create_rotation_matrix(offset=-0.5)

    def apply_image(self, img, interp=None):
        """Rotates an (H, W) or (H, W, C) image."""
        if self._does_nothing_to(img):
            return img
        assert img.shape[:2] == (self.h, self.w), (
            f"the transform is for images of {(self.h, self.w)}, got {img.shape}"
        )
        return _opencv().warpAffine(
            img,
            self.rm_image,
            (int(self.bound_w), int(self.bound_h)),
            flags=interp if interp is not None else self.interp,
        )

    def apply_coords(self, coords):
        """Rotates (N, 2) coordinates."""
        points = np.asarray(coords, dtype=float)
        if self._does_nothing_to(points):
            return points
        return _opencv().transform(points[:, None, :], self.rm_coords)[:, 0, :]

    def _does_nothing_to(self, array) -> bool:
        return len(array) == 0 or self.angle % 360 == 0

    def apply_segmentation(self, segmentation):
        """Rotates a segmentation with nearest-neighbor interpolation."""
        return self.apply_image(segmentation, interp=_opencv().INTER_NEAREST)

    def create_rotation_matrix(self, offset=0):
        """Returns the (2, 3) affine matrix for coordinates shifted by ``offset``."""
        cv2 = _opencv()
        center = (float(self.center[0] + offset), float(self.center[1] + offset))
        matrix = cv2.getRotationMatrix2D(center, self.angle, 1)
        if self.expand:
            source_center = (self.image_center + offset)[None, None, :]
            rotated_center = cv2.transform(source_center, matrix)[0, 0, :]
            wanted_center = np.array([self.bound_w / 2, self.bound_h / 2]) + offset
            matrix[:, 2] += wanted_center - rotated_center
        return matrix

    def inverse(self):
        """Returns the rotation back and the crop to the old size; it needs ``expand``."""
        if not self.expand:
            raise NotImplementedError("a rotation without expand cannot be inverted")
        back = RotationTransform(
            self.bound_h, self.bound_w, -self.angle, expand=True, center=None, interp=self.interp
        )
        crop = CropTransform(
            (back.bound_w - self.w) // 2, (back.bound_h - self.h) // 2, self.w, self.h
        )
        return TransformList([back, crop])


def _opencv():
    try:
        import cv2
    except ImportError as e:
        raise ImportError("rotation needs OpenCV; install the package opencv-python") from e
    return cv2


class ColorTransform(Transform):
    """Changes the colors of the image.

    Args:
        op: Function from an image array to an image array of the same shape.
    """

    def __init__(self, op):
        if not callable(op):
            raise ValueError(f"op must be callable, got {op!r}")
        super().__init__()
        self.op = op

    def apply_image(self, img):
        """Applies the function."""
        return self.op(img)

    def apply_coords(self, coords):
        """Returns the coordinates unchanged."""
        return coords

    def apply_segmentation(self, segmentation):
        """Returns the segmentation unchanged."""
        return segmentation

    def inverse(self):
        """Returns no transform: the colors cannot be restored."""
        return NoOpTransform()


class PILColorTransform(ColorTransform):
    """``ColorTransform`` for a function from PIL image to PIL image."""

    def apply_image(self, img):
        """Applies the function."""
        return np.asarray(self.op(Image.fromarray(img)))
