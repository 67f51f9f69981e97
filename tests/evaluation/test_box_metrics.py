# SPDX-License-Identifier: Apache-2.0
"""IoU, the threshold for small persons, and the helpers that pair boxes image by image."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from slow_reference import iou

from person_search.evaluation.box_metrics import (
    adaptive_iou_threshold,
    aligned_iou,
    expand_ranges,
    first_of_each,
    overlapping_pairs,
)

coordinate = st.integers(-20, 40)
box = st.tuples(coordinate, coordinate, coordinate, coordinate).map(list)


@pytest.mark.parametrize(
    "a, b, expected",
    [
        ([0, 0, 10, 10], [0, 0, 10, 10], 1.0),
        ([0, 0, 10, 10], [5, 0, 15, 10], 1 / 3),
        ([0, 0, 10, 10], [10, 0, 20, 10], 0.0),
        ([0, 0, 10, 10], [2, 2, 7, 7], 0.25),
        ([5, 5, 5, 5], [5, 5, 5, 5], 0.0),
    ],
)
def test_iou_by_hand(a, b, expected):
    assert aligned_iou(np.array([a]), np.array([b]))[0] == pytest.approx(expected)


@given(a=box, b=box)
def test_iou_equals_the_literal_one_and_is_symmetric(a, b):
    value = aligned_iou(np.array(a), np.array(b))
    assert value == pytest.approx(iou(a, b), abs=1e-12)
    assert value == aligned_iou(np.array(b), np.array(a))
    assert 0 <= value <= 1


@pytest.mark.parametrize(
    "width, height, expected",
    [
        (10, 10, 100 / 400),  # the outer bracket matters: w * h / (w + 10) * (h + 10) would give 5
        (10, 40, 400 / 1000),
        (15, 48, 0.5 * 720 / 725),
        (60, 170, 0.5),
        (0, 50, 0.0),
    ],
)
def test_adaptive_threshold_by_hand(width, height, expected):
    boxes = np.array([[3.0, 7.0, 3.0 + width, 7.0 + height]], np.float32)
    assert adaptive_iou_threshold(boxes) == pytest.approx(expected)


@given(w=st.floats(0, 2000), h=st.floats(0, 2000))
def test_adaptive_threshold_is_the_formula_and_never_above_a_half(w, h):
    (value,) = adaptive_iou_threshold(np.array([[0.0, 0.0, w, h]]))
    assert value == pytest.approx(min(0.5, w * h / ((w + 10) * (h + 10))))
    assert 0 <= value <= 0.5


def test_expand_ranges():
    owner, index = expand_ranges(np.array([5, 0, 9]), np.array([2, 0, 3]))
    assert owner.tolist() == [0, 0, 2, 2, 2]
    assert index.tolist() == [5, 6, 9, 10, 11]
    assert len(expand_ranges(np.zeros(0), np.zeros(0))[0]) == 0


def test_first_of_each_obeys_the_keys_in_their_order():
    group = np.array([1, 0, 1, 0, 1])
    first, second = np.array([2, 1, 1, 1, 1]), np.array([0, 5, 4, 3, 3])
    assert first_of_each(group, first, second).tolist() == [3, 4]


def test_pairs_stay_within_the_image():
    same = [0.0, 0.0, 10.0, 10.0]
    boxes, images = np.array([same, same]), np.array([0, 2])
    # the images hold one, two and no detections
    row, det, value = overlapping_pairs(boxes, images, 0.5, np.array([same] * 3), [0, 1, 3, 3])
    assert (row.tolist(), det.tolist(), value.tolist()) == ([0], [0], [1.0])


def test_pairs_of_nothing():
    nothing = np.zeros((0, 4))
    for part in overlapping_pairs(nothing, np.zeros(0, int), 0.5, nothing, np.array([0, 0])):
        assert len(part) == 0
