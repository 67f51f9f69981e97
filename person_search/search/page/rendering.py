# SPDX-License-Identifier: Apache-2.0
"""Scenes and crops as JPEG. The latest images stay decoded, because both are requested together.

Boxes are XYXY pixels of their image.
"""

import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence

import numpy as np
from PIL import Image

from person_search.vis.drawing import crop_person, draw_box, fitted_size, to_image
from person_search.vis.encoding import encode_image
from person_search.vis.search_sheet import STATUS_COLORS

SMALLEST_SIDE, LARGEST_SIDE = 64, 2048
CROP_SIZE = (240, 420)
MAX_BYTES = 1_500_000
AT_ONCE = 2
"""Number of images decoded at the same time: each may take 300 MB."""


class Decoded:
    """Cache of the latest decoded images, shared by all threads.

    Args:
        pixels: Maximum number of cached pixels; the image in use is always kept.
    """

    def __init__(self, pixels: int = 50_000_000) -> None:
        self.pixels = pixels
        self._kept: OrderedDict[str, np.ndarray] = OrderedDict()
        self._reading: dict[str, threading.Lock] = {}
        self._lock = threading.Lock()
        self._turns = threading.BoundedSemaphore(AT_ONCE)

    def get(self, key: str, read: Callable[[], np.ndarray]) -> np.ndarray:
        """Returns the image of a key, read if necessary.

        Args:
            key: Id of the image.
            read: Reads the image.

        Returns:
            Array (H, W, 3) uint8, read-only by convention.
        """
        with self._lock:
            reading = self._reading.setdefault(key, threading.Lock())
        try:
            with reading:  # a second request for the same image waits for it
                with self._lock:
                    image = self._kept.get(key)
                    if image is not None:
                        self._kept.move_to_end(key)
                        return image
                with self._turns:
                    image = read()
                with self._lock:
                    self._kept[key] = image
                    while len(self._kept) > 1 and self._size() > self.pixels:
                        self._kept.popitem(last=False)
                return image
        finally:
            with self._lock:
                self._reading.pop(key, None)

    def _size(self) -> int:
        return sum(image.shape[0] * image.shape[1] for image in self._kept.values())


def scene_jpeg(pixels: np.ndarray, side: int, box: Sequence[float] | None = None) -> bytes:
    """Encodes an image as JPEG.

    Args:
        pixels: Array (H, W, 3) uint8 RGB.
        side: Maximum longer side. Images are not enlarged, except that an image with a box gets
            at least ``SMALLEST_SIDE``.
        box: Box to draw.
    """
    image = to_image(pixels)
    side = min(max(side, SMALLEST_SIDE), LARGEST_SIDE)
    if box is None:
        side = min(side, max(image.size))
    size = fitted_size(image.size, (side, side))
    scene = image.resize(size, Image.Resampling.LANCZOS)
    if box is not None:
        x1, y1, x2, y2 = np.asarray(box, float) * np.array(size * 2) / (image.size * 2)
        line = max(3, round(side**0.5 / 5))  # visible when scaled down in a card or on a phone
        around = (x1 - line, y1 - line, x2 + line, y2 + line)
        draw_box(scene, around, STATUS_COLORS["unknown"], line)
    return encode_image(scene, ".jpg", MAX_BYTES)


def crop_jpeg(pixels: np.ndarray, box: Sequence[float]) -> bytes:
    """Encodes a person with a small margin as JPEG."""
    crop = crop_person(to_image(pixels), box)
    size = fitted_size(crop.size, CROP_SIZE)
    return encode_image(crop.resize(size, Image.Resampling.LANCZOS), ".jpg", MAX_BYTES)
