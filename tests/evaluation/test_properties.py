# SPDX-License-Identifier: Apache-2.0
"""What holds for any test set: order, duplicates, larger galleries, thresholds."""

import dataclasses

import numpy as np
import pytest
from evaluation_cases import random_case
from hypothesis import given, settings
from hypothesis import strategies as st

from person_search.evaluation import evaluate_search
from person_search.evaluation.box_metrics import expand_ranges
from person_search.evaluation.coco_ap import coco_average_precision, coco_summary

seeds = st.integers(0, 10**6)
matchings = st.sampled_from(["plain", "cbgm"])


def in_other_order(pooled, order):
    """The same predictions with image ``order[i]`` in place i."""
    counts = np.diff(pooled.det_offsets)[order]
    _, rows = expand_ranges(pooled.det_offsets[order], counts)
    return dataclasses.replace(
        pooled,
        image_ids=pooled.image_ids[order],
        det_offsets=np.concatenate([[0], np.cumsum(counts)]),
        **{name: getattr(pooled, name)[rows] for name in ("boxes", "scores", "reid_feats")},
    )


@settings(max_examples=25, deadline=None)
@given(seed=seeds, matching=matchings)
def test_order_of_images_does_not_matter(seed, matching):
    case = random_case(seed, ties=False)
    pooled, protocols = case.pooled(), list(case.protocols.values())
    order = np.random.default_rng(seed).permutation(len(pooled.image_ids))
    before = evaluate_search(pooled, protocols, matching=matching)
    after = evaluate_search(in_other_order(pooled, order), protocols, matching=matching)
    for a, b in zip(before, after, strict=True):
        np.testing.assert_allclose(a.ap, b.ap)
        np.testing.assert_array_equal(a.best_rank, b.best_rank)


@settings(max_examples=25, deadline=None)
@given(seed=seeds, matching=matchings)
def test_order_of_queries_and_gallery_does_not_matter(seed, matching):
    case = random_case(seed, ties=False)
    listed, rng = case.protocols["listed"], np.random.default_rng(seed)
    order = rng.permutation(len(listed.queries))
    place = np.argsort(order)
    moved = dataclasses.replace(
        listed,
        queries=[listed.queries[i] for i in order],
        gallery=rng.permuted(listed.gallery[order], axis=1),
        positive_query=place[listed.positive_query],
    )
    options = {"matching": matching, "duplicates": "strict"}
    (before,) = evaluate_search(case.pooled(), [listed], **options)
    (after,) = evaluate_search(case.pooled(), [moved], **options)
    np.testing.assert_allclose(before.ap[order], after.ap)
    np.testing.assert_array_equal(before.best_rank[order], after.best_rank)


@settings(max_examples=25, deadline=None)
@given(seed=seeds, ties=st.booleans())
def test_more_distractors_never_raise_ap(seed, ties):
    """True of the plain similarity; CBGM may gain from one of its k1 images being another."""
    case = random_case(seed, ties=ties)
    larger = case.protocols["listed"]
    rows = zip(larger.positive_query.tolist(), larger.positive_image.tolist(), strict=True)
    matches = set(rows)
    smaller = larger.gallery.copy()
    rng = np.random.default_rng(seed)
    for query, row in enumerate(smaller):
        for place, image in enumerate(row.tolist()):
            if (query, image) not in matches and rng.random() < 0.5:
                row[place] = -1
    less = dataclasses.replace(larger, gallery=smaller)
    few, many = evaluate_search(case.pooled(), [less, larger])
    assert (many.ap <= few.ap + 1e-12).all()
    assert (many.recall == few.recall).all()
    found = few.best_rank > 0
    assert (many.best_rank[found] >= few.best_rank[found]).all()


@settings(max_examples=25, deadline=None)
@given(seed=seeds, source=st.sampled_from(["gt_box", "best_det"]))
def test_strict_equals_seqnet_where_nothing_is_listed_twice(seed, source):
    case = random_case(seed)
    protocol = case.protocols["listed"]
    gallery = protocol.gallery.copy()
    for row in gallery:
        _, first = np.unique(row, return_index=True)
        again = np.setdiff1d(np.arange(len(row)), first)
        row[again] = -1
    keys = np.stack([protocol.positive_query, protocol.positive_image])
    _, first = np.unique(keys, axis=1, return_index=True)
    names = ("positive_query", "positive_image", "positive_box")
    once = dataclasses.replace(
        protocol, gallery=gallery, **{name: getattr(protocol, name)[first] for name in names}
    )
    seqnet, strict = (
        evaluate_search(case.pooled(), [once], duplicates=rule, query_source=source)[0]
        for rule in ("seqnet", "strict")
    )
    np.testing.assert_array_equal(seqnet.ap, strict.ap)
    # and strict does not see the difference at all
    (listed_twice,) = evaluate_search(
        case.pooled(), [protocol], duplicates="strict", query_source=source
    )
    np.testing.assert_array_equal(listed_twice.ap, strict.ap)


@settings(max_examples=15, deadline=None)
@given(seed=seeds)
def test_coco_sizes_are_parts_of_the_whole(seed):
    case = random_case(seed)
    pooled = case.pooled()
    boxes = np.array([b for image in case.gt.values() for b in image]).reshape(-1, 4)
    offsets = np.cumsum([0] + [len(image) for image in case.gt.values()])
    arrays = (boxes, offsets, pooled.boxes, pooled.scores, pooled.det_offsets)
    figures = coco_summary(*arrays)
    assert figures["AP50"] == pytest.approx(coco_average_precision(*arrays))
    assert figures["AP75"] == pytest.approx(coco_average_precision(*arrays, iou_thresh=0.75))
    assert figures["AP75"] <= figures["AP50"] + 1e-9 and figures["AP"] <= figures["AP50"] + 1e-9
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)
    for name, low, high in (("APs", 0, 32**2), ("APm", 32**2, 96**2), ("APl", 96**2, 1e10)):
        nobody = not ((areas >= low) & (areas <= high)).any()
        assert np.isnan(figures[name]) == nobody
