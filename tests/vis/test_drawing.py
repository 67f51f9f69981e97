# SPDX-License-Identifier: Apache-2.0
"""Boxes, crops, marks and texts, looked at pixel by pixel."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageDraw

from person_search.vis.drawing import (
    EMPTY_COLOR,
    QUERY_COLOR,
    RIGHT_COLOR,
    WHITE,
    WRONG_COLOR,
    crop_person,
    draw_box,
    draw_mark,
    fitted_size,
    font,
    paste_fitted,
    shorten,
    to_image,
    wrap,
)

BLACK = (0, 0, 0)
RED = (255, 0, 0)


def pixels_of(image: Image.Image, color: tuple[int, int, int]) -> set[tuple[int, int]]:
    """(x, y) of all pixels of exactly this color."""
    ys, xs = np.nonzero((np.asarray(image) == color).all(axis=2))
    return set(zip(xs.tolist(), ys.tolist(), strict=True))


def test_box_is_drawn_where_it_is() -> None:
    image = Image.new("RGB", (60, 50), BLACK)
    draw_box(image, (10, 5, 40, 30), RED, width=2)
    painted = pixels_of(image, RED) | pixels_of(image, WHITE)
    xs, ys = zip(*painted, strict=True)
    assert (min(xs), min(ys), max(xs), max(ys)) == (10, 5, 40, 30)
    assert image.getpixel((10, 17)) == WHITE  # rim
    assert image.getpixel((11, 17)) == image.getpixel((12, 17)) == RED
    assert image.getpixel((13, 17)) == WHITE
    assert image.getpixel((25, 17)) == BLACK  # the person stays visible


def test_a_thick_box_has_a_thick_rim() -> None:
    image = Image.new("RGB", (60, 60))
    draw_box(image, (10, 10, 49, 49), QUERY_COLOR, width=5, rim=2)
    row = [image.getpixel((x, 30)) for x in range(9, 21)]
    white, black = (255, 255, 255), (0, 0, 0)
    assert row == [black, *[white] * 2, *[QUERY_COLOR] * 5, *[white] * 2, black, black]


def test_dashed_box_has_gaps() -> None:
    solid, dashed = (Image.new("RGB", (90, 90), BLACK) for _ in range(2))
    draw_box(solid, (5, 5, 80, 80), RED)
    draw_box(dashed, (5, 5, 80, 80), RED, dashed=True)
    assert 0 < len(pixels_of(dashed, RED)) < 0.8 * len(pixels_of(solid, RED))


@given(st.tuples(*[st.floats(-500, 500)] * 4), st.booleans())
def test_any_box_can_be_drawn_and_cropped(values, dashed) -> None:
    x1, x2 = sorted(values[:2])
    y1, y2 = sorted(values[2:])
    image = Image.new("RGB", (40, 30))
    draw_box(image, (x1, y1, x2, y2), RED, dashed=dashed)
    crop = crop_person(image, (x1, y1, x2, y2))
    assert 1 <= crop.width <= 40 and 1 <= crop.height <= 30


def test_crop_is_the_box_with_its_margin() -> None:
    ramp = np.zeros((200, 100, 3), np.uint8)
    ramp[..., 0] = np.arange(100)  # red tells the column, green the row
    ramp[..., 1] = np.arange(200)[:, None]
    crop = np.asarray(crop_person(Image.fromarray(ramp), (20, 50, 60, 150)))
    # margins of 8 %: 3.2 and 8 pixels
    assert (crop[0, 0, 0], crop[0, 0, 1]) == (16, 42)
    assert (crop[-1, -1, 0], crop[-1, -1, 1]) == (63, 157)


def test_crop_stops_at_the_border() -> None:
    assert crop_person(Image.new("RGB", (100, 200)), (0, 0, 100, 200)).size == (100, 200)


def test_crop_of_a_sliver_shows_what_is_beside_it() -> None:
    crop = crop_person(Image.new("RGB", (300, 300)), (150, 100, 152, 200))
    assert crop.size == (30, 116)


@pytest.mark.parametrize(
    ("size", "room", "expected"),
    [((40, 20), (100, 100), (100, 50)), ((20, 40), (100, 100), (50, 100)),
     ((1000, 1), (50, 50), (50, 1)), ((1, 1000), (50, 50), (1, 50)), ((7, 7), (7, 7), (7, 7))],
)  # fmt: skip
def test_fitted_size_keeps_the_shape(size, room, expected) -> None:
    assert fitted_size(size, room) == expected


def test_paste_fitted_fills_the_rest_with_gray() -> None:
    sheet = Image.new("RGB", (50, 40))
    covered = paste_fitted(sheet, Image.new("RGB", (10, 20), RED), (10, 10, 30, 20))
    assert covered == (20, 10, 10, 20)
    assert pixels_of(sheet, RED) == {(x, y) for x in range(20, 30) for y in range(10, 30)}
    assert len(pixels_of(sheet, EMPTY_COLOR)) == 30 * 20 - 10 * 20


def test_marks_differ_in_shape() -> None:
    marks = []
    for right, color in ((True, RIGHT_COLOR), (False, WRONG_COLOR)):
        image = Image.new("RGB", (41, 41))
        draw_mark(ImageDraw.Draw(image), right, (20, 20), 15)
        assert image.getpixel((20, 6)) == WHITE, "the disk"
        marks.append(pixels_of(image, color))
    check, cross = marks
    assert check and cross
    # a cross is its own mirror image to within a pixel, a check mark is not at all
    assert max(overlap(cross, {(x0 - x, y) for x, y in cross}) for x0 in (39, 40, 41)) > 0.8
    assert max(overlap(check, {(x0 - x, y) for x, y in check}) for x0 in (39, 40, 41)) < 0.5


def overlap(a: set, b: set) -> float:
    return len(a & b) / len(a | b)


def test_shorten_keeps_both_ends() -> None:
    face = font(14)
    name = "a_very_long_file_name_of_a_camera_0001.jpg"
    short = shorten(name, face, 150)
    assert face.getlength(short) <= 150
    assert short.startswith("a_v") and short.endswith(".jpg") and "…" in short
    assert shorten("short", face, 150) == "short"
    assert shorten(name, face, 1) == "…"


def test_wrap_breaks_at_blanks() -> None:
    face = font(14)
    text = "Left: the person searched for. Right: the persons found."
    lines = wrap(text, face, 200)
    assert len(lines) > 1 and " ".join(lines) == text
    assert all(face.getlength(line) <= 200 for line in lines)
    assert wrap("", face, 200) == []


@pytest.mark.parametrize(
    "array",
    [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 4), np.uint8), np.zeros((4, 4, 3)),
     np.zeros((0, 4, 3), np.uint8)],
)  # fmt: skip
def test_what_is_no_image_is_refused(array) -> None:
    with pytest.raises(ValueError, match="RGB array"):
        to_image(array)
