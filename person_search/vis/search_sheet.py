# SPDX-License-Identifier: Apache-2.0
"""A search as one image: the query on the left, the ranked scenes on the right.

Boxes are XYXY in pixels of their scene; all other numbers are pixels of the sheet.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from person_search.vis.drawing import (
    NEUTRAL_COLOR,
    QUERY_COLOR,
    RIGHT_COLOR,
    TEXT_COLOR,
    UNCHECKED_COLOR,
    WHITE,
    WRONG_COLOR,
    Area,
    crop_person,
    draw_box,
    draw_mark,
    font,
    paste_fitted,
    shorten,
    to_image,
    wrap,
)

STATUS_COLORS = {
    "query": QUERY_COLOR,
    "match": RIGHT_COLOR,
    "other": WRONG_COLOR,
    "repeat": NEUTRAL_COLOR,
    "unknown": UNCHECKED_COLOR,
}
LEGEND = {
    "match": "the same person",
    "other": "another person, or a box that misses the person",
    "repeat": "the same person again in the same image (counts as wrong)",
}
MARKS = {"match": True, "other": False}
"""Statuses with a check mark (True) or a cross (False)."""
QUERY_TITLE = "Query: where is this person?"

MARGIN, GAP, BORDER = 20, 14, 4
STRIP, NOTE = 36, 22  # height of a card's colored title and of its note
SCENE = (292, 219)
CROP_WIDTH = 100
CARD = (SCENE[0] + CROP_WIDTH + 3 * BORDER, STRIP + SCENE[1] + NOTE + BORDER)
QUERY_WIDTH = 380
QUERY_SCENE_HEIGHT = 280
MAX_QUERY_ROWS = 3  # height limit of the query in rows of cards
MAX_QUERY_CROPS = 4  # more images of the person would be too small


@dataclass(frozen=True)
class SheetCell:
    """One scene with one person.

    Attributes:
        image: (H, W, 3) uint8 RGB.
        box: Box of the person.
        title: Text in the colored strip above the scene, for example the similarity.
        status: ``query``, ``match`` (right), ``other`` (wrong), ``repeat`` (found a second time) or
            ``unknown``.
        note: Small text below the scene, for example a file name.
    """

    image: np.ndarray
    box: Sequence[float]
    title: str
    status: str = "unknown"
    note: str = ""

    def __post_init__(self) -> None:
        if self.status not in STATUS_COLORS:
            raise ValueError(f"status is '{self.status}', must be one of {sorted(STATUS_COLORS)}")


@dataclass(frozen=True)
class SheetLayout:
    """Layout of a sheet, computed from the number of results alone.

    Attributes:
        size: (width, height) of the sheet.
        query: Area of the query's card.
        cards: Areas of the results' cards.
    """

    size: tuple[int, int]
    query: Area
    cards: tuple[Area, ...]

    @classmethod
    def of(cls, count: int, columns: int, head: int) -> "SheetLayout":
        """Returns the layout for ``count`` results below ``head`` pixels of text."""
        rows = max(2, -(-count // columns))
        height = rows * CARD[1] + (rows - 1) * GAP
        left = MARGIN + QUERY_WIDTH + 2 * GAP
        cards = tuple(
            (left + (i % columns) * (CARD[0] + GAP), head + (i // columns) * (CARD[1] + GAP), *CARD)
            for i in range(count)
        )
        width = left + columns * CARD[0] + (columns - 1) * GAP + MARGIN
        query_height = min(height, MAX_QUERY_ROWS * CARD[1] + (MAX_QUERY_ROWS - 1) * GAP)
        return cls(
            (width, head + height + MARGIN), (MARGIN, head, QUERY_WIDTH, query_height), cards
        )


def scene_area(card: Area) -> Area:
    """Returns the area of a result's scene."""
    return card[0] + BORDER, card[1] + STRIP, *SCENE


def crop_area(card: Area) -> Area:
    """Returns the area of a result's enlarged person."""
    return card[0] + 2 * BORDER + SCENE[0], card[1] + STRIP, CROP_WIDTH, SCENE[1]


def query_scene_area(card: Area) -> Area:
    """Returns the area of the query's scene."""
    return card[0] + BORDER, card[1] + STRIP, card[2] - 2 * BORDER, QUERY_SCENE_HEIGHT


def query_crop_area(card: Area) -> Area:
    """Returns the area of the enlarged query."""
    top = STRIP + QUERY_SCENE_HEIGHT + BORDER
    return card[0] + BORDER, card[1] + top, card[2] - 2 * BORDER, card[3] - top - NOTE - BORDER


def split_area(area: Area, count: int) -> list[Area]:
    """Splits an area into ``count`` parts side by side, with a gap between them."""
    left, top, width, height = area
    part = (width - (count - 1) * BORDER) // count
    return [(left + i * (part + BORDER), top, part, height) for i in range(count)]


def draw_search_sheet(
    query: SheetCell,
    results: Sequence[SheetCell],
    *,
    more_queries: Sequence[SheetCell] = (),
    title: str = "",
    caption: str = "",
    columns: int = 3,
) -> Image.Image:
    """Draws a search.

    Args:
        query: Image of the person to search for.
        results: Results, best first; may be empty.
        more_queries: Further images of the same person; the first few are shown as crops.
        title: Line at the top.
        caption: Sentences below the title.
        columns: Number of results per row.

    Returns:
        An RGB image.
    """
    width = SheetLayout.of(len(results), columns, 0).size[0]
    lines = wrap(caption, font(19), width - 2 * MARGIN)
    used = [status for status in LEGEND if any(cell.status == status for cell in results)]
    head = MARGIN + (44 if title else 0) + 27 * len(lines) + (40 if used else 0) + 8
    layout = SheetLayout.of(len(results), columns, head)
    sheet = Image.new("RGB", layout.size, WHITE)
    draw = ImageDraw.Draw(sheet)
    top = MARGIN
    if title:
        face = font(28, bold=True)
        draw.text((MARGIN, top), shorten(title, face, width - 2 * MARGIN), TEXT_COLOR, face)
        top += 44
    for line in lines:
        draw.text((MARGIN, top), line, TEXT_COLOR, font(19))
        top += 27
    _draw_legend(draw, used, (MARGIN, top + 6))
    _draw_query(sheet, layout.query, [query, *more_queries])
    for cell, card in zip(results, layout.cards, strict=True):
        _draw_result(sheet, card, cell)
    if not results:
        left = layout.query[0] + QUERY_WIDTH
        middle = ((left + width) / 2, layout.query[1] + layout.query[3] / 2)
        draw.text(middle, "No person was found.", NEUTRAL_COLOR, font(30, bold=True), anchor="mm")
    return sheet


def _draw_legend(
    draw: ImageDraw.ImageDraw, statuses: Sequence[str], left_top: tuple[int, int]
) -> None:
    x, y = left_top
    for status in statuses:
        draw.rounded_rectangle((x, y, x + 46, y + 26), 4, STATUS_COLORS[status])
        if status in MARKS:
            draw_mark(draw, MARKS[status], (x + 23, y + 13), 10)
        draw.text((x + 56, y + 13), LEGEND[status], TEXT_COLOR, font(18), anchor="lm")
        x += 56 + round(font(18).getlength(LEGEND[status])) + 40


def _draw_query(sheet: Image.Image, card: Area, cells: Sequence[SheetCell]) -> None:
    """Draws the scene of the first image, and the person in all of them."""
    _draw_card(sheet, card, cells[0])
    _draw_scene(sheet, query_scene_area(card), cells[0])
    shown = cells[:MAX_QUERY_CROPS]
    for cell, area in zip(shown, split_area(query_crop_area(card), len(shown)), strict=True):
        paste_fitted(sheet, crop_person(to_image(cell.image), cell.box), area)


def _draw_result(sheet: Image.Image, card: Area, cell: SheetCell) -> None:
    _draw_card(sheet, card, cell)
    _draw_scene(sheet, scene_area(card), cell)
    paste_fitted(sheet, crop_person(to_image(cell.image), cell.box), crop_area(card))


def _draw_card(sheet: Image.Image, card: Area, cell: SheetCell) -> None:
    """Draws the frame, the strip with mark and title, and the note."""
    draw = ImageDraw.Draw(sheet)
    left, top, width, height = card
    color = STATUS_COLORS[cell.status]
    corners = (left, top, left + width - 1, top + height - 1)
    draw.rectangle(corners, WHITE, color, BORDER)
    draw.rectangle((left, top, left + width - 1, top + STRIP - 1), color)
    x = left + 10
    if cell.status in MARKS:
        draw_mark(draw, MARKS[cell.status], (x + 13, top + STRIP // 2), 14)
        x += 36
    face = font(19, bold=True)
    text = shorten(cell.title, face, left + width - 8 - x)
    draw.text((x, top + STRIP / 2), text, WHITE, face, anchor="lm")
    note = shorten(cell.note, font(14), width - 4 * BORDER)
    middle = (left + 2 * BORDER, top + height - BORDER - NOTE / 2)
    draw.text(middle, note, NEUTRAL_COLOR, font(14), anchor="lm")


def _draw_scene(sheet: Image.Image, area: Area, cell: SheetCell) -> None:
    image = to_image(cell.image)
    covered = paste_fitted(sheet, image, area)
    scale = np.array(covered[2:] * 2) / (image.size * 2)
    scene = sheet.crop((covered[0], covered[1], covered[0] + covered[2], covered[1] + covered[3]))
    # the rim surrounds the person
    x1, y1, x2, y2 = np.asarray(cell.box, float) * scale
    draw_box(scene, (x1 - 3, y1 - 3, x2 + 3, y2 + 3), STATUS_COLORS[cell.status])
    sheet.paste(scene, covered[:2])
