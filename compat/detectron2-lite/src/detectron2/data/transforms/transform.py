# SPDX-License-Identifier: Apache-2.0
"""Deterministic transforms beside those of fvcore.

Coordinates are continuous: pixel (row i, column j) covers [j, j + 1) x [i, i + 1) in (x, y).
"""

from collections.abc import Callable

import numpy as np
import torch
from fvcore.transforms.transform import (
    CropTransform,
    HFlipTransform,
    NoOpTransform,
    Transform,
    TransformList,
)
from PIL import Image
from torch.nn import functional as F

__all__ = [
    "ColorTransform",
    "ExtentTransform",
    "PILColorTransform",
    "ResizeTransform",
    "RotationTransform",
]

_TORCH_MODES = {Image.NEAREST: "nearest", Image.BILINEAR: "bilinear", Image.BICUBIC: "bicubic"}


def _through_pil(img: np.ndarray, operation: Callable[[Image.Image], Image.Image]) -> np.ndarray:
    """Applies a PIL operation to an (H, W) or (H, W, C) array; PIL has no (H, W, 1)."""
    single = img.ndim == 3 and img.shape[2] == 1
    result = np.asarray(operation(Image.fromarray(img[:, :, 0] if single else img)))
    return result[:, :, None] if single else result


class ExtentTransform(Transform):
    """Takes a rectangle of the image and resizes it; it may reach over the image."""

    def __init__(self, src_rect, output_size, interp=Image.BILINEAR, fill=0):
        """
        Args:
            src_rect: x0, y0, x1, y1 in the image.
            output_size: (height, width) to resize it to.
            interp: PIL interpolation.
            fill: value of what lies outside of the image.
        """
        super().__init__()
        self._set_attributes(locals())

    def apply_image(self, img, interp=None):
        height, width = self.output_size
        return _through_pil(
            img,
            lambda image: image.transform(
                size=(width, height),
                method=Image.EXTENT,
                data=self.src_rect,
                resample=interp if interp else self.interp,
                fill=self.fill,
            ),
        )

    def apply_coords(self, coords):
        height, width = self.output_size
        x0, y0, x1, y1 = self.src_rect
        coords = coords.astype(np.float32)
        # about the centers of source and result
        coords[:, 0] -= 0.5 * (x0 + x1)
        coords[:, 1] -= 0.5 * (y0 + y1)
        coords[:, 0] *= width / (x1 - x0)
        coords[:, 1] *= height / (y1 - y0)
        coords[:, 0] += 0.5 * width
        coords[:, 1] += 0.5 * height
        return coords

    def apply_segmentation(self, segmentation):
        return self.apply_image(segmentation, interp=Image.NEAREST)


class ResizeTransform(Transform):
    """Resizes the image: by PIL if it is uint8, and else by PyTorch (without antialiasing)."""

    def __init__(self, h, w, new_h, new_w, interp=None):
        """
        Args:
            h: height of the image.
            w: width of the image.
            new_h: height wanted.
            new_w: width wanted.
            interp: PIL interpolation, bilinear by default.
        """
        super().__init__()
        self.h, self.w = h, w
        self.new_h, self.new_w = new_h, new_w
        self.interp = Image.BILINEAR if interp is None else interp

    def apply_image(self, img, interp=None):
        assert img.shape[:2] == (self.h, self.w), (
            f"the transform is for images of {(self.h, self.w)}, got {img.shape}"
        )
        assert img.ndim <= 4
        method = interp if interp is not None else self.interp
        if img.dtype == np.uint8:
            return _through_pil(img, lambda image: image.resize((self.new_w, self.new_h), method))

        # from_numpy takes no negative strides, which flips leave behind
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
        for axis, scale in enumerate((self.new_w * 1.0 / self.w, self.new_h * 1.0 / self.h)):
            # not "*=", which integer coordinates refuse
            coords[:, axis] = coords[:, axis] * scale
        return coords

    def apply_segmentation(self, segmentation):
        return self.apply_image(segmentation, interp=Image.NEAREST)

    def inverse(self):
        return ResizeTransform(self.new_h, self.new_w, self.h, self.w, self.interp)


class RotationTransform(Transform):
    """Rotates the image counter-clockwise. Needs OpenCV (the package opencv-python)."""

    def __init__(self, h, w, angle, expand=True, center=None, interp=None):
        """
        Args:
            h: height of the image.
            w: width of the image.
            angle: degrees.
            expand: enlarge the result so that all of the image is in it; False keeps the size.
            center: (x, y) to rotate about, by default the center; of no effect with expand.
            interp: OpenCV interpolation, linear by default.
        """
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
        # OpenCV counts coordinates from the center of the first pixel
        self.rm_image = self.create_rotation_matrix(offset=-0.5)

    def apply_image(self, img, interp=None):
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
        points = np.asarray(coords, dtype=float)
        if self._does_nothing_to(points):
            return points
        return _opencv().transform(points[:, None, :], self.rm_coords)[:, 0, :]

    def _does_nothing_to(self, array) -> bool:
        return len(array) == 0 or self.angle % 360 == 0

    def apply_segmentation(self, segmentation):
        return self.apply_image(segmentation, interp=_opencv().INTER_NEAREST)

    def create_rotation_matrix(self, offset=0):
        """Returns the (2, 3) affine matrix for coordinates that are shifted by ``offset``."""
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
        """Rotates back and crops to the size before; without ``expand`` too much is lost for it."""
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
    """Changes the colors by a function; nothing moves."""

    def __init__(self, op):
        """Takes a function from an image array to one of the same shape."""
        if not callable(op):
            raise ValueError(f"op must be callable, got {op!r}")
        super().__init__()
        self.op = op

    def apply_image(self, img):
        return self.op(img)

    def apply_coords(self, coords):
        return coords

    def apply_segmentation(self, segmentation):
        return segmentation

    def inverse(self):
        return NoOpTransform()


class PILColorTransform(ColorTransform):
    """As ``ColorTransform``, for a function from PIL image to PIL image."""

    def apply_image(self, img):
        return np.asarray(self.op(Image.fromarray(img)))


def _flip_rotated_boxes(transform, rotated_boxes):
    """Mirrors (N, 5) boxes (center x, center y, width, height, degrees) in place."""
    center_x, angle = rotated_boxes[:, 0], rotated_boxes[:, 4]
    center_x[:], angle[:] = transform.width - center_x, -angle
    return rotated_boxes


def _resize_rotated_boxes(transform, rotated_boxes):
    """Scales (N, 5) boxes in place. With unequal factors the result is the nearest rectangle."""
    scale_x = transform.new_w * 1.0 / transform.w
    scale_y = transform.new_h * 1.0 / transform.h
    radians = rotated_boxes[:, 4] * np.pi / 180.0
    cos, sin = np.cos(radians), np.sin(radians)
    rotated_boxes[:, 0] *= scale_x
    rotated_boxes[:, 1] *= scale_y
    rotated_boxes[:, 2] *= np.hypot(scale_x * cos, scale_y * sin)
    rotated_boxes[:, 3] *= np.hypot(scale_x * sin, scale_y * cos)
    rotated_boxes[:, 4] = np.arctan2(scale_x * sin, scale_y * cos) * 180 / np.pi
    return rotated_boxes


HFlipTransform.register_type("rotated_box", _flip_rotated_boxes)
ResizeTransform.register_type("rotated_box", _resize_rotated_boxes)
NoOpTransform.register_type("rotated_box", lambda transform, rotated_boxes: rotated_boxes)
