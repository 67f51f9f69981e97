# SPDX-License-Identifier: Apache-2.0
"""What all images share: colors, text, boxes, crops, marks of right and wrong.

Boxes are XYXY pixels of the image that they lie in. An *area* is (left, top, width, height) in
whole pixels of the image that is drawn on.
"""

import functools
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

# Right and wrong also differ in their mark, for people who cannot tell green from red.
QUERY_COLOR = (31, 78, 158)
RIGHT_COLOR = (0, 122, 82)
WRONG_COLOR = (214, 69, 10)
UNCHECKED_COLOR = (112, 48, 140)
NEUTRAL_COLOR = (91, 91, 102)
TEXT_COLOR = (34, 34, 40)
EMPTY_COLOR = (236, 236, 240)
WHITE = (255, 255, 255)

CROP_MARGIN = 0.08
"""Share of a box's width and height that is shown around a person on each side."""
MIN_CROP_SHAPE = 0.3
"""Smallest shorter side of a crop, as a share of the box's longer side."""

Color = tuple[int, int, int]
Area = tuple[int, int, int, int]


def to_image(image: np.ndarray) -> Image.Image:
    """Turns an RGB array into an image.

    Raises:
        ValueError: not (H, W, 3) of uint8, or empty.
    """
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or image.size == 0:
        raise ValueError(
            "an image must be an RGB array (height, width, 3) of uint8, but it is "
            f"{image.shape} of {image.dtype}."
        )
    return Image.fromarray(image)


@functools.cache
def font(size: int, bold: bool = False) -> ImageFont.FreeTypeFont:
    """DejaVu Sans, which Matplotlib brings along: the same on every machine, and any alphabet."""
    import matplotlib  # takes a while, and only drawing needs it

    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    return ImageFont.truetype(folder / ("DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"), size)


def shorten(text: str, face: ImageFont.FreeTypeFont, width: float) -> str:
    """Cuts the middle out of a text that is wider than ``width`` pixels."""
    if face.getlength(text) <= width:
        return text
    for kept in range(len(text) - 1, 0, -1):
        head, tail = text[: math.ceil(kept / 2)], text[len(text) - kept // 2 :]
        if face.getlength(f"{head}…{tail}") <= width:
            return f"{head}…{tail}"
    return "…"


def wrap(text: str, face: ImageFont.FreeTypeFont, width: float) -> list[str]:
    """Breaks a text at blanks into lines of at most ``width`` pixels; a longer word is cut."""
    lines: list[str] = []
    for word in text.split():
        if lines and face.getlength(f"{lines[-1]} {word}") <= width:
            lines[-1] += f" {word}"
        else:
            lines.append(shorten(word, face, width))
    return lines


def fitted_size(size: tuple[int, int], room: tuple[int, int]) -> tuple[int, int]:
    """Largest (width, height) of the same shape as ``size`` inside ``room``; at least one pixel."""
    scale = min(room[0] / size[0], room[1] / size[1])
    return max(1, int(size[0] * scale + 0.5)), max(1, int(size[1] * scale + 0.5))


def crop_person(image: Image.Image, box: Sequence[float]) -> Image.Image:
    """The person with a small margin; at least one pixel even if the box lies outside.

    A sliver of a box gets more of what is beside it, so that one can see what it lies on.
    """
    x1, y1, x2, y2 = box
    least = MIN_CROP_SHAPE * max(x2 - x1, y2 - y1)
    half_width = max((0.5 + CROP_MARGIN) * (x2 - x1), least / 2)
    half_height = max((0.5 + CROP_MARGIN) * (y2 - y1), least / 2)
    x, y = (x1 + x2) / 2, (y1 + y2) / 2
    left = min(max(math.floor(x - half_width), 0), image.width - 1)
    top = min(max(math.floor(y - half_height), 0), image.height - 1)
    right = min(max(math.ceil(x + half_width), left + 1), image.width)
    bottom = min(max(math.ceil(y + half_height), top + 1), image.height)
    return image.crop((left, top, right, bottom))


def paste_fitted(sheet: Image.Image, image: Image.Image, area: Area) -> Area:
    """Scales an image into the middle of an area, without changing its shape.

    Returns:
        the part of the area that it covers.
    """
    left, top, width, height = area
    ImageDraw.Draw(sheet).rectangle((left, top, left + width - 1, top + height - 1), EMPTY_COLOR)
    new = fitted_size(image.size, (width, height))
    covered = (left + (width - new[0]) // 2, top + (height - new[1]) // 2, *new)
    sheet.paste(image.resize(new, Image.Resampling.LANCZOS), covered[:2])
    return covered


def draw_box(
    picture: Image.Image,
    box: Sequence[float],
    color: Color,
    width: int = 3,
    dashed: bool = False,
    rim: int = 1,
) -> None:
    """Draws a box with a white rim, which lifts it off any ground; clipped to the image.

    Args:
        image: that is drawn on.
        box: its outer edge, rim included.
        color: of the line.
        width: of the line, and ``rim`` of the white on each side of it, in pixels.
        dashed: a broken line.
    """
    limits = (picture.width - 1, picture.height - 1) * 2
    left, top, right, bottom = (
        int(min(max(round(v), 0), most)) for v, most in zip(box, limits, strict=True)
    )
    draw = ImageDraw.Draw(picture)
    draw.rectangle((left, top, right, bottom), outline=WHITE, width=width + 2 * rim)
    if not dashed:
        inside = (left + rim, top + rim, max(right - rim, left + rim), max(bottom - rim, top + rim))
        draw.rectangle(inside, outline=color, width=width)
        return
    dash = 4 * width
    for x in range(left, right, 2 * dash):
        for y in (top, max(bottom - width, top)):
            draw.rectangle((x, y, min(x + dash, right), y + width), color)
    for y in range(top, bottom, 2 * dash):
        for x in (left, max(right - width, left)):
            draw.rectangle((x, y, x + width, min(y + dash, bottom)), color)


def draw_mark(draw: ImageDraw.ImageDraw, right: bool, center: tuple[int, int], radius: int) -> None:
    """Draws a white disk with a green check mark (right) or an orange-red cross (wrong)."""
    x, y = center
    draw.ellipse((x - radius, y - radius, x + radius, y + radius), WHITE)
    arm = 0.5 * radius
    stroke = max(2, round(radius / 3.2))
    if right:
        points = [(x - arm, y), (x - 0.2 * arm, y + 0.8 * arm), (x + 1.1 * arm, y - 0.8 * arm)]
        draw.line(points, RIGHT_COLOR, stroke, joint="curve")
    else:
        draw.line((x - arm, y - arm, x + arm, y + arm), WRONG_COLOR, stroke)
        draw.line((x - arm, y + arm, x + arm, y - arm), WRONG_COLOR, stroke)


def label(
    draw: ImageDraw.ImageDraw, text: str, left_top: tuple[float, float], color: Color, size: int
) -> tuple[int, int, int, int]:
    """Writes white text on a ground of the given color; returns the corners of the ground."""
    face = font(size, bold=True)
    x, y = round(left_top[0]), round(left_top[1])
    ground = (x, y, x + round(face.getlength(text)) + 6, y + size + 6)
    draw.rectangle(ground, color)
    draw.text((x + 3, y + 3 + size / 2), text, WHITE, face, anchor="lm")
    return ground
