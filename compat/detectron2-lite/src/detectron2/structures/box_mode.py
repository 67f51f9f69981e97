# SPDX-License-Identifier: Apache-2.0
"""Box formats and the conversion between them."""

import math
from enum import IntEnum, unique

import numpy as np
import torch

_RawBox = list[float] | tuple[float, ...] | torch.Tensor | np.ndarray


@unique
class BoxMode(IntEnum):
    """Format of a box.

    The ``_ABS`` modes are in pixels. The ``_REL`` modes are relative to the image size and cannot
    be converted. Angles are in degrees, counter-clockwise.
    """

    XYXY_ABS = 0
    """x0, y0, x1, y1."""
    XYWH_ABS = 1
    """x0, y0, width, height."""
    XYXY_REL = 2
    """As XYXY_ABS, in [0, 1]."""
    XYWH_REL = 3
    """As XYWH_ABS, in [0, 1]."""
    XYWHA_ABS = 4
    """center x, center y, width, height, angle."""

    @staticmethod
    def convert(box: _RawBox, from_mode: "BoxMode", to_mode: "BoxMode") -> _RawBox:
        """Converts one box or an array of boxes to another mode.

        Args:
            box: List or tuple of 4 or 5 numbers, or (N, 4) or (N, 5) array or tensor.
            from_mode: Mode of ``box``.
            to_mode: Mode of the result.

        Returns:
            The converted boxes in the type of ``box``, which is returned itself if the modes are
            equal. A box with an angle becomes the smallest upright box that contains it.
        """
        if from_mode == to_mode:
            return box
        relative = (BoxMode.XYXY_REL, BoxMode.XYWH_REL)
        if from_mode in relative or to_mode in relative:
            raise AssertionError("boxes in relative coordinates cannot be converted")

        if isinstance(box, (list, tuple)):
            if len(box) not in (4, 5):
                raise AssertionError(
                    f"a box given as {type(box).__name__} must hold 4 or 5 numbers, got {len(box)}"
                )
            rows = torch.tensor(box)[None]
        elif isinstance(box, np.ndarray):
            rows = torch.from_numpy(box).clone()
        else:
            rows = box.clone()

        converter = _CONVERTERS.get((from_mode, to_mode))
        if converter is None:
            raise NotImplementedError(
                f"no conversion from {from_mode!r} to {to_mode!r}; "
                f"there are {', '.join(f'{a.name} to {b.name}' for a, b in _CONVERTERS)}"
            )
        rows = converter(rows)
        if isinstance(box, (list, tuple)):
            return type(box)(rows[0].tolist())
        return rows.numpy() if isinstance(box, np.ndarray) else rows


def _xyxy_to_xywh(rows: torch.Tensor) -> torch.Tensor:
    rows[..., 2:] -= rows[..., :2]
    return rows


def _xywh_to_xyxy(rows: torch.Tensor) -> torch.Tensor:
    rows[..., 2:] += rows[..., :2]
    return rows


def _xywh_to_xywha(rows: torch.Tensor) -> torch.Tensor:
    if rows.shape[-1] != 4:
        raise AssertionError(f"XYWH_ABS boxes have 4 numbers, got {rows.shape[-1]}")
    exact = rows.double()
    centers = exact[..., :2] + exact[..., 2:] / 2
    angles = exact.new_zeros(exact.shape[:-1] + (1,))
    return torch.cat((centers, exact[..., 2:], angles), dim=-1).to(rows.dtype)


def _xywha_to_xyxy(rows: torch.Tensor) -> torch.Tensor:
    if rows.shape[-1] != 5:
        raise AssertionError(f"XYWHA_ABS boxes have 5 numbers, got {rows.shape[-1]}")
    exact = rows.double()
    angle = exact[..., 4] * math.pi / 180.0
    cos, sin = angle.cos().abs(), angle.sin().abs()
    width, height = exact[..., 2], exact[..., 3]
    extent = torch.stack((cos * width + sin * height, cos * height + sin * width), dim=-1)
    centers = exact[..., :2]
    return torch.cat((centers - extent / 2, centers + extent / 2), dim=-1).to(rows.dtype)


_CONVERTERS = {
    (BoxMode.XYXY_ABS, BoxMode.XYWH_ABS): _xyxy_to_xywh,
    (BoxMode.XYWH_ABS, BoxMode.XYXY_ABS): _xywh_to_xyxy,
    (BoxMode.XYWH_ABS, BoxMode.XYWHA_ABS): _xywh_to_xywha,
    (BoxMode.XYWHA_ABS, BoxMode.XYXY_ABS): _xywha_to_xyxy,
}

# Pickles name the class by its public place, which exists in Detectron2 as well.
BoxMode.__module__ = "detectron2.structures"
