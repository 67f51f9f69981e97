# SPDX-License-Identifier: Apache-2.0
"""Image files of bounded size, for mail, reports and READMEs."""

import io
from collections.abc import Iterator

from PIL import Image, PngImagePlugin

MAX_BYTES = 600_000
MARK = "drawn by person_search"
"""Metadata of the images written here (PNG text "Software", JPEG comment)."""
_JPEG_QUALITIES = (92, 85, 75, 60)
_SHRINK = 0.85
_SMALLEST_SIDE = 64


def encode_image(image: Image.Image, suffix: str, max_bytes: int = MAX_BYTES) -> bytes:
    """Encodes an image as a ``.png`` or ``.jpg`` file of at most ``max_bytes``.

    First the quality is reduced (PNG: 256 colors), then the size, down to a shorter side of about
    64 pixels. An image of that size may exceed the limit.

    Args:
        image: Image to encode.
        suffix: ``.png`` or ``.jpg``.
        max_bytes: Maximum size of the file.

    Returns:
        Content of the file.

    Raises:
        ValueError: If the suffix is another one.
    """
    if suffix not in (".png", ".jpg"):
        raise ValueError(f"images are written as .png or .jpg, not as '{suffix}'")
    image = image.convert("RGB")
    while True:
        for content in _variants(image, suffix):
            if len(content) <= max_bytes:
                return content
        if min(image.size) * _SHRINK < _SMALLEST_SIDE:
            return content
        width, height = (round(side * _SHRINK) for side in image.size)
        image = image.resize((width, height), Image.Resampling.LANCZOS)


def _variants(image: Image.Image, suffix: str) -> Iterator[bytes]:
    """Yields the file at decreasing quality."""
    if suffix == ".jpg":
        for quality in _JPEG_QUALITIES:
            yield _save(image, "JPEG", quality=quality, optimize=True, comment=MARK)
    else:
        text = PngImagePlugin.PngInfo()
        text.add_text("Software", MARK)
        yield _save(image, "PNG", pnginfo=text)
        yield _save(image.quantize(256, dither=Image.Dither.NONE), "PNG", pnginfo=text)


def _save(image: Image.Image, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def is_own_drawing(image: Image.Image) -> bool:
    """Returns whether an opened image file was written by :func:`encode_image`."""
    return image.info.get("Software") == MARK or image.info.get("comment") == MARK.encode()
