# SPDX-License-Identifier: Apache-2.0
"""Scenes and crops as JPEG. The last few images stay decoded, as both are asked for together.

Boxes are XYXY pixels of the image that they lie in.
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
"""Images that are decoded at the same time: each may take 300 MB."""


class Decoded:
    """The last few decoded images, shared by all threads.

    Args:
        pixels: how many pixels are kept in all; the image in use is kept in any case.
    """

    def __init__(self, pixels: int = 50_000_000) -> None:
        self.pixels = pixels
        self._kept: OrderedDict[str, np.ndarray] = OrderedDict()
        self._reading: dict[str, threading.Lock] = {}
        self._lock = threading.Lock()
        self._turns = threading.BoundedSemaphore(AT_ONCE)

    def get(self, key: str, read: Callable[[], np.ndarray]) -> np.ndarray:
        """The image of a key, read if need be: (H, W, 3) uint8, not to be written to."""
        with self._lock:
            reading = self._reading.setdefault(key, threading.Lock())
        try:
            with reading:  # who asks for the same image waits for it
                picture = self._find(key)
                if picture is None:
                    with self._turns:
                        picture = read()
                    self._keep(key, picture)
                return picture
        finally:
            with self._lock:
                self._reading.pop(key, None)

    def _find(self, key: str) -> np.ndarray | None:
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
            return self._kept.get(key)

    def _keep(self, key: str, picture: np.ndarray) -> None:
        with self._lock:
            self._kept[key] = picture
            while len(self._kept) > 1 and self._size() > self.pixels:
                self._kept.popitem(last=False)

    def _size(self) -> int:
        return sum(picture.shape[0] * picture.shape[1] for picture in self._kept.values())


def scene_jpeg(picture: np.ndarray, side: int, box: Sequence[float] | None = None) -> bytes:
    """An image as JPEG.

    Args:
        image: (H, W, 3) uint8 RGB.
        side: its longer side is made at most so long; never longer than it is, except that a
            image with a box gets at least ``SMALLEST_SIDE``.
        box: drawn into it.
    """
    image = to_image(picture)
    side = min(max(side, SMALLEST_SIDE), LARGEST_SIDE)
    if box is None:
        side = min(side, max(image.size))
    size = fitted_size(image.size, (side, side))
    scene = image.resize(size, Image.Resampling.LANCZOS)
    if box is not None:
        x1, y1, x2, y2 = np.asarray(box, float) * np.array(size * 2) / (image.size * 2)
        line = max(3, round(side**0.5 / 5))  # to be seen in a card or on a phone, scaled down
        around = (x1 - line, y1 - line, x2 + line, y2 + line)
        draw_box(scene, around, STATUS_COLORS["unknown"], line)
    return encode_image(scene, ".jpg", MAX_BYTES)


def crop_jpeg(picture: np.ndarray, box: Sequence[float]) -> bytes:
    """A person with a small margin, as JPEG."""
    crop = crop_person(to_image(picture), box)
    size = fitted_size(crop.size, CROP_SIZE)
    return encode_image(crop.resize(size, Image.Resampling.LANCZOS), ".jpg", MAX_BYTES)
