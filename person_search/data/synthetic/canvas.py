# SPDX-License-Identifier: Apache-2.0
"""Canvas of one figure: a map of materials and a map of light, merged at the end.

Two single-channel maps are quick to draw, and a pattern can be applied to a garment after folds
and limbs are drawn. Smooth edges come from drawing large and reducing by area.

Shape shorthand: H, W pixels of the surface; N points. Points are (x, y) pixels, y down.
"""

import functools
import math

import cv2
import numpy as np

NEUTRAL = 128
"""Light level that keeps the color of the material; 255 nearly doubles it."""

_SHIFT = 4  # OpenCV's fixed-point bits for sub-pixel coordinates
_HALF_CIRCLE = np.exp(1j * np.linspace(-0.5 * math.pi, 0.5 * math.pi, 7))


def smooth_outline(points: np.ndarray, rounds: int = 2) -> np.ndarray:
    """Rounds the corners of a closed outline (N, 2) by repeated corner cutting."""
    points = np.asarray(points, np.float64)
    for _ in range(rounds):
        after = np.roll(points, -1, axis=0)
        cut = np.empty((2 * len(points), 2))
        cut[0::2] = 0.75 * points + 0.25 * after
        cut[1::2] = 0.25 * points + 0.75 * after
        points = cut
    return points


def ellipse_outline(center, radii, angle: float = 0.0, count: int = 20) -> np.ndarray:
    """Returns the outline (count, 2) of an ellipse; ``angle`` rotates it clockwise, in radians."""
    turn = np.linspace(0.0, 2 * math.pi, count, endpoint=False)
    x, y = radii[0] * np.cos(turn), radii[1] * np.sin(turn)
    c, s = math.cos(angle), math.sin(angle)
    return np.stack([center[0] + c * x - s * y, center[1] + s * x + c * y], axis=1)


def limb_outline(start, end, radius_start: float, radius_end: float) -> np.ndarray:
    """Returns the outline (14, 2) of a tapered rod with round ends."""
    # complex numbers: one multiplication turns both half circles into the rod's direction
    first, last = complex(start[0], start[1]), complex(end[0], end[1])
    along = last - first
    along = along / abs(along) if along else 1.0 + 0.0j
    points = np.empty(14, np.complex128)
    points[:7] = last + radius_end * along * _HALF_CIRCLE
    points[7:] = first - radius_start * along * _HALF_CIRCLE
    return points.view(np.float64).reshape(14, 2)


@functools.lru_cache(maxsize=1)
def _fold_texture() -> np.ndarray:
    """Returns soft gray waves (512, 512) float32 around 0, the same in every process."""
    noise = np.random.Generator(np.random.PCG64(7)).standard_normal((512, 512)).astype(np.float32)
    wide = cv2.GaussianBlur(noise, (0, 0), sigmaX=9, sigmaY=3.5, borderType=cv2.BORDER_REFLECT)
    fine = cv2.GaussianBlur(noise, (0, 0), sigmaX=1.2, borderType=cv2.BORDER_REFLECT)
    return wide / wide.std() * 7 + fine / fine.std() * 2.5


class FigureCanvas:
    """Material and light maps of one figure, (H, W) uint8 each; material 0 is empty.

    Args:
        size: Width and height in pixels.
        light: Horizontal direction of the light, -1 (from the left) to 1 (from the right).
        unit: Pixels per body height; outlines and blur scale with it.
    """

    def __init__(self, size: tuple[int, int], light: float, unit: float) -> None:
        width, height = size
        self.material = np.zeros((height, width), np.uint8)
        self.shade = np.full((height, width), NEUTRAL, np.uint8)
        self.light = light
        self.unit = unit

    def fill(self, outline: np.ndarray, material: int, shade: int = NEUTRAL) -> None:
        """Fills an outline (N, 2) with one material and light level."""
        points = [np.round(outline * (1 << _SHIFT)).astype(np.int32)]
        cv2.fillPoly(self.material, points, material, cv2.LINE_8, _SHIFT)
        cv2.fillPoly(self.shade, points, shade, cv2.LINE_8, _SHIFT)

    def tone(self, outline: np.ndarray, shade: int) -> None:
        """Sets the light inside an outline and keeps the material."""
        points = [np.round(outline * (1 << _SHIFT)).astype(np.int32)]
        cv2.fillPoly(self.shade, points, shade, cv2.LINE_8, _SHIFT)

    def edge(self, outline: np.ndarray, shade: int = 74) -> None:
        """Darkens a thin line around an outline, so that a limb stands out from its background."""
        points = [np.round(outline * (1 << _SHIFT)).astype(np.int32)]
        thickness = max(1, round(0.008 * self.unit))
        cv2.polylines(self.shade, points, True, shade, thickness, cv2.LINE_8, _SHIFT)

    def line(self, points: np.ndarray, width: float, material: int | None, shade: int) -> None:
        """Draws an open line of a width in pixels; material None changes the light only."""
        fixed = [np.round(np.asarray(points) * (1 << _SHIFT)).astype(np.int32)]
        thickness = max(1, round(width))
        if material is not None:
            cv2.polylines(self.material, fixed, False, material, thickness, cv2.LINE_8, _SHIFT)
        cv2.polylines(self.shade, fixed, False, shade, thickness, cv2.LINE_8, _SHIFT)

    def solid(self, outline: np.ndarray, material: int, edge: bool = True, lift: int = 0) -> None:
        """Fills an outline as a round body: dark rim, lit side, bright core.

        ``lift`` is added to all light levels; it is negative for limbs on the far side.
        """
        if edge:
            self.edge(outline)
        self.fill(outline, material, 94 + lift)
        center = 0.5 * (outline.max(axis=0) + outline.min(axis=0))
        extent = outline.max(axis=0) - outline.min(axis=0)
        reach = 0.16 * min(extent)
        for scale, level, push in ((0.86, 114, 0.35), (0.66, 132, 0.8), (0.38, 146, 1.3)):
            inner = center + (outline - center) * (scale, 0.5 + 0.5 * scale)
            inner[:, 0] += push * reach * self.light
            inner[:, 1] -= 0.25 * push * reach
            self.tone(inner, level + lift)

    def limb(self, start, end, radii, material: int, edge: bool = True, lift: int = 0) -> None:
        """Draws a tapered rod, lit across its width."""
        outline = limb_outline(start, end, *radii)
        if edge:
            self.edge(outline)
        self.fill(outline, material, 92 + lift)
        start, end = np.asarray(start, float), np.asarray(end, float)
        along = end - start
        across = np.array([-along[1], along[0]]) / (np.hypot(*along) + 1e-9)
        if across[0] * self.light + across[1] * -0.6 < 0:
            across = -across
        for scale, level, push in ((0.74, 116, 0.2), (0.48, 136, 0.34), (0.22, 148, 0.42)):
            offset_start, offset_end = push * radii[0] * across, push * radii[1] * across
            inner = limb_outline(
                start + offset_start, end + offset_end, scale * radii[0], scale * radii[1]
            )
            self.tone(inner, level + lift)

    def pattern(self, mask: np.ndarray, source: int, target: int) -> None:
        """Replaces the material ``source`` by ``target`` where the boolean mask (H, W) is set."""
        self.material[(self.material == source) & mask] = target

    def render(
        self, palette: np.ndarray, folds: tuple[int, int], ambient: float
    ) -> tuple[np.ndarray, np.ndarray, tuple[int, int]]:
        """Merges the maps and crops the empty border.

        Args:
            palette: Color (M, 3) float32 of each material.
            folds: Offset into the texture of cloth folds.
            ambient: Amount of light on the shaded side, 0 to 1.

        Returns:
            Color (h, w, 3) float32 in 0..255, black where empty; alpha (h, w) float32; and the
            (x, y) of the top left pixel of the crop on this canvas.
        """
        x, y, width, height = cv2.boundingRect(self.material)
        material = self.material[y : y + height, x : x + width]
        shade = self.shade[y : y + height, x : x + width]
        sigma = max(0.6, 0.006 * self.unit)
        light: np.ndarray = cv2.GaussianBlur(shade.astype(np.float32), (0, 0), sigma)
        texture = _fold_texture()
        zoom = max(0.25, self.unit / 260.0)
        rows, cols = math.ceil(height / zoom), math.ceil(width / zoom)
        oy, ox = folds[0] % max(1, 512 - rows), folds[1] % max(1, 512 - cols)
        patch = texture[oy : oy + rows, ox : ox + cols]
        light += cv2.resize(patch, (width, height), interpolation=cv2.INTER_LINEAR)
        light *= (1 - ambient) / NEUTRAL
        light += ambient
        alpha = (material > 0).astype(np.float32)
        light *= alpha
        color = np.take(palette, material, axis=0)
        color *= light[..., None]
        return np.clip(color, 0, 255, out=color), alpha, (x, y)
