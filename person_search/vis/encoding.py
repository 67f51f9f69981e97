# SPDX-License-Identifier: Apache-2.0
"""Images as files of bounded size, so that they can be mailed, put into a report or a README."""

import io
from collections.abc import Iterator

from PIL import Image, PngImagePlugin

MAX_BYTES = 600_000
MARK = "drawn by person_search"
"""Metadata of the images written here (PNG text "Software", JPEG comment)."""
_JPEG_QUALITIES = (92, 85, 75, 60)
_SHRINK = 0.85
_SMALLEST_SIDE = 64


def encode_image(picture: Image.Image, suffix: str, max_bytes: int = MAX_BYTES) -> bytes:
    """The content of a ``.png`` or ``.jpg`` file of at most ``max_bytes``.

    First the quality is lowered (PNG: 256 colors), then the size. An image of 64 pixels is not
    made smaller any more, whatever it takes.

    Raises:
        ValueError: another suffix.
    """
    if suffix not in (".png", ".jpg"):
        raise ValueError(f"images are written as .png or .jpg, not as '{suffix}'.")
    picture = picture.convert("RGB")
    while True:
        for content in _variants(picture, suffix):
            if len(content) <= max_bytes:
                return content
        if min(picture.size) * _SHRINK < _SMALLEST_SIDE:
            return content
        width, height = (round(side * _SHRINK) for side in picture.size)
        picture = picture.resize((width, height), Image.Resampling.LANCZOS)


def _variants(picture: Image.Image, suffix: str) -> Iterator[bytes]:
    """The file at falling quality."""
    if suffix == ".jpg":
        for quality in _JPEG_QUALITIES:
            yield _save(picture, "JPEG", quality=quality, optimize=True, comment=MARK)
    else:
        text = PngImagePlugin.PngInfo()
        text.add_text("Software", MARK)
        yield _save(picture, "PNG", pnginfo=text)
        yield _save(picture.quantize(256, dither=Image.Dither.NONE), "PNG", pnginfo=text)


def _save(picture: Image.Image, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def is_own_drawing(image: Image.Image) -> bool:
    """Returns whether an opened image file was written by :func:`encode_image`."""
    return image.info.get("Software") == MARK or image.info.get("comment") == MARK.encode()
