# SPDX-License-Identifier: Apache-2.0
"""Curves by hand, and against the metrics that they belong to."""

import numpy as np
import pytest
from evaluation_cases import random_case
from hypothesis import given, settings
from hypothesis import strategies as st

from person_search.evaluation import SearchScores, evaluate_search
from person_search.evaluation.detection_metrics import average_precision
from person_search.evaluation.plots import (
    detection_curve,
    plot_gallery_size,
    plot_precision_recall,
    search_curve,
)

from .test_agreement import fast_detection

BOXES = np.array([[0, 0, 10, 10], [20, 0, 30, 10], [40, 0, 50, 10]], float)
OFFSETS = np.array([0, 3])


def test_detection_by_hand():
    dets = np.array([[0, 0, 10, 10], [60, 0, 70, 10], [20, 0, 30, 10], [80, 0, 90, 10]], float)
    scores = np.array([0.9, 0.8, 0.7, 0.7])
    recall, precision = detection_curve(BOXES, OFFSETS, dets, scores, np.array([0, 4]))
    assert recall == pytest.approx([1 / 3, 1 / 3, 2 / 3])  # the tied last two are one point
    assert precision == pytest.approx([1, 1 / 2, 2 / 4])


def test_nothing_to_draw():
    none = np.zeros((0, 4))
    assert detection_curve(BOXES, OFFSETS, none, np.zeros(0), np.array([0, 0]))[0].size == 0
    assert detection_curve(none, np.array([0, 0]), BOXES, np.ones(3), OFFSETS)[0].size == 0


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), ties=st.booleans())
def test_the_detection_curve_ends_at_the_figures(seed, ties):
    case = random_case(seed, ties=ties)
    pooled, metrics = case.pooled(), fast_detection(case)
    boxes = np.array([b for image in case.gt.values() for b in image]).reshape(-1, 4)
    offsets = np.cumsum([0] + [len(image) for image in case.gt.values()])
    recall, precision = detection_curve(
        boxes, offsets, pooled.boxes, pooled.scores, pooled.det_offsets
    )
    if len(recall) == 0:
        return
    assert 100 * recall[-1] == pytest.approx(metrics["recall"])
    assert 100 * precision[-1] == pytest.approx(metrics["precision"])
    steps = np.diff(recall, prepend=0.0)
    assert 100 * (steps * precision).sum() == pytest.approx(metrics["AP"])


def test_search_by_hand():
    none = np.zeros(2)
    scores = SearchScores(
        np.arange(2), none, none, none, np.array([2, 1]), none,
        precisions=[np.array([0.5, 0.75]), np.zeros(0)],
    )  # fmt: skip
    levels, precision = search_curve(scores, 5)
    assert levels.tolist() == [0, 0.25, 0.5, 0.75, 1]
    # the first query reaches everything with 0.75 at least, the second nothing
    assert precision == pytest.approx([0.375] * 5)
    scores.precisions[0] = np.array([1.0])  # one of two was found
    assert search_curve(scores, 5)[1] == pytest.approx([0.5, 0.5, 0.5, 0, 0])


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), ties=st.booleans())
def test_the_area_under_the_search_curve_is_not_below_map(seed, ties):
    case = random_case(seed, ties=ties)
    for scores in evaluate_search(case.pooled(), list(case.protocols.values())):
        sums = [steps.sum() for steps in scores.precisions]
        np.testing.assert_allclose(sums, scores.ap * scores.num_gt)
        levels, precision = search_curve(scores, 5041)
        assert (np.diff(precision) <= 1e-12).all(), "falls with recall"
        area = precision[1:].mean()
        assert area >= scores.ap.mean() - 1e-3  # the levels are a grid
        assert precision[0] <= 1


@settings(max_examples=25, deadline=None)
@given(
    scores=st.lists(st.sampled_from([0.1, 0.2, 0.3, 0.4]), min_size=1, max_size=12),
    data=st.data(),
)
def test_more_false_entries_never_raise_ap(scores, data):
    count = data.draw(st.integers(1, len(scores)))
    positives = np.array(scores[:count])
    more = np.array(data.draw(st.lists(st.sampled_from([0.05, 0.2, 0.35, 0.5]), max_size=6)))
    before = average_precision(np.array(scores), positives, count)
    after = average_precision(np.append(scores, more), positives, count)
    assert after <= before + 1e-12


def test_names_that_are_not_utf8_or_look_like_formulas():
    curve = (np.array([0.5, 1.0]), np.array([1.0, 0.5]))
    names = [("caf\udce9", ""), (r"a$\frac$b", "cws")]
    plots = [
        plot_precision_recall(dict.fromkeys(names, curve), "title", {names[0]: "mAP 3.6"}),
        plot_gallery_size({name: {50: {"mAP": 1.0}, 100: {"mAP": 2.0}} for name in names}, ["mAP"]),
    ]
    assert all(plot.startswith(b"\x89PNG") for plot in plots)
