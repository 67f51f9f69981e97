# SPDX-License-Identifier: Apache-2.0
"""Data set records as images."""

import numpy as np
import pytest
from detectron2.structures import BoxMode

from person_search.vis import draw_record
from person_search.vis.drawing import NEUTRAL_COLOR, QUERY_COLOR
from person_search.vis.records import HEAD, color_of


def entry(bbox, **others) -> dict:
    return {"bbox": bbox, "bbox_mode": BoxMode.XYXY_ABS, "category_id": 0, **others}


def record(**others) -> dict:
    return {"image_id": 7, "cam_id": None, "annotations": [], **others}


def colored(image, color) -> tuple[int, int, int, int]:
    """Corners of all that has this color below the head."""
    ys, xs = np.nonzero((np.asarray(image)[HEAD:] == color).all(axis=2))
    return int(xs.min()), int(ys.min()), int(xs.max()), int(ys.max())


def test_box_of_a_person_is_scaled_with_the_scene() -> None:
    person = entry([20.0, 30.0, 40.0, 80.0], person_id=3)
    image = draw_record(np.zeros((100, 200, 3), np.uint8), record(annotations=[person]), 800)
    assert image.size == (800, 400 + HEAD)
    left, top, right, bottom = colored(image, color_of(3))
    assert (left, right, bottom) == (80, 159, 319)  # four times, inside the white rim
    assert top == 120 - 22, "the label stands above the box"


def test_query_is_drawn_around_the_person() -> None:
    query = entry([50.0, 20.0, 70.0, 60.0], query_id=12)
    image = draw_record(np.zeros((100, 200, 3), np.uint8), record(queries=[query]), 200)
    left, top, _, _ = colored(image, QUERY_COLOR)
    assert (left, top) == (44, 15)  # six pixels out, one of them rim; the label begins at 44


def test_unlabeled_is_gray_and_dashed() -> None:
    person = entry([10.0, 30.0, 90.0, 90.0], person_id=-1)
    image = draw_record(np.zeros((100, 100, 3), np.uint8), record(annotations=[person]), 400)
    gray = (np.asarray(image)[HEAD:] == NEUTRAL_COLOR).all(axis=2)
    lower_edge = gray[350:362, 40:360].any(axis=0)
    assert 0.3 < lower_edge.mean() < 0.8


@pytest.mark.parametrize("box", [[0.0, 0.0, 5.0, 5.0], [95.0, 95.0, 100.0, 100.0]])
def test_label_at_a_border_is_moved_inside(box) -> None:
    person = entry(box, person_id=123456)
    image = draw_record(np.zeros((100, 100, 3), np.uint8), record(annotations=[person]), 300)
    left, top, right, bottom = colored(image, color_of(123456))
    assert left >= 0 and top >= 0 and right <= 299 and bottom <= 299
    assert right - left > 60, "the whole label is there"


def test_colors_of_identities() -> None:
    colors = [color_of(pid) for pid in range(6)]
    assert len(set(colors)) == 6 and color_of(-1) == NEUTRAL_COLOR
    distances = [np.abs(np.subtract(a, b)).sum() for a in colors for b in colors if a != b]
    assert min(distances) > 40
    # none is the blue of the queries
    far = [np.abs(np.subtract(color_of(pid), QUERY_COLOR)).sum() for pid in range(500)]
    assert min(far) > 60


def test_record_of_a_camera_without_people() -> None:
    image = draw_record(np.zeros((50, 100, 3), np.uint8), record(cam_id=3, queries=[]), 300)
    assert (np.asarray(image)[HEAD:] == 0).all()
    assert (np.asarray(image)[:HEAD] < 128).any(), "text above the scene"
