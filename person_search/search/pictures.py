# SPDX-License-Identifier: Apache-2.0
"""Reading the user's own pictures, and checking a box that somebody has typed in.

Boxes are XYXY pixels of the picture as people see it (EXIF orientation applied).
"""

import os
import struct
from collections.abc import Sequence

import numpy as np
from detectron2.data.detection_utils import read_image
from PIL import Image

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


def read_picture(path: str | os.PathLike, image_format: str = "RGB") -> np.ndarray:
    """Returns a picture as (H, W, 3) uint8.

    Raises:
        FileNotFoundError: there is no such file. BadImageError: it is no readable picture.
    """
    if not os.path.isfile(path):
        raise FileNotFoundError(f"there is no picture '{path}'.")
    try:
        return read_image(os.fspath(path), format=image_format)
    except _READ_ERRORS as e:
        reason = str(e).partition(" <")[0] or type(e).__name__  # without the address of an object
        raise BadImageError(f"cannot read the picture '{path}': {reason}") from e


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
