# SPDX-License-Identifier: Apache-2.0
"""Drawing primitives: colors, text, boxes, crops, marks of right and wrong.

Boxes are XYXY in pixels of their image. An *area* is (left, top, width, height) in integer pixels
of the canvas.
"""

import functools
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

# right and wrong also differ in their mark, for color-blind readers
QUERY_COLOR = (31, 78, 158)
RIGHT_COLOR = (0, 122, 82)
WRONG_COLOR = (214, 69, 10)
UNCHECKED_COLOR = (112, 48, 140)
NEUTRAL_COLOR = (91, 91, 102)
TEXT_COLOR = (34, 34, 40)
EMPTY_COLOR = (236, 236, 240)
WHITE = (255, 255, 255)

CROP_MARGIN = 0.08
"""Margin of a crop on each side, as a share of the box's width and height."""
MIN_CROP_SHAPE = 0.3
"""Minimum shorter side of a crop, as a share of the box's longer side."""

Color = tuple[int, int, int]
Area = tuple[int, int, int, int]


def to_image(image: np.ndarray) -> Image.Image:
    """Converts an RGB array to an image.

    Raises:
        ValueError: If the array is not (H, W, 3) of uint8 or is empty.
    """
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or image.size == 0:
        raise ValueError(
            "an image must be an RGB array (height, width, 3) of uint8, not "
            f"{image.shape} of {image.dtype}"
        )
    return Image.fromarray(image)


@functools.cache
def font(size: int, bold: bool = False) -> ImageFont.FreeTypeFont:
    """Returns DejaVu Sans from Matplotlib: the same on every machine, with most alphabets."""
    import matplotlib  # slow to import

    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    return ImageFont.truetype(folder / ("DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"), size)


def shorten(text: str, face: ImageFont.FreeTypeFont, width: float) -> str:
    """Replaces the middle of a text wider than ``width`` pixels by an ellipsis."""
    if face.getlength(text) <= width:
        return text
    for kept in range(len(text) - 1, 0, -1):
        head, tail = text[: math.ceil(kept / 2)], text[len(text) - kept // 2 :]
        if face.getlength(f"{head}…{tail}") <= width:
            return f"{head}…{tail}"
    return "…"


def wrap(text: str, face: ImageFont.FreeTypeFont, width: float) -> list[str]:
    """Wraps a text at spaces into lines of at most ``width`` pixels; a longer word is shortened."""
    lines: list[str] = []
    for word in text.split():
        if lines and face.getlength(f"{lines[-1]} {word}") <= width:
            lines[-1] += f" {word}"
        else:
            lines.append(shorten(word, face, width))
    return lines


def fitted_size(size: tuple[int, int], room: tuple[int, int]) -> tuple[int, int]:
    """Scales ``size`` (width, height) to fit into ``room``; each side has at least one pixel."""
    scale = min(room[0] / size[0], room[1] / size[1])
    return max(1, int(size[0] * scale + 0.5)), max(1, int(size[1] * scale + 0.5))


def crop_person(image: Image.Image, box: Sequence[float]) -> Image.Image:
    """Crops a person with a small margin; at least one pixel even if the box is outside.

    A very narrow box gets more of its surroundings, so that its place can be recognized.
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
    """Scales an image into the middle of an area and keeps its aspect ratio.

    Returns:
        The part of the area that the image covers.
    """
    left, top, width, height = area
    ImageDraw.Draw(sheet).rectangle((left, top, left + width - 1, top + height - 1), EMPTY_COLOR)
    new = fitted_size(image.size, (width, height))
    covered = (left + (width - new[0]) // 2, top + (height - new[1]) // 2, *new)
    sheet.paste(image.resize(new, Image.Resampling.LANCZOS), covered[:2])
    return covered


def draw_box(
    image: Image.Image,
    box: Sequence[float],
    color: Color,
    width: int = 3,
    dashed: bool = False,
    rim: int = 1,
) -> None:
    """Draws a box with a white rim, visible on any background; clipped to the image.

    Args:
        image: Image to draw on.
        box: Outer edge of the box, rim included.
        color: Color of the line.
        width: Width of the line in pixels.
        dashed: Draws a dashed line.
        rim: Width of the white rim on each side of the line in pixels.
    """
    limits = (image.width - 1, image.height - 1) * 2
    left, top, right, bottom = (
        int(min(max(round(v), 0), most)) for v, most in zip(box, limits, strict=True)
    )
    draw = ImageDraw.Draw(image)
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
    """Writes white text on a colored background; returns the corners of the background."""
    face = font(size, bold=True)
    x, y = round(left_top[0]), round(left_top[1])
    background = (x, y, x + round(face.getlength(text)) + 6, y + size + 6)
    draw.rectangle(background, color)
    draw.text((x + 3, y + 3 + size / 2), text, WHITE, face, anchor="lm")
    return background
