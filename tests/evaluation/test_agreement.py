# SPDX-License-Identifier: Apache-2.0
"""The fast implementation gives the metrics of the literal one."""

import dataclasses
import itertools

import numpy as np
import pytest
from evaluation_cases import random_case
from hypothesis import given, settings
from hypothesis import strategies as st
from slow_reference import detection_reference, search_reference

from person_search.evaluation import evaluate_detection, evaluate_search, search_metrics
from person_search.evaluation.box_metrics import overlapping_pairs

TOLERANCE = 1e-6
OPTIONS = list(itertools.product(["cosine", "cws"], ["seqnet", "strict"], ["gt_box", "best_det"]))


def fast_detection(case, iou_thresh=0.5):
    pooled = case.pooled()
    boxes = [box for image in case.gt.values() for box in image]
    offsets = np.cumsum([0] + [len(image) for image in case.gt.values()])
    return evaluate_detection(
        np.array(boxes).reshape(-1, 4),
        offsets,
        pooled.boxes,
        pooled.scores,
        pooled.det_offsets,
        iou_thresh,
    )


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    ties=st.booleans(),
    option=st.sampled_from(OPTIONS),
    num_images=st.integers(3, 9),
)
def test_search_equals_the_literal_implementation(seed, ties, option, num_images):
    case = random_case(seed, ties=ties, num_images=num_images)
    names = ("similarity", "duplicates", "query_source")
    choices = dict(zip(names, option, strict=True))
    protocols = list(case.protocols.values())
    for protocol, scores in zip(
        protocols, evaluate_search(case.pooled(), protocols, **choices), strict=True
    ):
        expected = search_reference(case.dets, case.query_feats, protocol, **choices)
        assert scores.summary() == pytest.approx(expected, abs=TOLERANCE), protocol.name
        assert (scores.ap <= 1 + 1e-12).all() and (scores.recall <= 1).all()


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    ties=st.booleans(),
    rule=st.sampled_from(["adaptive", "fixed"]),
    iou_thresh=st.sampled_from([0.1, 0.3, 0.5, 0.7, 1.0]),
)
def test_search_under_any_iou_threshold(seed, ties, rule, iou_thresh):
    case = random_case(seed, ties=ties)
    protocols = list(case.protocols.values())
    options = {"iou_rule": rule, "search_iou_thresh": iou_thresh}
    found = evaluate_search(case.pooled(), protocols, **options)
    for protocol, scores in zip(protocols, found, strict=True):
        expected = search_reference(
            case.dets, case.query_feats, protocol, overlap=(rule, iou_thresh)
        )
        assert scores.summary() == pytest.approx(expected, abs=TOLERANCE), protocol.name


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10**6), ties=st.booleans(), iou_thresh=st.sampled_from([0.3, 0.5, 0.7]))
def test_detection_equals_the_literal_implementation(seed, ties, iou_thresh):
    case = random_case(seed, ties=ties)
    expected = detection_reference(case.gt, case.dets, iou_thresh)
    metrics = fast_detection(case, iou_thresh)
    assert {k: metrics[k] for k in expected} == pytest.approx(expected, abs=TOLERANCE)
    assert 0 <= metrics["AP"] <= metrics["recall"] + TOLERANCE <= 100 + TOLERANCE


def test_the_random_cases_hold_what_they_promise():
    cases = [random_case(seed) for seed in range(60)]
    listed = [case.protocols["listed"] for case in cases]
    rows = [list(zip(p.positive_query, p.positive_image, strict=True)) for p in listed]
    assert any(len(r) > len(set(r)) for r in rows), "an image twice as a positive"
    assert any(not d.boxes for case in cases for d in case.dets.values()), "no detections"
    scores = [evaluate_search(c.pooled(), [c.protocols["all"]])[0] for c in cases]
    assert any((s.num_gt == 0).any() for s in scores), "a query without a match"
    assert any(((s.ap > 0) & (s.ap < 1)).any() for s in scores)
    own = [(p.gallery[:, :] == [[q.image_id] for q in p.queries]).any() for p in listed]
    assert any(own), "a query's own image in its gallery"
    # a fixed threshold of 0.5 would give other metrics, so the adaptive rule is exercised
    sides = [np.diff(p.positive_box.reshape(-1, 2, 2), axis=1) for p in listed]
    assert any((s < 20).any() for s in sides)


@pytest.mark.parametrize("block, chunk", [(1, 3), (2, 8192)])
def test_block_sizes_change_nothing(monkeypatch, block, chunk):
    case = random_case(7, ties=False)
    protocols = list(case.protocols.values())
    whole = evaluate_search(case.pooled(), protocols)
    monkeypatch.setattr(search_metrics, "MAX_BLOCK_QUERIES", block)
    monkeypatch.setattr(search_metrics, "GALLERY_CHUNK", chunk)
    for a, b in zip(whole, evaluate_search(case.pooled(), protocols), strict=True):
        np.testing.assert_array_equal(a.ap, b.ap)
        np.testing.assert_array_equal(a.best_rank, b.best_rank)


def test_pair_chunks_change_nothing(monkeypatch):
    case = random_case(3)
    pooled = case.pooled()
    boxes = np.array([b for image in case.gt.values() for b in image])
    image = np.repeat(np.arange(len(case.gt)), [len(b) for b in case.gt.values()])
    whole = overlapping_pairs(boxes, image, 0.1, pooled.boxes, pooled.det_offsets)
    monkeypatch.setattr("person_search.evaluation.box_metrics.MAX_PAIRS", 1)
    pieces = overlapping_pairs(boxes, image, 0.1, pooled.boxes, pooled.det_offsets)
    assert len(whole[0]) > 3
    for a, b in zip(whole, pieces, strict=True):
        np.testing.assert_array_equal(a, b)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_order_of_detections_does_not_matter_without_ties(seed):
    case = random_case(seed, ties=False)
    protocols = list(case.protocols.values())
    before = [s.summary() for s in evaluate_search(case.pooled(), protocols)]
    det_before = fast_detection(case)
    rng = np.random.default_rng(seed)
    for found in case.dets.values():
        order = rng.permutation(len(found.boxes))
        for name in ("boxes", "scores", "feats"):
            setattr(found, name, [getattr(found, name)[i] for i in order])
    after = [s.summary() for s in evaluate_search(case.pooled(), protocols)]
    for a, b in zip(before, after, strict=True):
        assert a == pytest.approx(b, abs=TOLERANCE)
    assert det_before == pytest.approx(fast_detection(case), abs=TOLERANCE)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10**6), exponent=st.integers(-20, 20))
def test_length_of_the_query_embedding_does_not_matter(seed, exponent):
    case = random_case(seed, ties=False)
    pooled = case.pooled()
    scaled = dataclasses.replace(pooled, query_feats=pooled.query_feats * 2.0**exponent)
    protocols = list(case.protocols.values())
    before, after = evaluate_search(pooled, protocols), evaluate_search(scaled, protocols)
    assert [a.summary() for a in before] == [b.summary() for b in after]
