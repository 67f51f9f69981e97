# SPDX-License-Identifier: Apache-2.0
"""The sheet of a search: positions follow the layout, whatever the shapes."""

import numpy as np
import pytest
from PIL import Image

from person_search.vis import SheetCell, draw_search_sheet
from person_search.vis import search_sheet as sheet_module
from person_search.vis.drawing import QUERY_COLOR, RIGHT_COLOR, WRONG_COLOR
from person_search.vis.search_sheet import (
    CARD,
    SheetLayout,
    crop_area,
    query_crop_area,
    query_scene_area,
    scene_area,
    split_area,
)

PERSON = (250, 210, 20)


def scene(width: int = 320, height: int = 240, box=(60, 40, 100, 160)) -> np.ndarray:
    """A black scene with one yellow person."""
    image = np.zeros((height, width, 3), np.uint8)
    x1, y1, x2, y2 = box
    image[y1:y2, x1:x2] = PERSON
    return image


def cell(status: str = "match", box=(60, 40, 100, 160), **size) -> SheetCell:
    return SheetCell(scene(box=box, **size), box, "1.  similarity 0.90", status, "s1.jpg")


def part(sheet: Image.Image, area) -> np.ndarray:
    left, top, width, height = area
    return np.asarray(sheet)[top : top + height, left : left + width].astype(int)


def is_color(pixels: np.ndarray, color, tolerance: int = 40) -> np.ndarray:
    return (np.abs(pixels - color) <= tolerance).all(axis=-1)


def sheet_and_layout(results, **options) -> tuple[Image.Image, SheetLayout]:
    sheet = draw_search_sheet(cell("query"), results, **options)
    bare = SheetLayout.of(len(results), options.get("columns", 3), 0)
    head = sheet.height - bare.size[1]
    return sheet, SheetLayout.of(len(results), options.get("columns", 3), head)


def test_box_lies_around_the_person_in_the_scene() -> None:
    sheet, layout = sheet_and_layout([cell()], title="t", caption="c")
    area = scene_area(layout.cards[0])
    pixels = part(sheet, area)
    ys, xs = np.nonzero(is_color(pixels, PERSON))
    scale = 292 / 320
    person = np.array([60, 40, 100, 160]) * scale
    assert np.abs(np.array([xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]) - person).max() <= 3
    x, y = round(80 * scale), round(100 * scale)  # the middle of the person
    assert is_color(pixels[y, x], PERSON)
    # leaving the person to the left one meets the green line within four pixels, and black beyond
    left = round(60 * scale)
    assert is_color(pixels[y, left - 4 : left + 2], RIGHT_COLOR).any()
    assert pixels[y, left - 10].max() < 40


def test_crop_shows_the_person_and_little_else() -> None:
    sheet, layout = sheet_and_layout([cell()])
    for area in (crop_area(layout.cards[0]), query_crop_area(layout.query)):
        pixels = part(sheet, area)
        height, width = pixels.shape[:2]
        assert is_color(pixels[height // 2, width // 2], PERSON)
        black = (pixels.max(axis=2) < 30).mean()
        assert black < 0.45 * is_color(pixels, PERSON).mean()


def test_query_is_blue_and_has_its_box() -> None:
    sheet, layout = sheet_and_layout([cell()])
    assert sheet.getpixel((layout.query[0] + 1, layout.query[1] + 1)) == QUERY_COLOR
    assert is_color(part(sheet, query_scene_area(layout.query)), QUERY_COLOR, 5).sum() > 200


def test_right_and_wrong_have_color_and_mark() -> None:
    sheet, layout = sheet_and_layout([cell("match"), cell("other"), cell("unknown")])
    strips = [part(sheet, (card[0], card[1], 50, 36)) for card in layout.cards]
    assert tuple(strips[0][2, 2]) == RIGHT_COLOR and tuple(strips[1][2, 2]) == WRONG_COLOR
    disks = [is_color(strip, (255, 255, 255), 5).sum() for strip in strips]
    assert disks[0] > 300 and disks[1] > 300, "white disks that carry the marks"
    assert disks[2] < 150, "unknown: text only"


def test_legend_names_what_is_on_the_sheet(monkeypatch) -> None:
    with_both = draw_search_sheet(cell("query"), [cell("match"), cell("other")])
    with_none = draw_search_sheet(cell("query"), [cell("unknown"), cell("unknown")])
    assert with_both.height - with_none.height == 40


@pytest.mark.parametrize("count", [0, 1, 3, 4, 9, 13])
def test_cards_do_not_overlap_and_lie_on_the_sheet(count: int) -> None:
    layout = SheetLayout.of(count, 3, 100)
    taken = np.zeros((layout.size[1], layout.size[0]), int)
    for left, top, width, height in (layout.query, *layout.cards):
        assert left >= 0 and left + width <= layout.size[0]
        assert top >= 100 and top + height <= layout.size[1]
        taken[top : top + height, left : left + width] += 1
    assert taken.max() == 1


@pytest.mark.parametrize("box", [(0, 0, 320, 4), (100, 0, 101, 240), (10, 10, 310, 40)])
@pytest.mark.parametrize("size", [{"width": 320, "height": 240}, {"width": 900, "height": 240}])
def test_odd_shapes_stay_inside_their_card(box, size) -> None:
    """Everything outside the cards is the same as with an ordinary person."""
    usual, layout = sheet_and_layout([cell()])
    odd, _ = sheet_and_layout([cell(box=box, **size)])
    assert odd.size == usual.size
    left, top, width, height = layout.cards[0]
    images = [np.asarray(x).copy() for x in (usual, odd)]
    for image in images:
        image[top : top + height, left : left + width] = 0
    assert (images[0] == images[1]).all()
    card = part(odd, layout.cards[0])
    assert is_color(card[:, :4], RIGHT_COLOR, 0).all() and card.shape[:2] == CARD[::-1]


def test_long_texts_do_not_leave_the_sheet() -> None:
    long = SheetCell(scene(), (60, 40, 100, 160), "very " * 40, "match", "name" * 60)
    sheet, layout = sheet_and_layout([long], title="a title " * 60, caption="words " * 200)
    pixels = np.asarray(sheet)
    assert (pixels[:, -sheet_module.MARGIN + 2 :] == 255).all(), "right margin"
    assert (pixels[-sheet_module.MARGIN + 2 :] == 255).all(), "lower margin"
    assert layout.cards[0][1] > 150, "the caption needs several lines"


def test_a_search_without_results() -> None:
    sheet, layout = sheet_and_layout([])
    right = part(sheet, (layout.query[0] + layout.query[2] + 5, layout.query[1], 800, 400))
    assert (right.max(axis=2) < 120).sum() > 500


@pytest.mark.parametrize("count", [2, 4, 6])
def test_several_images_of_the_person(count: int) -> None:
    """Each shows the person in a place of its own; beyond four the first four."""
    colors = [(40 * i + 10, 200, 90) for i in range(count)]
    cells = [SheetCell(np.full((80, 60, 3), color, np.uint8), (10, 10, 40, 70), "q", "query")
             for color in colors]  # fmt: skip
    sheet = draw_search_sheet(cells[0], [], more_queries=cells[1:])
    layout = SheetLayout.of(0, 3, sheet.height - SheetLayout.of(0, 3, 0).size[1])
    whole = query_crop_area(layout.query)
    areas = split_area(whole, min(count, 4))
    for color, area in zip(colors, areas, strict=False):
        middle = part(sheet, area)[area[3] // 2, area[2] // 2]
        assert np.abs(middle - color).max() <= 2
    assert areas[-1][0] + areas[-1][2] <= whole[0] + whole[2]
    assert len(areas) == min(count, 4)


def test_unknown_status_is_refused() -> None:
    with pytest.raises(ValueError, match="status is 'good'"):
        SheetCell(scene(), (0, 0, 1, 1), "", "good")
