# SPDX-License-Identifier: Apache-2.0
"""Reading the user's own images, and checking a box that somebody has typed in.

Boxes are XYXY pixels of the image as people see it (EXIF orientation applied).
"""

import os
from collections.abc import Sequence

import numpy as np
from PIL import Image

from person_search.data import BadImageError
from person_search.data.image_io import READ_ERRORS, plain_reason, read_image_file

MAX_PIXELS = 100_000_000
"""Larger images are refused before they are unpacked: a file of a few kB can claim any size."""
MAX_RATIO = 100
"""Of the longer side to the shorter: lines, as they lie among images of web pages, show nobody,
and nothing would be left of them in the size that a model wants."""


def read_image(path: str | os.PathLike, image_format: str = "RGB") -> np.ndarray:
    """Returns an image as (H, W, 3) uint8, turned as its EXIF orientation says.

    It is read as training and evaluation read theirs, see ``person_search.data.image_io``.

    Args:
        path: of the file.
        image_format: order of the channels, ``cfg.INPUT.FORMAT``.

    Raises:
        FileNotFoundError: there is no such file. BadImageError: it is no readable image, has
            more than ``MAX_PIXELS`` pixels, or is a line (``MAX_RATIO``).
    """
    if not os.path.isfile(path):
        raise FileNotFoundError(f"there is no image '{path}'.")
    try:
        if os.path.getsize(path) == 0:
            raise OSError("the file is empty (0 bytes)")
        with Image.open(path) as picture:
            if picture.width * picture.height > MAX_PIXELS:
                raise ValueError(
                    f"it has {picture.width} x {picture.height} pixels, and at most "
                    f"{MAX_PIXELS // 1_000_000} million are taken"
                )
            if max(picture.size) > MAX_RATIO * min(picture.size):
                raise ValueError(
                    f"it is {picture.width} x {picture.height} pixels, too narrow to show anybody"
                )
            # the sums of a PNG, which unpacking does not look at
            picture.verify()
        return read_image_file(os.fspath(path), image_format)
    except READ_ERRORS as e:
        raise BadImageError(f"cannot read the image '{path}': {plain_reason(e)}") from e


def clip_box(
    box: Sequence[float] | np.ndarray, width: int, height: int, name: str | os.PathLike = ""
) -> np.ndarray:
    """The (4,) part of a box that lies in an image of the given size.

    Args:
        box: XYXY pixels.
        width, height: of the image.
        name: of the image, for the message.

    Raises:
        ValueError: it has no area, or none of it lies in the image.
    """
    given = np.asarray(box, np.float64)
    shown = " ".join(f"{value:g}" for value in given.flat)
    if given.shape != (4,) or not np.isfinite(given).all() or (given[2:] <= given[:2]).any():
        raise ValueError(f"the box {shown} has no area; give x1 y1 x2 y2 with x1 < x2 and y1 < y2.")
    clipped = given.clip(0, [width, height, width, height])
    if (clipped[2:] <= clipped[:2]).any():
        which = f"the image '{name}'" if name else "the image"
        raise ValueError(
            f"the box {shown} lies outside {which}, which is {width} x {height} pixels "
            "(width x height)."
        )
    return clipped
