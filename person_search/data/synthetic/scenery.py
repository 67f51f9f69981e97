# SPDX-License-Identifier: Apache-2.0
"""Paints places without persons: streets, malls, squares and corridors.

Places are painted at twice the final size and reduced. The ground is computed per pixel from
its position in meters, so that tiles and lanes agree with the sizes of the persons.

Shape shorthand: H, W pixels of the painting.
"""

import math
from dataclasses import dataclass

import cv2
import numpy as np

KINDS = ("street", "mall", "square", "corridor")
OUTDOORS = ("street", "square")
SCALE = 2
"""Places are painted at this multiple of the final size."""


@dataclass(frozen=True)
class View:
    """Geometry of a camera, in pixels of one image.

    Attributes:
        width: Image width.
        height: Image height.
        horizon: Row of the horizon.
        eye: Height of the camera above the ground in meters.
        center: Column of the vanishing point.
    """

    width: int
    height: int
    horizon: float
    eye: float
    center: float

    def scaled(self, factor: float) -> "View":
        """Returns the same view for an image ``factor`` times as large."""
        return View(
            round(self.width * factor),
            round(self.height * factor),
            self.horizon * factor,
            self.eye,
            self.center * factor,
        )

    @property
    def focal(self) -> float:
        """Focal length in pixels."""
        return 0.9 * self.width

    def row(self, distance: float) -> float:
        """Returns the row of the ground at a distance in meters."""
        return self.horizon + self.focal * self.eye / distance

    def pixels_per_meter(self, row: float) -> float:
        """Returns the scale of an upright object whose foot is at ``row``."""
        return (row - self.horizon) / self.eye


class PlacePainter:
    """Paints one place.

    Args:
        rng: Random stream of this place.
        view: View of the camera at final size.
    """

    def __init__(self, rng: np.random.Generator, view: View) -> None:
        self.rng = rng
        self.view = view.scaled(SCALE)
        self.image = np.zeros((self.view.height, self.view.width, 3), np.float32)

    def paint(self, kind: str) -> np.ndarray:
        """Paints the whole place.

        Args:
            kind: One of ``KINDS``.

        Returns:
            Painting (H, W, 3) uint8 BGR at final size.
        """
        getattr(self, f"_paint_{kind}")()
        self.grain(3.0)
        size = (self.view.width // SCALE, self.view.height // SCALE)
        image = cv2.resize(self.image, size, interpolation=cv2.INTER_AREA)
        return np.clip(image, 0, 255).astype(np.uint8)

    def _paint_street(self) -> None:
        rng, view = self.rng, self.view
        self.sky()
        far = view.row(rng.uniform(15, 19))
        self.buildings(far, view.pixels_per_meter(far), rng.uniform(9, 15))
        pave = self.color(140, 190, 8)
        self.tiles(far, pave, 0.93 * pave, 0.8, 0.5, 0.72 * pave)
        x, z, row = self.ground_coordinates(far)
        asphalt = self.color(82, 112, 4)
        near = rng.uniform(6.2, 8.0)
        road = (z > near) & (z < near + 5.2)
        ground = self.image[row:]
        ground[road] = asphalt
        lane = road & (np.abs(z - near - 2.6) < 0.09) & (np.mod(x, 3.0) < 1.6)
        ground[lane] = (215, 222, 222)
        curb = (np.abs(z - near) < 0.11) | (np.abs(z - near - 5.2) < 0.16)
        ground[curb] = np.minimum(1.2 * pave, 235)
        if rng.random() < 0.6:
            start = rng.uniform(-4, 1)
            zebra = road & (x > start) & (x < start + 3.2) & (np.mod(z - near, 0.9) < 0.45)
            ground[zebra] = (222, 224, 224)
        base = view.row(near + rng.uniform(3.2, 4.6))
        for slot in rng.permutation(4)[: int(rng.integers(1, 4))]:
            self.car(
                (slot / 4 + rng.uniform(0, 0.06)) * view.width, base, view.pixels_per_meter(base)
            )
        tree_base = view.row(near + 6.0)
        for _ in range(int(rng.integers(1, 4))):
            self.tree(rng.uniform(0, view.width), tree_base, view.pixels_per_meter(tree_base))

    def _paint_square(self) -> None:
        rng, view = self.rng, self.view
        self.sky()
        far = view.row(rng.uniform(22, 30))
        self.buildings(far, view.pixels_per_meter(far), rng.uniform(10, 18))
        pave = self.color(150, 200, 10)
        other = np.clip(pave * rng.uniform(0.8, 0.92) + rng.normal(0, 8, 3), 0, 255)
        self.tiles(far, pave, other, rng.uniform(0.9, 1.8), 0.0, 0.74 * pave)
        base = view.row(rng.uniform(13, 17))
        unit = view.pixels_per_meter(base)
        if rng.random() < 0.6:
            self.fountain(rng.uniform(0.2, 0.8) * view.width, base, unit)
        for _ in range(int(rng.integers(2, 5))):
            back = view.row(rng.uniform(14, 21))
            self.tree(rng.uniform(0, view.width), back, view.pixels_per_meter(back))

    def _paint_mall(self) -> None:
        rng, view = self.rng, self.view
        far = view.row(rng.uniform(9, 13))
        unit = view.pixels_per_meter(far)
        wall = self.color(185, 225, 6)
        self.image[: math.ceil(far)] = wall
        ceiling = max(0.0, far - rng.uniform(3.9, 4.6) * unit)
        self.box(0, 0, view.width, ceiling, 0.9 * wall)
        for lamp in np.arange(rng.uniform(0, 0.1), 1, rng.uniform(0.12, 0.2)):
            left = lamp * view.width
            self.box(
                left, 0.55 * ceiling, left + 0.06 * view.width, 0.72 * ceiling, (240, 252, 255)
            )
        x = -rng.uniform(0, 2) * unit
        while x < view.width:
            wide = rng.uniform(3.5, 6) * unit
            self.shop(x, far, wide, 3.3 * unit, unit)
            self.box(x + wide, ceiling, x + wide + 0.45 * unit, far, 0.93 * wall)
            self.box(x + wide + 0.36 * unit, ceiling, x + wide + 0.45 * unit, far, 0.8 * wall)
            x += wide + 0.45 * unit
        first = self.color(170, 215, 10)
        second = np.clip(first * rng.uniform(0.78, 0.93), 0, 255)
        self.tiles(far, first, second, rng.uniform(0.7, 1.3), 0.0, 0.85 * second)
        self.reflection(far, 0.22)

    def _paint_corridor(self) -> None:
        rng, view = self.rng, self.view
        half, tall = rng.uniform(2.6, 3.6), rng.uniform(2.9, 3.4)
        depth = rng.uniform(16, 24)
        wall = self.color(180, 222, 8)
        band = np.clip(wall * (0.55, 0.62, 0.7) + rng.normal(0, 25, 3), 30, 220)
        floor = self.color(130, 190, 12)
        self.image[:] = 1.05 * wall
        self.tiles(0, floor, 0.94 * floor, rng.uniform(0.6, 1.2), 0.0, 0.84 * floor)

        def spot(x: float, y: float, z: float) -> tuple[float, float]:
            unit = view.focal / z
            return view.center + x * unit, view.horizon + (view.eye - y) * unit

        def panel(side: int, z1: float, z2: float, low: float, high: float, color) -> None:
            corners = [(z1, low), (z2, low), (z2, high), (z1, high)]
            self.polygon([spot(side * half, y, z) for z, y in corners], color)

        near = 0.7
        for side, tone in ((-1, 0.96), (1, 0.88)):
            panel(side, near, depth, 0, tall, tone * wall)
            panel(side, near, depth, 0, 0.9, tone * band)
            panel(side, near, depth, 0, 0.14, 0.5 * tone * band)
            for z in np.arange(rng.uniform(2, 4), depth, rng.uniform(3.0, 4.2)):
                door = self.color(70, 170, 20)
                panel(side, z, min(z + 1.1, depth), 0, 2.15, 0.6 * door)
                panel(side, z + 0.08, min(z + 1.02, depth), 0, 2.08, tone * door)
                panel(side, z + 1.5, min(z + 2.2, depth), 1.3, 1.95, rng.integers(60, 230, 3))
        for reach, high, color in ((half, tall, 0.85 * wall), (0.9, 2.2, (242, 240, 236))):
            corners = [(-reach, 0), (reach, 0), (reach, high), (-reach, high)]
            self.polygon([spot(x, y, depth) for x, y in corners], color)
        for z in np.arange(1.5, depth, 2.6):
            lamp = [(-0.5, z), (0.5, z), (0.5, z + 1.2), (-0.5, z + 1.2)]
            self.polygon([spot(x, tall, q) for x, q in lamp], (248, 254, 255))
        self.reflection(view.row(depth), 0.12)

    # -- tools --------------------------------------------------------------------------------

    def color(self, low: int, high: int, spread: float = 12) -> np.ndarray:
        """Returns a random color (3,) around a gray level between ``low`` and ``high``."""
        base = self.rng.uniform(low, high)
        return np.clip(base + self.rng.normal(0, spread, 3), 0, 255)

    def box(self, x1: float, y1: float, x2: float, y2: float, color) -> None:
        """Fills a rectangle."""
        start, end = (round(x1), round(y1)), (round(x2), round(y2))
        cv2.rectangle(self.image, start, end, tuple(map(float, color)), -1)

    def polygon(self, points, color) -> None:
        """Fills an outline (N, 2)."""
        fixed = np.round(np.asarray(points, np.float64) * 16).astype(np.int32)
        cv2.fillPoly(self.image, [fixed], tuple(map(float, color)), cv2.LINE_8, 4)

    def line(self, start, end, color, thickness: float) -> None:
        """Draws a straight line."""
        first, last = ((round(p[0]), round(p[1])) for p in (start, end))
        cv2.line(self.image, first, last, tuple(map(float, color)), max(1, round(thickness)))

    def grain(self, strength: float) -> None:
        """Adds fine and coarse noise, so that no surface is uniform."""
        noise = self.rng.standard_normal(self.image.shape[:2]).astype(np.float32)
        soft = cv2.GaussianBlur(noise, (0, 0), 12)
        self.image += (strength * noise + strength * soft / soft.std())[..., None]

    def ground_coordinates(self, below: float) -> tuple[np.ndarray, np.ndarray, int]:
        """Returns meters to the right and ahead of each pixel below a row, and the first row."""
        top = max(0, math.ceil(max(below, self.view.horizon + 2)))
        rows = np.arange(top, self.view.height, dtype=np.float32)[:, None] - self.view.horizon
        cols = np.arange(self.view.width, dtype=np.float32)[None, :] - self.view.center
        depth = self.view.focal * self.view.eye / rows
        return cols * self.view.eye / rows, np.broadcast_to(depth, (len(rows), cols.size)), top

    def tiles(self, top: float, first, second, size: float, bond: float, joint) -> None:
        """Covers the ground with checkered tiles, or with bricks where ``bond`` > 0."""
        x, z, row = self.ground_coordinates(top)
        course = np.floor(z / size)
        x = x + bond * size * np.mod(course, 2)
        column = np.floor(x / size)
        odd = np.mod(course + column, 2) if bond == 0 else _hash01(course, column)
        ground = np.asarray(first) + odd[..., None] * (np.asarray(second) - np.asarray(first))
        near_joint = (np.mod(x / size, 1) < 0.05) | (np.mod(z / size, 1) < 0.05)
        fade = np.clip(6.0 / z, 0, 1)[..., None]
        ground = np.where(
            near_joint[..., None], fade * np.asarray(joint) + (1 - fade) * ground, ground
        )
        mean = 0.5 * (np.asarray(first) + np.asarray(second))
        self.image[row:] = fade * ground + (1 - fade) * (0.7 * mean + 0.3 * ground)

    def sky(self) -> None:
        """Fills everything above the horizon, clear or overcast."""
        low = np.array((236, 226, 214)) + self.rng.normal(0, 8, 3)
        high = np.array((226, 186, 140)) if self.rng.random() < 0.6 else np.array((206, 202, 198))
        rows = np.linspace(1, 0, max(1, math.ceil(self.view.horizon + 4)))[:, None, None]
        self.image[: len(rows)] = low + rows * (high - low)

    # -- things -------------------------------------------------------------------------------

    def buildings(self, base: float, unit: float, tall: float) -> None:
        """Draws a row of houses that stand at row ``base``; ``unit`` is in pixels per meter."""
        x = -self.rng.uniform(0, 4) * unit
        while x < self.view.width:
            wide = self.rng.uniform(5, 11) * unit
            high = self.rng.uniform(0.7, 1.2) * tall * unit
            wall = self.color(95, 205, 16)
            self.box(x, base - high, x + wide, base, wall)
            self.box(x, base - high, x + wide, base - high + 0.35 * unit, 0.75 * wall)
            self.box(x + wide - 0.12 * unit, base - high, x + wide, base, 0.8 * wall)
            glass = self.color(50, 120, 10) + (18, 8, 0)
            step_x, step_y = self.rng.uniform(1.6, 2.4) * unit, self.rng.uniform(2.6, 3.2) * unit
            shop = 3.1 * unit
            y = base - high + 0.8 * unit
            while y + 1.5 * unit < base - shop:
                left = x + 0.5 * unit
                while left + 1.1 * unit < x + wide - 0.2 * unit:
                    self.box(left - 0.08 * unit, y - 0.08 * unit, left + 1.18 * unit,
                              y + 1.58 * unit, np.minimum(1.2 * wall, 245))  # fmt: skip
                    self.box(left, y, left + 1.1 * unit, y + 1.5 * unit,
                              glass * self.rng.uniform(0.7, 1.3))  # fmt: skip
                    left += step_x
                y += step_y
            self.shop(x + 0.3 * unit, base, wide - 0.6 * unit, 2.8 * unit, unit)
            x += wide

    def shop(self, x: float, base: float, wide: float, high: float, unit: float) -> None:
        """Draws a shop front: sign, window with goods and door."""
        sign = self.rng.integers(30, 225, 3).astype(float)
        self.box(x, base - high, x + wide, base, self.color(60, 110))
        self.box(x, base - high, x + wide, base - 0.78 * high, sign)
        ink = (245, 245, 245) if sign.mean() < 130 else (30, 30, 30)
        pen = x + 0.15 * wide
        while pen < x + 0.8 * wide:  # letters, too small to read
            step = self.rng.uniform(0.18, 0.34) * unit
            self.box(pen, base - 0.94 * high, pen + 0.7 * step, base - 0.84 * high, ink)
            pen += step + (0.2 * unit if self.rng.random() < 0.2 else 0)
        glow = self.color(150, 215, 8) + (-10, 6, 16)
        self.box(x + 0.06 * wide, base - 0.72 * high, x + 0.68 * wide, base - 0.12 * high, glow)
        for _ in range(int(self.rng.integers(3, 8))):
            left = x + self.rng.uniform(0.08, 0.6) * wide
            size = self.rng.uniform(0.15, 0.4) * unit
            low = base - self.rng.uniform(0.14, 0.4) * high
            self.box(left, low - 1.6 * size, left + size, low, self.rng.integers(40, 220, 3))
        self.box(x + 0.74 * wide, base - 0.72 * high, x + 0.95 * wide, base, 0.55 * glow)
        self.box(x + 0.765 * wide, base - 0.68 * high, x + 0.925 * wide, base - 0.06 * high,
                  0.8 * glow)  # fmt: skip

    def tree(self, x: float, base: float, unit: float) -> None:
        """Draws a tree with its trunk at (x, base); ``unit`` is in pixels per meter."""
        high = self.rng.uniform(3.6, 6.0) * unit
        bark = np.array((46, 62, 78)) * self.rng.uniform(0.8, 1.2)
        self.box(x - 0.13 * unit, base - 0.6 * high, x + 0.13 * unit, base, bark)
        leaf = np.array((52, 118, 74)) * self.rng.uniform(0.75, 1.2)
        clumps = self.rng.normal(0, 1, (9, 2)) * (0.75 * unit, 0.12 * high)
        for index in range(260):
            clump = clumps[int(self.rng.integers(len(clumps)))]
            spread = clump + self.rng.normal(0, 0.34, 2) * unit
            center = (round(x + spread[0]), round(base - 0.74 * high + spread[1]))
            lit = 1.0 - 0.28 * spread[1] / unit  # lighter towards the sky
            tone = leaf * np.clip(lit, 0.55, 1.4) * (0.8 + 0.3 * index / 260)
            tone = np.clip(tone * self.rng.uniform(0.86, 1.14), 0, 235)
            radius = round(self.rng.uniform(0.07, 0.2) * unit)
            cv2.circle(self.image, center, max(1, radius), tuple(map(float, tone)), -1)

    def car(self, x: float, base: float, unit: float) -> None:
        """Draws a parked car from the side, with its left end at ``x``."""
        paint = self.rng.integers(30, 230, 3).astype(float)
        body = np.array([(0, -0.35), (0.1, -0.8), (0.9, -0.92), (1.45, -1.42), (2.95, -1.45),
                         (3.6, -0.95), (4.15, -0.8), (4.25, -0.35)])  # fmt: skip
        glass = np.array([(1.1, -0.92), (1.53, -1.33), (2.88, -1.36), (3.4, -0.95)])
        if self.rng.random() < 0.5:
            body[:, 0], glass[:, 0] = 4.25 - body[:, 0], 4.25 - glass[:, 0]
        shadow = ellipse_points(x + 2.1 * unit, base - 0.02 * unit, 2.3 * unit, 0.14 * unit)
        self.polygon(shadow, (46, 44, 44))
        self.polygon(body * unit + (x, base), paint)
        self.polygon(glass * unit + (x, base), (92, 76, 66))
        self.box(x + 2.18 * unit, base - 1.36 * unit, x + 2.28 * unit, base - 0.9 * unit, paint)
        self.box(
            x + 0.05 * unit, base - 0.55 * unit, x + 4.2 * unit, base - 0.5 * unit, 0.75 * paint
        )
        for wheel in (0.85, 3.4):
            center = (round(x + wheel * unit), round(base - 0.33 * unit))
            cv2.circle(self.image, center, max(1, round(0.34 * unit)), (34, 32, 32), -1)
            cv2.circle(self.image, center, max(1, round(0.18 * unit)), (150, 150, 150), -1)

    def fountain(self, x: float, base: float, unit: float) -> None:
        """Draws a round fountain with jets around column ``x``."""
        stone = self.color(150, 190, 6)
        self.polygon(ellipse_points(x, base, 2.6 * unit, 0.5 * unit), 0.7 * stone)
        self.box(x - 2.6 * unit, base - 0.6 * unit, x + 2.6 * unit, base, 0.85 * stone)
        self.polygon(ellipse_points(x, base - 0.6 * unit, 2.6 * unit, 0.5 * unit), stone)
        self.polygon(ellipse_points(x, base - 0.58 * unit, 2.3 * unit, 0.4 * unit), (186, 150, 104))
        self.box(x - 0.2 * unit, base - 1.9 * unit, x + 0.2 * unit, base - 0.6 * unit, 0.9 * stone)
        self.polygon(ellipse_points(x, base - 1.9 * unit, 0.9 * unit, 0.22 * unit), stone)
        for angle in np.linspace(-0.8, 0.8, 9):
            tip = (x + 1.4 * unit * angle, base - (2.7 - 1.5 * angle**2) * unit)
            self.line((x, base - 1.95 * unit), tip, (235, 228, 220), 0.05 * unit)

    def reflection(self, row: float, strength: float) -> None:
        """Mirrors the content above ``row`` in the floor, fading towards the camera."""
        top = math.ceil(row)
        rows = min(top, self.view.height - top)
        mirrored = cv2.GaussianBlur(self.image[top - rows : top][::-1], (0, 0), 3, sigmaY=7)
        fade = strength * np.linspace(1, 0, rows, dtype=np.float32)[:, None, None]
        self.image[top : top + rows] *= 1 - fade
        self.image[top : top + rows] += fade * mirrored


def ellipse_points(x: float, y: float, rx: float, ry: float) -> np.ndarray:
    """Returns the outline (24, 2) of an upright ellipse."""
    turn = np.linspace(0, 2 * math.pi, 24, endpoint=False)
    return np.stack([x + rx * np.cos(turn), y + ry * np.sin(turn)], 1)


def _hash01(row: np.ndarray, column: np.ndarray) -> np.ndarray:
    """Returns a fixed pseudo-random number in 0..1 for each tile."""
    return np.mod(np.abs(np.sin(row * 12.9898 + column * 78.233) * 43758.5453), 1.0)
