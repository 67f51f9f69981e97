# SPDX-License-Identifier: Apache-2.0
"""Draws street furniture that stands between persons and hides parts of them."""

import math

import cv2
import numpy as np

from .canvas import FigureCanvas, ellipse_outline, smooth_outline

PROPS = {"pole": 2.9, "bollard": 0.95, "bench": 0.9, "planter": 1.25, "bin": 1.0, "sign": 2.2}
"""Heights of all kinds of furniture in meters."""

_OVERSAMPLING = 2


def _prop_palette(rng: np.random.Generator) -> np.ndarray:
    """Samples the colors of metal (1), wood (2), leaves (3) and paint (4)."""
    palette = np.zeros((13, 3), np.float32)
    palette[1] = rng.uniform(40, 110) + rng.normal(0, 8, 3)
    palette[2] = np.array((58, 88, 128)) * rng.uniform(0.8, 1.25)
    palette[3] = np.array((54, 122, 66)) * rng.uniform(0.8, 1.2)
    palette[4] = rng.uniform(40, 225, 3)
    return palette


def _draw_parts(
    canvas: FigureCanvas, kind: str, rng: np.random.Generator, middle: float, ground: float
) -> None:
    unit = canvas.unit

    def box(x1: float, y1: float, x2: float, y2: float) -> np.ndarray:
        """Returns the outline of a box in meters, to the right of the middle and above ground."""
        left, right = middle + x1 * unit, middle + x2 * unit
        top, low = ground - y2 * unit, ground - y1 * unit
        return np.array([(left, top), (right, top), (right, low), (left, low)], np.float64)

    if kind == "pole":
        canvas.solid(box(-0.065, 0, 0.065, 2.86), 1)
        canvas.solid(box(-0.13, 0, 0.13, 0.22), 1)
    elif kind == "bollard":
        canvas.solid(box(-0.09, 0, 0.09, 0.9), 1)
        canvas.fill(box(-0.09, 0.68, 0.09, 0.78), 4)
    elif kind == "bench":
        for x in (-0.8, 0.8):
            canvas.solid(box(x - 0.05, 0, x + 0.05, 0.85), 1)
        for y in (0.38, 0.56, 0.74):
            canvas.solid(box(-0.98, y, 0.98, y + 0.11), 2)
    elif kind == "planter":
        canvas.solid(smooth_outline(box(-0.4, 0, 0.4, 0.55), 1), 4)
        for _ in range(26):
            x, y = rng.normal(0, 0.2), rng.uniform(0.55, 1.05)
            center = (middle + np.clip(x, -0.42, 0.42) * unit, ground - y * unit)
            leaf = ellipse_outline(center, (0.13 * unit, 0.1 * unit), rng.uniform(0, 3), 9)
            canvas.fill(leaf, 3, int(rng.integers(90, 160)))
    elif kind == "bin":
        canvas.solid(smooth_outline(box(-0.26, 0, 0.26, 0.88), 1), 4)
        canvas.solid(box(-0.29, 0.82, 0.29, 0.92), 1)
    else:
        canvas.solid(box(-0.035, 0, 0.035, 2.1), 1)
        center = (middle, ground - 1.85 * unit)
        canvas.solid(ellipse_outline(center, (0.28 * unit, 0.28 * unit)), 4)
        canvas.fill(box(-0.18, 1.81, 0.18, 1.89), 1, 190)


def draw_prop(
    kind: str, rng: np.random.Generator, pixels_per_meter: float, light: float, ambient: float
) -> tuple[np.ndarray, np.ndarray, tuple[int, int]]:
    """Draws one piece of furniture.

    Args:
        kind: Key of ``PROPS``.
        rng: Random stream for colors and details.
        pixels_per_meter: Scale of the final image.
        light: Horizontal light direction, -1 to 1.
        ambient: Flatness of the light, 0 to 1.

    Returns:
        Color, alpha and ground point, as :func:`.person.draw_person` returns them.
    """
    unit = _OVERSAMPLING * pixels_per_meter
    half = 1.05 if kind == "bench" else 0.55
    width, height = math.ceil(2 * half * unit), math.ceil((PROPS[kind] + 0.1) * unit)
    canvas = FigureCanvas((width, height), light, unit)
    ground, middle = height - 0.04 * unit, width / 2
    palette = _prop_palette(rng)
    _draw_parts(canvas, kind, rng, middle, ground)
    fold_x, fold_y = (int(v) for v in rng.integers(0, 512, 2))
    color, alpha, (left, top) = canvas.render(palette, (fold_x, fold_y), ambient)
    size = tuple(max(1, round(side / _OVERSAMPLING)) for side in alpha.shape[::-1])
    color = cv2.resize(color, size, interpolation=cv2.INTER_AREA)
    alpha = cv2.resize(alpha, size, interpolation=cv2.INTER_AREA)
    foot = (round((middle - left) / _OVERSAMPLING), round((ground - top) / _OVERSAMPLING))
    return color, alpha, foot
