# SPDX-License-Identifier: Apache-2.0
"""Draws one person: a look in a pose, as a color image with alpha."""

import math

import cv2
import numpy as np

from .bags import draw_backpack, draw_hung_bag, draw_straps
from .body import draw_arm, draw_leg, draw_trunk, lay_pattern
from .figure import Figure, look_palette
from .head import draw_hanging_hair, draw_head
from .looks import Look
from .pose import Pose


def draw_parts(fig: Figure) -> None:
    """Draws all parts, far ones first."""
    far = 1 if fig.side > 0 else -1
    facing = fig.front > 0
    if facing:
        draw_backpack(fig)
        draw_hanging_hair(fig)
    arms_split = abs(fig.side) > 0.35
    draw_arm(fig, far, lift=-14)
    draw_leg(fig, far, lift=-12)
    draw_leg(fig, -far, lift=0)
    if not arms_split and not facing:
        draw_arm(fig, -far, lift=0)
    draw_trunk(fig)
    draw_straps(fig)
    draw_head(fig)
    if not facing:
        draw_hanging_hair(fig)
        draw_backpack(fig)
    if arms_split or facing:
        draw_arm(fig, -far, lift=4)
    if facing and not arms_split:
        draw_arm(fig, far, lift=0)
    draw_hung_bag(fig)
    lay_pattern(fig)


def draw_person(
    look: Look,
    pose: Pose,
    height: float,
    light: float,
    pitch: float,
    ambient: float,
    folds: tuple[int, int],
) -> tuple[np.ndarray, np.ndarray, tuple[int, int]]:
    """Draws a person.

    Args:
        look: attributes of the identity.
        pose: what the person does at this moment.
        height: height in pixels of a person of stature 1 body height, head to ground.
        light: horizontal light direction, -1..1.
        pitch: how far the camera looks down, radians.
        ambient: 0..1, how flat the light is.
        folds: offset of the cloth's texture.

    Returns:
        Color (h, w, 3) float32 BGR 0..255 multiplied by alpha, alpha (h, w) float32 0..1, and the
        point (x, y) of that image that stands on the ground.
    """
    figure = Figure(look, pose, height, light, pitch)
    draw_parts(figure)
    color, alpha, (x, y) = figure.canvas.render(look_palette(look), folds, ambient)
    h, w = alpha.shape
    # keep whole output pixels: the cut starts and ends where a reduced pixel does
    left, top = math.floor(x * figure.scale), math.floor(y * figure.scale)
    right, low = math.ceil((x + w) * figure.scale), math.ceil((y + h) * figure.scale)
    size = (right - left, low - top)
    shift = (x * figure.scale - left, y * figure.scale - top)
    matrix = np.array([[figure.scale, 0, shift[0]], [0, figure.scale, shift[1]]], np.float64)
    color, alpha = (_reduce(m, matrix, size) for m in (color, alpha))
    foot = figure.at(np.array((0.0, 0.0))) * figure.scale
    return color, alpha, (round(float(foot[0])) - left, round(float(foot[1])) - top)


def _reduce(picture: np.ndarray, matrix: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Cuts and shrinks an image; area averaging as a box blur before bilinear sampling."""
    factor = 1.0 / matrix[0, 0]
    if factor > 1.3:
        side = max(2, round(factor))
        picture = cv2.blur(picture, (side, side), borderType=cv2.BORDER_CONSTANT)
    return cv2.warpAffine(picture, matrix, size, flags=cv2.INTER_LINEAR)
