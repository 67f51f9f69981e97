# SPDX-License-Identifier: Apache-2.0
"""The frame of one drawn person: materials, sizes, joints and the surface they are drawn on.

Body heights (u right, v up) are turned into pixels by ``Figure.at``; the modules ``body``,
``head`` and ``bags`` draw the parts.
"""

import math

import numpy as np

from .canvas import FigureCanvas, smooth_outline
from .looks import CLOTH_COLORS, HAIR_COLORS, SKIN_COLORS, Look
from .pose import Pose, Skeleton

SKIN, TOP, TOP_SECOND, BOTTOM, SHOE, HAIR, HAT, BAG, EYE, LIP, SOLE, STRAP = range(1, 13)

_HALF_WIDTH = 0.52  # of the surface, in body heights; room for a full stride
_ABOVE, _BELOW = 1.08, 0.09
_OVERSAMPLING = 2.0
_LEAST_UNIT = 150  # pixels per body height, below which thin parts would vanish


def look_palette(look: Look) -> np.ndarray:
    """BGR color (13, 3) float32 of each material of this look."""
    colors = np.zeros((13, 3), np.float32)

    def put(material: int, rgb: tuple[int, int, int], tint: int) -> None:
        colors[material] = np.clip(np.asarray(rgb[::-1], np.float32) + tint, 8, 250)

    put(SKIN, SKIN_COLORS[look.skin], 0)
    put(TOP, CLOTH_COLORS[look.top_color], look.tint[0])
    put(TOP_SECOND, CLOTH_COLORS[look.second_color], look.tint[1])
    put(BOTTOM, CLOTH_COLORS[look.bottom_color], look.tint[2])
    put(SHOE, CLOTH_COLORS[look.shoe_color], look.tint[3])
    put(HAIR, HAIR_COLORS[look.hair_color], look.tint[4])
    put(HAT, CLOTH_COLORS[look.hat_color], look.tint[5])
    put(BAG, CLOTH_COLORS[look.bag_color], look.tint[5])
    put(STRAP, CLOTH_COLORS[look.bag_color], look.tint[5] - 22)
    put(EYE, (34, 26, 24), 0)
    colors[LIP] = colors[SKIN] * (0.62, 0.55, 0.78)
    put(SOLE, (212, 210, 204), 0)
    return colors


class Figure:
    """One person in a pose, with a canvas of its own.

    Args:
        look: what the person looks like.
        pose: what the person does.
        height: body height in pixels of the final image.
        light: horizontal light direction, -1..1.
        pitch: how far the camera looks down, radians.
    """

    def __init__(self, look: Look, pose: Pose, height: float, light: float, pitch: float) -> None:
        self.look, self.pose = look, pose
        self.unit = max(_LEAST_UNIT, _OVERSAMPLING * height)
        self.scale = height / self.unit
        size = (round(2 * _HALF_WIDTH * self.unit), round((_ABOVE + _BELOW) * self.unit))
        self.canvas = FigureCanvas(size, light, self.unit)
        self.breadth = 0.098 * (0.35 + 0.65 * look.build)
        self.bones = Skeleton(pose, self.breadth, pitch)
        self.front = math.cos(pose.yaw)
        self.side = math.sin(pose.yaw)

    def at(self, point: np.ndarray) -> np.ndarray:
        """(u, v[, d]) body heights, any leading shape, to (x, y) pixels of the surface."""
        point = np.asarray(point, np.float64)
        x = (point[..., 0] + _HALF_WIDTH) * self.unit
        y = (_ABOVE - point[..., 1]) * self.unit
        return np.stack([x, y], axis=-1)

    def joint(self, name: str, side: int) -> np.ndarray:
        """Pixel position of a joint."""
        return self.at(self.bones.joints[f"{name}{side:+d}"])

    def spread(self, half_width: float, half_depth: float) -> float:
        """Half width on screen of a body cross section at this yaw."""
        return math.hypot(half_width * self.front, half_depth * self.side)

    def row(self, half_width: float, half_depth: float, y: float) -> tuple[np.ndarray, np.ndarray]:
        """Left and right screen points of the trunk's outline at height ``y``."""
        center = self.bones.body(0.0, 0.0, y)
        half = self.spread(half_width, half_depth)
        return center[:2] - (half, 0.0), center[:2] + (half, 0.0)

    def outline(self, rows: list[tuple[float, float, float]], rounds: int = 2) -> np.ndarray:
        """Rounded outline of the trunk through rows of (half width, half depth, height)."""
        pairs = [self.row(*row) for row in rows]
        points = [left for left, _ in pairs] + [right for _, right in reversed(pairs)]
        return smooth_outline(self.at(np.stack(points)), rounds)

    @property
    def skull(self) -> tuple[np.ndarray, float, float]:
        """Pixel center of the head, and its two radii."""
        center = self.at(self.bones.body(0, 0.016, 0.928)[:2])
        return center, self.unit * self.spread(0.05, 0.057), 0.068 * self.unit
