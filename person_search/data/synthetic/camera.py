# SPDX-License-Identifier: Apache-2.0
"""Cameras: a place seen from one position, with the image defects of one device.

Shape shorthand: H, W pixels of the final image.
"""

import functools
import math
from dataclasses import dataclass

import cv2
import numpy as np

from person_search.synthetic_config import random_stream

from .scenery import KINDS, OUTDOORS, PlacePainter, View

_MARGIN = 1.10
"""Factor by which the painted place is larger than an image, which shows a part of it."""


@dataclass(frozen=True)
class Camera:
    """One camera.

    Attributes:
        view: Geometry of the painted place, which is larger than an image.
        size: Width and height of an image.
        place: Painting (H', W', 3) uint8 BGR without persons.
        outdoors: Whether there is sun with cast shadows.
        light: Horizontal light direction, -1 to 1.
        ambient: Flatness of the light, 0 to 1.
        pitch: Downward tilt in radians.
        cast: Gain (3,) of B, G and R.
        blur: Sigma in pixels.
        noise: Sensor noise (H + 64, W + 64) float32, of which each image uses a part.
        vignette: Falloff (H, W, 1) float32 towards the corners.
    """

    view: View
    size: tuple[int, int]
    place: np.ndarray
    outdoors: bool
    light: float
    ambient: float
    pitch: float
    cast: np.ndarray
    blur: float
    noise: np.ndarray
    vignette: np.ndarray

    def shift(self, rng: np.random.Generator) -> tuple[int, int]:
        """Samples the position (x, y) of the top left corner of an image in the painting."""
        free_x = self.view.width - self.size[0]
        free_y = self.view.height - self.size[1]
        return int(rng.integers(free_x + 1)), int(rng.integers(free_y + 1))


@functools.lru_cache(maxsize=64)
def build_camera(
    seed: int, stream: int, index: int, size: tuple[int, int], difficulty: float
) -> Camera:
    """Builds a camera; equal arguments give equal cameras in every process."""
    rng = random_stream(seed, stream, index)
    kind = KINDS[(index + int(rng.integers(2)) * 2) % len(KINDS)]
    width, height = round(size[0] * _MARGIN), round(size[1] * _MARGIN)
    horizon = rng.uniform(0.16, 0.36) * height
    # stature 1.7 m fills 0.72 to 1.0 of the height where the feet touch the lower border
    fill = rng.uniform(0.72, 1.0) * size[1]
    eye = 1.7 * (height - horizon) / fill
    view = View(width, height, horizon, eye, width * rng.uniform(0.35, 0.65))
    place = PlacePainter(rng, view).paint(kind)
    outdoors = kind in OUTDOORS
    noise: np.ndarray = rng.standard_normal((size[1] + 64, size[0] + 64)).astype(np.float32)
    noise = cv2.GaussianBlur(noise, (0, 0), 0.6)
    noise *= (1.2 + 6.0 * difficulty * rng.random()) / noise.std()
    x = np.linspace(-1, 1, size[0], dtype=np.float32)[None, :]
    y = np.linspace(-1, 1, size[1], dtype=np.float32)[:, None]
    return Camera(
        view=view,
        size=size,
        place=place,
        outdoors=outdoors,
        light=float(rng.choice((-1.0, -0.6, 0.6, 1.0))),
        ambient=float(rng.uniform(0.12, 0.3) if outdoors else rng.uniform(0.25, 0.45)),
        pitch=float(math.atan2(0.5 * height - horizon, view.focal) * 0.8),
        cast=np.exp(rng.normal(0, 0.03 + 0.05 * difficulty, 3)).astype(np.float32),
        blur=float(rng.uniform(0.0, 0.35 + 0.6 * difficulty)),
        noise=noise,
        vignette=(1 - rng.uniform(0.05, 0.28) * 0.5 * (x * x + y * y))[..., None],
    )


def expose(
    camera: Camera, rng: np.random.Generator, frame: np.ndarray, difficulty: float
) -> np.ndarray:
    """Turns an ideal image into the image that the camera records.

    Args:
        camera: Camera with color cast, blur, noise and vignette.
        rng: Random stream of the image, for exposure, gamma and white balance.
        frame: Image (H, W, 3) float32 BGR in 0..255; overwritten.
        difficulty: Scale of the variation, 0 to 1.

    Returns:
        Image (H, W, 3) uint8 BGR.
    """
    gain = math.exp(rng.normal(0.07, 0.06 + 0.16 * difficulty))
    gamma = math.exp(rng.normal(0, 0.05 + 0.14 * difficulty))
    balance = np.exp(rng.normal(0, 0.015 + 0.05 * difficulty, 3)).astype(np.float32)
    if camera.blur > 0.25:
        frame = cv2.GaussianBlur(frame, (0, 0), camera.blur)
    frame *= camera.vignette * (camera.cast * balance * gain)
    oy, ox = (int(v) for v in rng.integers(0, 65, 2))
    height, width = frame.shape[:2]
    frame += camera.noise[oy : oy + height, ox : ox + width, None]
    levels = np.arange(256, dtype=np.float64) / 255
    table = np.clip(np.round(255 * levels**gamma), 0, 255).astype(np.uint8)
    return cv2.LUT(cv2.convertScaleAbs(np.maximum(frame, 0, out=frame)), table)
