# SPDX-License-Identifier: Apache-2.0
"""Sheets of panels: images in rows and columns, each with a title, a color scale and a note.

All sizes are in pixels of the sheet.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image, ImageDraw

from diffps.vis.maps import COLORMAP, colorize
from person_search.vis.drawing import (
    EMPTY_COLOR,
    NEUTRAL_COLOR,
    TEXT_COLOR,
    WHITE,
    fitted_size,
    font,
    shorten,
    wrap,
)

MARGIN, GAP = 18, 12
ROW_TITLE_WIDTH = 132
TITLE_SIZE, TEXT_SIZE, PANEL_SIZE, NOTE_SIZE = 24, 16, 15, 13
LINE = 21  # distance of text lines
HEAD, BAR, NOTE = 24, 20, 19  # heights of the title, scale and note of a panel


@dataclass(frozen=True)
class Panel:
    """One image of a sheet.

    Attributes:
        image: Image, scaled to the panel size of the sheet with its aspect ratio kept.
        title: Text above the image.
        note: Text below the image.
        limits: Values of the darkest and the brightest color; None without a color scale.
    """

    image: Image.Image
    title: str = ""
    note: str = ""
    limits: tuple[float, float] | None = None


@dataclass(frozen=True)
class Row:
    """Panels side by side after a title, whose first line is bold."""

    panels: Sequence[Panel]
    title: str = ""


def draw_sheet(
    rows: Sequence[Row], panel_size: tuple[int, int], *, title: str, caption: str
) -> Image.Image:
    """Draws rows of panels below a title and a caption.

    Args:
        rows: At least one row with at least one panel.
        panel_size: (width, height) that every image is fitted into.
        title: Title of the sheet.
        caption: Text below the title.
    """
    columns = max(len(row.panels) for row in rows)
    left = MARGIN + (ROW_TITLE_WIDTH + GAP if any(row.title for row in rows) else 0)
    width = left + columns * (panel_size[0] + GAP) - GAP + MARGIN
    width = max(width, 640)  # room for the caption
    lines = wrap(caption, font(TEXT_SIZE), width - 2 * MARGIN)
    heights = [
        HEAD
        + panel_size[1]
        + BAR * any(panel.limits for panel in row.panels)
        + NOTE * any(panel.note for panel in row.panels)
        for row in rows
    ]
    top = MARGIN + 36 + LINE * len(lines) + 10
    sheet = Image.new("RGB", (width, top + sum(heights) + GAP * (len(rows) - 1) + MARGIN), WHITE)
    draw = ImageDraw.Draw(sheet)
    face = font(TITLE_SIZE, bold=True)
    draw.text((MARGIN, MARGIN), shorten(title, face, width - 2 * MARGIN), TEXT_COLOR, face)
    for index, line in enumerate(lines):
        draw.text((MARGIN, MARGIN + 36 + LINE * index), line, TEXT_COLOR, font(TEXT_SIZE))
    for row, height in zip(rows, heights, strict=True):
        line_top = top + HEAD
        for index, part in enumerate(row.title.split("\n")):
            face = font(PANEL_SIZE, bold=index == 0)
            for line in wrap(part, face, ROW_TITLE_WIDTH):
                draw.text((MARGIN, line_top), line, TEXT_COLOR, face)
                line_top += LINE
        for column, panel in enumerate(row.panels):
            _draw_panel(sheet, panel, (left + column * (panel_size[0] + GAP), top), panel_size)
        top += height + GAP
    return sheet


def stack_sheets(sheets: Sequence[Image.Image], title: str) -> Image.Image:
    """Returns one page with all sheets below each other, as wide as the widest."""
    width = max(sheet.width for sheet in sheets)
    face = font(30, bold=True)
    page = Image.new("RGB", (width, 64 + sum(sheet.height + 8 for sheet in sheets)), WHITE)
    draw = ImageDraw.Draw(page)
    text = shorten(title, face, width - 2 * MARGIN)
    draw.text((MARGIN, 36), text, TEXT_COLOR, face, anchor="lm")
    top = 64
    for sheet in sheets:
        draw.line((MARGIN, top, width - MARGIN, top), NEUTRAL_COLOR, 2)
        page.paste(sheet, (0, top + 4))
        top += sheet.height + 8
    return page


def draw_curves(
    curves: Sequence[tuple[str, Sequence[float], tuple[int, int, int]]], size: tuple[int, int]
) -> Image.Image:
    """Draws values in [0, 1] as curves over their rank, largest first.

    Args:
        curves: Name, values and color of each curve.
        size: (width, height) of the image.
    """
    image = Image.new("RGB", size, EMPTY_COLOR)
    draw = ImageDraw.Draw(image)
    left, top, right, bottom = 34, 12, size[0] - 12, size[1] - 28
    face = font(NOTE_SIZE)
    for value in (0.0, 0.5, 1.0):
        y = bottom - value * (bottom - top)
        draw.line((left, y, right, y), (205, 205, 212))
        draw.text((left - 5, y), f"{value:g}", TEXT_COLOR, face, anchor="rm")
    x = left
    for name, values, color in curves:
        points = sorted(values, reverse=True)
        step = (right - left) / max(1, len(points) - 1)
        line = [(left + i * step, bottom - v * (bottom - top)) for i, v in enumerate(points)]
        draw.line(line, color, 3)
        draw.rectangle((x, size[1] - 19, x + 12, size[1] - 7), color)
        draw.text((x + 17, size[1] - 13), name, TEXT_COLOR, face, anchor="lm")
        x += 27 + round(face.getlength(name))
    return image


def format_value(value: float) -> str:
    """Formats a value of a scale with three significant digits."""
    if value == 0 or 0.001 <= abs(value) < 10_000:
        return f"{value:.3g}" if abs(value) < 100 else f"{value:.0f}"
    return f"{value:.1e}"


def _draw_panel(
    sheet: Image.Image, panel: Panel, corner: tuple[int, int], size: tuple[int, int]
) -> None:
    draw = ImageDraw.Draw(sheet)
    left, top = corner
    face = font(PANEL_SIZE, bold=True)
    title = shorten(panel.title, face, size[0])
    draw.text((left, top + HEAD / 2 - 1), title, TEXT_COLOR, face, anchor="lm")
    top += HEAD
    new = fitted_size(panel.image.size, size)
    image = panel.image
    if new != image.size:
        image = image.resize(new, Image.Resampling.LANCZOS)
    sheet.paste(image, (left + (size[0] - new[0]) // 2, top))
    top += new[1]
    if panel.limits is not None:
        _draw_scale(sheet, panel.limits, (left, top + 4), size[0])
        top += BAR
    if panel.note:
        face = font(NOTE_SIZE)
        note = shorten(panel.note, face, size[0])
        draw.text((left, top + NOTE / 2 + 1), note, NEUTRAL_COLOR, face, anchor="lm")


def _draw_scale(
    sheet: Image.Image, limits: tuple[float, float], corner: tuple[int, int], width: int
) -> None:
    """Draws the lowest value, the colors and the highest value in one line."""
    draw = ImageDraw.Draw(sheet)
    face = font(NOTE_SIZE)
    texts = [format_value(value) for value in limits]
    room = [round(face.getlength(text)) + 5 for text in texts]
    left, top = corner
    middle = top + 7
    draw.text((left, middle), texts[0], TEXT_COLOR, face, anchor="lm")
    draw.text((left + width, middle), texts[1], TEXT_COLOR, face, anchor="rm")
    length = max(8, width - sum(room))
    ramp = colorize(torch.linspace(0, 1, length)[None], COLORMAP)
    sheet.paste(Image.fromarray(np.repeat(ramp, 12, axis=0)), (left + room[0], top + 1))
