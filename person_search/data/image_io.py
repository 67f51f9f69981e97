# SPDX-License-Identifier: Apache-2.0
"""Reads the images of a data set and inspects them without decoding.

=====================================  =======================================================
image                                  treatment
=====================================  =======================================================
8 bits, gray, palette or alpha         converted to the requested channels
CMYK                                   converted to RGB without a color profile
EXIF orientation                       applied; boxes and sizes refer to the upright image
16 bits, gray                          upper 8 bits kept (Pillow clips at 255)
32 bits, integer or floating point     rejected: the value of white is unknown
empty, damaged, above Pillow's limit   rejected
=====================================  =======================================================

The limit guards against small files that decode to gigabytes. It is twice
``PIL.Image.MAX_IMAGE_PIXELS`` (179 million pixels).
"""

import logging
import os
import struct
from dataclasses import dataclass

import cv2
import numpy as np
from detectron2.data import detection_utils
from PIL import Image, ImageOps, UnidentifiedImageError

logger = logging.getLogger(__name__)

READ_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    IndexError,
    struct.error,
    Image.DecompressionBombError,
)
"""Exceptions raised for an unreadable image, by this module or by Pillow."""

_EXIF_ORIENTATION = 0x0112
_DEEP_MODES = ("I;16", "I;16L", "I;16B", "I;16N", "I", "F")
_MAX_BAD_IN_A_ROW = 10


class BadImageError(RuntimeError):
    """An image is unreadable."""


def read_image_file(path: str, image_format: str) -> np.ndarray:
    """Reads an image in its upright orientation.

    Args:
        path: Image file.
        image_format: Channel order, as in Detectron2's ``read_image``.

    Returns:
        Array (height, width, 3) uint8, or whatever ``image_format`` requests.

    Raises:
        Exception: One of :data:`READ_ERRORS` for an unreadable image.
    """
    # a path that is not a local file is left to Detectron2, which may be able to download it
    if os.path.isfile(path):
        if os.path.getsize(path) == 0:
            raise OSError("the file is empty (0 bytes)")
        with Image.open(path) as image:
            if image.format == "JPEG" and image.mode == "RGB" and image_format in ("RGB", "BGR"):
                pixels = decode_jpeg(path, image, image_format)
                if pixels is not None:
                    return pixels
            if image.mode in _DEEP_MODES:
                narrow = _upper_bits(ImageOps.exif_transpose(image))
                return detection_utils.convert_PIL_to_numpy(narrow, image_format)
    return detection_utils.read_image(path, format=image_format)


def decode_jpeg(path: str, header: Image.Image, image_format: str) -> np.ndarray | None:
    """Decodes a JPEG with OpenCV: the same pixels as Pillow's, without its copies.

    Args:
        path: Image file.
        header: The same file, opened but not decoded.
        image_format: ``RGB`` or ``BGR``.

    Returns:
        Array (height, width, 3) uint8. None for what is left to Pillow: images to be turned, and
        files without an end marker, which may be truncated.
    """
    try:
        upright = header.getexif().get(_EXIF_ORIENTATION, 1) == 1
    except Exception:  # Pillow raises many kinds for damaged metadata
        return None
    if not upright:
        return None
    data = np.fromfile(path, np.uint8)
    if data[-64:].tobytes().rfind(b"\xff\xd9") < 0:
        return None
    pixels = cv2.imdecode(data, cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
    if pixels is None or pixels.shape[1::-1] != header.size:
        return None
    return cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB) if image_format == "RGB" else pixels


def _upper_bits(image: Image.Image) -> Image.Image:
    values = np.asarray(image)
    if values.dtype.kind == "f" or values.min(initial=0) < 0 or values.max(initial=0) > 0xFFFF:
        raise ValueError(
            f"the image has 32 bits per pixel (Pillow mode {image.mode}) of unknown range; "
            "convert it to 8 or 16 bits"
        )
    return Image.fromarray((values.astype(np.uint16) >> 8).astype(np.uint8))


class RecordImageReader:
    """Reads the image of a data set record; used wherever a data set is read for a model.

    Args:
        image_format: Channel order, usually ``cfg.INPUT.FORMAT``.
        on_bad_image: ``raise`` or ``skip`` unreadable images, usually
            ``cfg.DATALOADER.ON_BAD_IMAGE``.
    """

    def __init__(self, image_format: str, on_bad_image: str = "raise"):
        if on_bad_image not in ("raise", "skip"):
            raise ValueError(
                f"DATALOADER.ON_BAD_IMAGE is {on_bad_image!r}; allowed: 'raise', 'skip'"
            )
        self.image_format, self.on_bad_image = image_format, on_bad_image
        self._bad_in_a_row = 0

    def __call__(self, record: dict) -> np.ndarray | None:
        """Reads one image.

        Args:
            record: Record with ``file_name``, ``height`` and ``width``.

        Returns:
            Array (height, width, C) uint8; None for an unreadable image that is skipped (logged).

        Raises:
            BadImageError: If the image is unreadable and not skipped, or if many consecutive
                images are unreadable.
            ValueError: If the image does not have the recorded size.
        """
        name = record["file_name"]
        try:
            image = read_image_file(name, self.image_format)
        except READ_ERRORS as e:
            if self.on_bad_image == "raise":
                raise BadImageError(
                    f"cannot read the image {name}: {plain_reason(e)}. Copy the file again, or set "
                    "DATALOADER.ON_BAD_IMAGE to 'skip' to continue without it."
                ) from e
            logger.warning(f"skipping the unreadable image {name}: {plain_reason(e)}")
            self._bad_in_a_row += 1
            if self._bad_in_a_row >= _MAX_BAD_IN_A_ROW:
                raise BadImageError(
                    f"{_MAX_BAD_IN_A_ROW} consecutive images are unreadable, the last one is "
                    f"{name}. Check that the disk with the data set is still available."
                ) from e
            return None
        self._bad_in_a_row = 0
        height, width = image.shape[:2]
        recorded = record["height"], record["width"]
        if recorded not in ((height, width), (0, 0)):  # (0, 0): unknown to the data set reader
            raise ValueError(
                f"the image {name} is {height} x {width} (height x width), but its record says "
                f"{recorded[0]} x {recorded[1]}: the file was replaced after the data set was "
                "read, or it is not the image that was annotated"
            )
        return image


@dataclass(frozen=True)
class ImageState:
    """Result of inspecting an image.

    Attributes:
        size: Upright (height, width); (0, 0) if the image is unreadable.
        error: Why the image is unreadable, or empty.
        oddities: Kinds of irregularity, see ``IRREGULARITY_KINDS``.
    """

    size: tuple[int, int]
    error: str = ""
    oddities: tuple[str, ...] = ()


def look_at_image(path: str | os.PathLike, decode: bool = False) -> ImageState:
    """Inspects the header of an image, or all of it.

    Args:
        path: Image file.
        decode: Also decodes the image, which detects truncated files.
    """
    try:
        if os.path.getsize(path) == 0:
            return ImageState((0, 0), "the file is empty (0 bytes)")
        with Image.open(path) as image:
            width, height = image.size
            orientation = image.getexif().get(_EXIF_ORIENTATION, 1) if "exif" in image.info else 1
            mode = image.mode
        if decode:
            read_image_file(os.fspath(path), "RGB")
    except FileNotFoundError:
        return ImageState((0, 0), "the file does not exist")
    except READ_ERRORS as e:
        return ImageState((0, 0), f"cannot be decoded: {plain_reason(e)}")
    oddities = ["exif_turned"] if orientation in range(2, 9) else []
    oddities += ["cmyk_image"] if mode == "CMYK" else []
    oddities += ["deep_image"] if mode in _DEEP_MODES else []
    size = (width, height) if orientation >= 5 else (height, width)
    return ImageState(size, "", tuple(oddities))


def plain_reason(error: Exception) -> str:
    """Returns why an image is unreadable, for a message that already names the file."""
    if isinstance(error, UnidentifiedImageError):
        return "it is not an image of a known format, or its beginning is damaged"
    if isinstance(error, Image.DecompressionBombError):
        return (
            f"it claims to have more than {2 * (Image.MAX_IMAGE_PIXELS or 0) // 1_000_000} million "
            "pixels, which would exhaust the memory"
        )
    text = str(error).partition(" <")[0] or type(error).__name__
    return f"it is truncated ({text})" if "truncated" in text.lower() else text
