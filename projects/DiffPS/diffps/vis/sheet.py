# SPDX-License-Identifier: Apache-2.0
"""Sheets of panels: images in rows and columns, each with a title, a scale of colors and a note.

All numbers are pixels of what is drawn.
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
LINE = 21  # from one line of text to the next
HEAD, BAR, NOTE = 24, 20, 19  # heights of a panel's title, scale and note


@dataclass(frozen=True)
class Panel:
    """One image of a sheet.

    Args:
        image: scaled to the size of the row's panels, its shape kept.
        title: above it. note: below it.
        limits: values of the darkest and the brightest color, if it has a scale.
    """

    picture: Image.Image
    title: str = ""
    note: str = ""
    limits: tuple[float, float] | None = None


@dataclass(frozen=True)
class Row:
    """Panels side by side, behind a title."""

    panels: Sequence[Panel]
    title: str = ""


def draw_sheet(
    rows: Sequence[Row], panel_size: tuple[int, int], *, title: str, caption: str
) -> Image.Image:
    """Draws rows of panels below a title and a caption.

    Args:
        rows: at least one, with at least one panel.
        panel_size: (width, height) that every image is fitted into.
    """
    columns = max(len(row.panels) for row in rows)
    left = MARGIN + (ROW_TITLE_WIDTH + GAP if any(row.title for row in rows) else 0)
    width = left + columns * (panel_size[0] + GAP) - GAP + MARGIN
    width = max(width, 640)  # room for the caption
    lines = wrap(caption, font(TEXT_SIZE), width - 2 * MARGIN)
    heights = [_row_height(row, panel_size) for row in rows]
    top = MARGIN + 36 + LINE * len(lines) + 10
    sheet = Image.new("RGB", (width, top + sum(heights) + GAP * (len(rows) - 1) + MARGIN), WHITE)
    draw = ImageDraw.Draw(sheet)
    face = font(TITLE_SIZE, bold=True)
    draw.text((MARGIN, MARGIN), shorten(title, face, width - 2 * MARGIN), TEXT_COLOR, face)
    for index, line in enumerate(lines):
        draw.text((MARGIN, MARGIN + 36 + LINE * index), line, TEXT_COLOR, font(TEXT_SIZE))
    for row, height in zip(rows, heights, strict=True):
        _draw_row_title(draw, row.title, (MARGIN, top + HEAD))
        for column, panel in enumerate(row.panels):
            _draw_panel(sheet, panel, (left + column * (panel_size[0] + GAP), top), panel_size)
        top += height + GAP
    return sheet


def stack_sheets(sheets: Sequence[Image.Image], title: str) -> Image.Image:
    """One page with all sheets below each other, all as wide as the widest or narrower."""
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
    """Values in [0, 1] as lines over their rank, largest first.

    Args:
        curves: name, values and color of each.
        size: (width, height) of the image.
    """
    picture = Image.new("RGB", size, EMPTY_COLOR)
    draw = ImageDraw.Draw(picture)
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
    return picture


def format_value(value: float) -> str:
    """A number for a scale: three digits that count, and no more zeros than needed."""
    if value == 0 or 0.001 <= abs(value) < 10_000:
        return f"{value:.3g}" if abs(value) < 100 else f"{value:.0f}"
    return f"{value:.1e}"


def _row_height(row: Row, panel_size: tuple[int, int]) -> int:
    bar = BAR if any(panel.limits for panel in row.panels) else 0
    note = NOTE if any(panel.note for panel in row.panels) else 0
    return HEAD + panel_size[1] + bar + note


def _draw_row_title(draw: ImageDraw.ImageDraw, title: str, corner: tuple[int, int]) -> None:
    """The first line is bold; a line break in the title is kept."""
    top = corner[1]
    for index, part in enumerate(title.split("\n")):
        face = font(PANEL_SIZE, bold=index == 0)
        for line in wrap(part, face, ROW_TITLE_WIDTH):
            draw.text((corner[0], top), line, TEXT_COLOR, face)
            top += LINE


def _draw_panel(
    sheet: Image.Image, panel: Panel, corner: tuple[int, int], size: tuple[int, int]
) -> None:
    draw = ImageDraw.Draw(sheet)
    left, top = corner
    face = font(PANEL_SIZE, bold=True)
    title = shorten(panel.title, face, size[0])
    draw.text((left, top + HEAD / 2 - 1), title, TEXT_COLOR, face, anchor="lm")
    top += HEAD
    new = fitted_size(panel.picture.size, size)
    picture = panel.picture
    if new != picture.size:
        picture = picture.resize(new, Image.Resampling.LANCZOS)
    sheet.paste(picture, (left + (size[0] - new[0]) // 2, top))
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
    """Least value, colors, largest value, in one line."""
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
