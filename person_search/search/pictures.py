# SPDX-License-Identifier: Apache-2.0
"""Reading the user's own pictures, and checking a box that somebody has typed in.

Boxes are XYXY pixels of the picture as people see it (EXIF orientation applied).
"""

import os
import struct
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageOps

from person_search.data import BadImageError

# What Pillow raises for files that are damaged, cut short, no pictures, or suspiciously large.
_READ_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    IndexError,
    struct.error,
    Image.DecompressionBombError,
)
MAX_PIXELS = 100_000_000
"""Larger pictures are refused before they are unpacked: a file of a few kB can claim any size."""
FORMATS = ("RGB", "BGR")


def read_picture(path: str | os.PathLike, image_format: str = "RGB") -> np.ndarray:
    """Returns a picture as (H, W, 3) uint8, turned as its EXIF orientation says.

    Gray, palette, transparent, CMYK and 16-bit pictures become plain RGB.

    Args:
        path: of the file.
        image_format: order of the channels, "RGB" or "BGR".

    Raises:
        FileNotFoundError: there is no such file. BadImageError: it is no readable picture, or has
            more than ``MAX_PIXELS`` pixels.
    """
    if image_format not in FORMATS:
        raise ValueError(f"INPUT.FORMAT is '{image_format}'; it must be one of {FORMATS}.")
    if not os.path.isfile(path):
        raise FileNotFoundError(f"there is no picture '{path}'.")
    try:
        with Image.open(path) as picture:
            if picture.width * picture.height > MAX_PIXELS:
                raise ValueError(
                    f"it has {picture.width} x {picture.height} pixels, and at most "
                    f"{MAX_PIXELS // 1_000_000} million are taken"
                )
            rgb = np.asarray(_to_8_bit(ImageOps.exif_transpose(picture)).convert("RGB"))
    except _READ_ERRORS as e:
        reason = str(e).partition(" <")[0] or type(e).__name__  # without the address of an object
        raise BadImageError(f"cannot read the picture '{path}': {reason}") from e
    return np.ascontiguousarray(rgb if image_format == "RGB" else rgb[:, :, ::-1])


def _to_8_bit(picture: Image.Image) -> Image.Image:
    """Scales 16-bit gray values to 8 bits; Pillow itself would cut them off at 255."""
    if not picture.mode.startswith(("I", "F")):
        return picture
    values = np.asarray(picture).astype(np.float64)
    return Image.fromarray((values / 257).round().clip(0, 255).astype(np.uint8))


def clip_box(box: Sequence[float], width: int, height: int) -> np.ndarray:
    """The (4,) part of a box that lies in a picture of the given size.

    Raises:
        ValueError: it has no area, or none of it lies in the picture.
    """
    box = np.asarray(box, np.float64)
    if box.shape != (4,) or not np.isfinite(box).all() or (box[2:] <= box[:2]).any():
        raise ValueError(
            f"the box {box.tolist()} has no area; give x1 y1 x2 y2 with x1 < x2 and y1 < y2."
        )
    clipped = box.clip(0, [width, height, width, height])
    if (clipped[2:] <= clipped[:2]).any():
        raise ValueError(
            f"the box {box.tolist()} lies outside the picture, which is {width} x {height} "
            "pixels (width x height)."
        )
    return clipped
