# SPDX-License-Identifier: Apache-2.0
"""Reading the images of a data set, and looking at them without reading them.

=====================================  =========================================================
image                                treatment
=====================================  =========================================================
8 bits, gray, palette or with alpha    converted to the three channels asked for
CMYK                                   converted to RGB, without a color profile
EXIF "turn me"                         turned; boxes and sizes are those of the turned image
16 bits, gray                          the upper 8 bits; Pillow itself would cut off at 255
32 bits, whole or floating point       refused: what is white is not known
empty, damaged, over Pillow's limit    refused
=====================================  =========================================================

The limit, against small files that unpack to gigabytes, is ``PIL.Image.MAX_IMAGE_PIXELS`` times two
(179 million pixels).
"""

import os
import struct
from dataclasses import dataclass

import numpy as np
from detectron2.data import detection_utils
from PIL import Image, ImageOps, UnidentifiedImageError

READ_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    IndexError,
    struct.error,
    Image.DecompressionBombError,
)
"""What an image that cannot be read raises, here or in Pillow."""

_EXIF_ORIENTATION = 0x0112
_MANY_BITS = ("I;16", "I;16L", "I;16B", "I;16N", "I", "F")


def read_image_file(path: str, image_format: str) -> np.ndarray:
    """Returns an image as people see it.

    Args:
        path: the file.
        image_format: channel order, as Detectron2's ``read_image`` takes it.

    Returns:
        (height, width, 3) uint8, or what ``image_format`` asks for.

    Raises:
        One of ``READ_ERRORS``.
    """
    # what is no local file is left to Detectron2, which may know how to fetch it
    if os.path.isfile(path):
        if os.path.getsize(path) == 0:
            raise OSError("the file is empty (0 bytes)")
        with Image.open(path) as image:
            if image.mode in _MANY_BITS:
                narrow = _upper_bits(ImageOps.exif_transpose(image))
                return detection_utils.convert_PIL_to_numpy(narrow, image_format)
    return detection_utils.read_image(path, format=image_format)


def _upper_bits(image: Image.Image) -> Image.Image:
    """Returns the upper 8 of 16 bits of a gray image."""
    values = np.asarray(image)
    if values.dtype.kind == "f" or values.min(initial=0) < 0 or values.max(initial=0) > 0xFFFF:
        raise ValueError(
            f"the image has 32 bits per pixel (Pillow's mode {image.mode}), of which no range is "
            "known: convert it to 8 or 16 bits"
        )
    return Image.fromarray((values.astype(np.uint16) >> 8).astype(np.uint8))


@dataclass(frozen=True)
class ImageState:
    """What can be told of an image.

    Args:
        size: (height, width) as people see it; (0, 0) if it cannot be read.
        error: why it cannot be read, or empty.
        oddities: kinds of irregularity, see ``IRREGULARITY_KINDS``.
    """

    size: tuple[int, int]
    error: str = ""
    oddities: tuple[str, ...] = ()


def look_at_image(path: str, decode: bool = False) -> ImageState:
    """Reads the header of an image, or all of it.

    Args:
        path: the file.
        decode: also decode the image, which finds files cut short.
    """
    try:
        if os.path.getsize(path) == 0:
            return ImageState((0, 0), "the file is empty (0 bytes)")
        with Image.open(path) as image:
            width, height = image.size
            orientation = image.getexif().get(_EXIF_ORIENTATION, 1) if "exif" in image.info else 1
            mode = image.mode
        if decode:
            read_image_file(path, "RGB")
    except FileNotFoundError:
        return ImageState((0, 0), "the file does not exist")
    except READ_ERRORS as e:
        return ImageState((0, 0), f"cannot be decoded: {plain_reason(e)}")
    oddities = ["exif_turned"] if orientation in range(2, 9) else []
    oddities += ["cmyk_picture"] if mode == "CMYK" else []
    oddities += ["deep_picture"] if mode in _MANY_BITS else []
    size = (width, height) if orientation >= 5 else (height, width)
    return ImageState(size, "", tuple(oddities))


def plain_reason(error: Exception) -> str:
    """Returns why an image cannot be read, in words for its owner and without its name."""
    if isinstance(error, UnidentifiedImageError):
        return "it is no image of a known format, or its beginning is damaged"
    if isinstance(error, Image.DecompressionBombError):
        return (
            f"it claims to have more than {2 * (Image.MAX_IMAGE_PIXELS or 0) // 1_000_000} million "
            "pixels, which would fill the memory"
        )
    text = str(error).partition(" <")[0] or type(error).__name__
    return f"it is cut short ({text})" if "truncated" in text.lower() else text
