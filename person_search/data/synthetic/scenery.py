# SPDX-License-Identifier: Apache-2.0
"""Places: streets, malls, squares and corridors without people.

Shape shorthand: H, W pixels of the painting.
"""

import math

import cv2
import numpy as np

from .painter import SCALE, Painter

KINDS = ("street", "mall", "square", "corridor")
OUTDOORS = ("street", "square")


class PlacePainter(Painter):
    """Paints one place as a whole."""

    def paint(self, kind: str) -> np.ndarray:
        """Returns the painted place (H, W, 3) uint8 BGR at final size."""
        {
            "street": self._street,
            "mall": self._mall,
            "square": self._square,
            "corridor": self._corridor,
        }[kind]()
        self.grain(3.0)
        size = (self.view.width // SCALE, self.view.height // SCALE)
        picture = cv2.resize(self.picture, size, interpolation=cv2.INTER_AREA)
        return np.clip(picture, 0, 255).astype(np.uint8)

    def _street(self) -> None:
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
        ground = self.picture[row:]
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

    def _square(self) -> None:
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

    def _mall(self) -> None:
        rng, view = self.rng, self.view
        far = view.row(rng.uniform(9, 13))
        unit = view.pixels_per_meter(far)
        wall = self.color(185, 225, 6)
        self.picture[: math.ceil(far)] = wall
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

    def _corridor(self) -> None:
        rng, view = self.rng, self.view
        half, tall = rng.uniform(2.6, 3.6), rng.uniform(2.9, 3.4)
        depth = rng.uniform(16, 24)
        wall = self.color(180, 222, 8)
        band = np.clip(wall * (0.55, 0.62, 0.7) + rng.normal(0, 25, 3), 30, 220)
        floor = self.color(130, 190, 12)
        self.picture[:] = 1.05 * wall
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
        end = [
            spot(-half, 0, depth),
            spot(half, 0, depth),
            spot(half, tall, depth),
            spot(-half, tall, depth),
        ]
        self.polygon(end, 0.85 * wall)
        glass = [
            spot(-0.9, 0, depth),
            spot(0.9, 0, depth),
            spot(0.9, 2.2, depth),
            spot(-0.9, 2.2, depth),
        ]
        self.polygon(glass, (242, 240, 236))
        for z in np.arange(1.5, depth, 2.6):
            lamp = [(-0.5, z), (0.5, z), (0.5, z + 1.2), (-0.5, z + 1.2)]
            self.polygon([spot(x, tall, q) for x, q in lamp], (248, 254, 255))
        self.reflection(view.row(depth), 0.12)
