# SPDX-License-Identifier: Apache-2.0
"""Reading a user's images, and validating boxes that a user has typed or drawn.

Boxes are XYXY pixels of the upright image (EXIF orientation applied).
"""

import os
from collections.abc import Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.nn import functional as F

from person_search.data import BadImageError
from person_search.data.image_io import READ_ERRORS, plain_reason, read_image_file

MAX_PIXELS = 100_000_000
"""Larger images are refused before decoding: a file of a few kB can claim any size."""
MAX_RATIO = 100
"""Maximum ratio of the longer to the shorter side. Narrower images, such as the separator lines of
web pages, show no person, and the size that a model expects leaves nothing of them."""
SUFFIXES = (".jpg", ".jpeg", ".jfif", ".jpe", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif")
PLUGIN_SUFFIXES = (".avif", ".heic", ".heif")
"""Read if this Pillow, or its plugin pillow-heif, has a decoder for them."""


@cache
def image_suffixes() -> tuple[str, ...]:
    """Returns the suffixes of the image files that can be read, in lower case."""
    with suppress(ImportError):  # the extra 'heif'
        import pillow_heif

        pillow_heif.register_heif_opener()
    known = Image.registered_extensions()
    return (*SUFFIXES, *(suffix for suffix in PLUGIN_SUFFIXES if suffix in known))


def read_image(path: str | os.PathLike, image_format: str = "RGB") -> np.ndarray:
    """Reads an image in its upright orientation; of an animation, the first frame.

    Conversions are those of training and evaluation, see ``person_search.data.image_io``.

    Args:
        path: Image file.
        image_format: Channel order, ``cfg.INPUT.FORMAT``.

    Returns:
        Array (H, W, 3) uint8.

    Raises:
        FileNotFoundError: If the file does not exist.
        BadImageError: If the file is not a readable image, has more than ``MAX_PIXELS`` pixels or
            exceeds ``MAX_RATIO``.
    """
    if not os.path.isfile(path):
        raise FileNotFoundError(f"the image '{path}' does not exist.")
    image_suffixes()  # registers the HEIF plugin
    try:
        if os.path.getsize(path) == 0:
            raise OSError("the file is empty (0 bytes)")
        with Image.open(path) as image:
            if image.width * image.height > MAX_PIXELS:
                raise ValueError(
                    f"it has {image.width} x {image.height} pixels; the maximum is "
                    f"{MAX_PIXELS // 1_000_000} million"
                )
            if max(image.size) > MAX_RATIO * min(image.size):
                raise ValueError(
                    f"it has {image.width} x {image.height} pixels, too narrow to show a person"
                )
            image.verify()  # checks the CRCs of a PNG, which decoding ignores
        return read_image_file(os.fspath(path), image_format)
    except READ_ERRORS as e:
        hint = missing_decoder(path) if Path(path).suffix.lower() not in image_suffixes() else ""
        reason = f"{plain_reason(e)}{f'; {hint}' if hint else ''}"
        raise BadImageError(f"cannot read the image '{path}': {reason}") from e


def shrink(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resizes an image with the bilinear filter of Pillow, six times as fast.

    Args:
        image: Array (H, W, 3) uint8.
        height: New height.
        width: New width.

    Returns:
        Array (height, width, 3) uint8. Values differ from those of Pillow by at most 1.
    """
    writable = np.require(image, requirements=["C", "W"])  # else torch.from_numpy warns
    pixels = torch.from_numpy(writable).permute(2, 0, 1)[None]
    resized = F.interpolate(pixels, (height, width), mode="bilinear", antialias=True)
    return resized[0].permute(1, 2, 0).numpy()


def missing_decoder(path: str | os.PathLike) -> str:
    """Returns how to make a file of this suffix readable; "" if there is nothing to advise."""
    suffix = Path(path).suffix.lower()
    if suffix in (".heic", ".heif"):
        return "pip install pillow-heif"
    if suffix == ".avif":
        return "pip install -U 'Pillow>=11.3'"
    if suffix in (".ts", ".mts", ".m2ts", ".h264", ".264", ".h265", ".265", ".dav", ".flv", ".wmv"):
        return "ffmpeg -i FILE -c copy FILE.mp4"
    if suffix in (".dng", ".cr2", ".cr3", ".nef", ".arw", ".svg", ".pdf", ".psd", ".jxl", ".jp2"):
        return "convert it to JPEG or PNG"
    return ""


def clip_box(
    box: Sequence[float] | np.ndarray, width: int, height: int, name: str | os.PathLike = ""
) -> np.ndarray:
    """Clips a box to an image.

    Args:
        box: XYXY pixels.
        width: Width of the image.
        height: Height of the image.
        name: Name of the image, for the message.

    Returns:
        Clipped box (4,).

    Raises:
        ValueError: If the box has no area, or no part of it lies in the image.
    """
    given = np.asarray(box, np.float64)
    shown = " ".join(f"{value:g}" for value in given.flat)
    if given.shape != (4,) or not np.isfinite(given).all() or (given[2:] <= given[:2]).any():
        raise ValueError(f"the box {shown} has no area; give x1 y1 x2 y2 with x1 < x2 and y1 < y2.")
    clipped = given.clip(0, [width, height, width, height])
    if (clipped[2:] <= clipped[:2]).any():
        which = f"the image '{name}'" if name else "the image"
        raise ValueError(
            f"the box {shown} lies outside {which}, which has {width} x {height} pixels "
            "(width x height)."
        )
    return clipped
