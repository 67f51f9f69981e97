# SPDX-License-Identifier: Apache-2.0
"""Search metrics on cases that can be worked out on paper."""

from dataclasses import replace

import numpy as np
import pytest
from evaluation_cases import Case, make_record, random_case
from hypothesis import given, settings
from hypothesis import strategies as st
from slow_reference import ImageDetections

from person_search.evaluation import chance_level, evaluate_search
from person_search.evaluation.box_metrics import expand_ranges
from person_search.schema import Query, SearchProtocol

BOX, SECOND = [0.0, 0.0, 50.0, 100.0], [100.0, 0.0, 150.0, 100.0]


def direction(cosine):
    """A unit vector of the given cosine with the query, which is (1, 0)."""
    return [float(cosine), float(np.sqrt(1 - cosine**2))]


def make_case(dets, gallery, positives, query_image=0):
    """``dets``: per image a list of (box, score, cosine); ``positives``: image ids (of BOX)."""
    records = [
        make_record(i, [BOX], [7], [(1, BOX)] if i == query_image else []) for i in range(len(dets))
    ]
    found = {
        i: ImageDetections(
            [d[0] for d in image], [d[1] for d in image], [direction(d[2]) for d in image]
        )
        for i, image in enumerate(dets)
    }
    protocol = SearchProtocol(
        name="hand",
        queries=[Query(1, query_image, tuple(BOX), 7)],
        gallery=None if gallery is None else np.array([gallery], np.int32),
        positive_query=np.zeros(len(positives), np.int32),
        positive_image=np.array(positives, np.int32),
        positive_box=np.array([BOX] * len(positives), np.float32).reshape(-1, 4),
    )
    return Case(records, found, {1: [1.0, 0.0]}, {"hand": protocol})


def metrics(case, **options):
    (scores,) = evaluate_search(case.pooled(), [case.protocols["hand"]], **options)
    return scores.summary((1, 2, 3))


THREE_IMAGES = [
    [(BOX, 0.9, 0.6), (SECOND, 0.9, 0.9)],  # the person at rank 3, a stranger at rank 1
    [(SECOND, 0.9, 0.1)],  # the person was missed
    [(BOX, 0.9, 0.8), (BOX, 0.9, 0.7)],  # the person at rank 2; the second box is a negative
]


def test_three_images_by_hand():
    # ranked: 0.9 no, 0.8 yes, 0.7 no, 0.6 yes, 0.1 no; 3 images hold the person
    expected = {
        "mAP": 100 * (1 / 2 + 2 / 4) / 3,
        "top1": 0.0,
        "top2": 100.0,
        "top3": 100.0,
        "recall": 200 / 3,
    }
    assert metrics(make_case(THREE_IMAGES, [0, 1, 2], [0, 1, 2])) == pytest.approx(expected)
    assert metrics(make_case(THREE_IMAGES, None, [0, 1, 2])) == pytest.approx(expected)


def test_excluded_images_are_not_searched():
    case = make_case(THREE_IMAGES, None, [1, 2])
    protocol = replace(case.protocols["hand"], excluded=np.array([[0, -1]], np.int32))
    case.protocols["hand"] = protocol
    # ranked: 0.8 yes, 0.7 no, 0.1 no; 2 images hold the person
    assert metrics(case) == pytest.approx(
        {"mAP": 50.0, "top1": 100.0, "top2": 100.0, "top3": 100.0, "recall": 50.0}
    )


def test_image_listed_twice():
    case = make_case([[(BOX, 0.9, 0.8)], [(SECOND, 0.9, 0.9)]], [0, 1, 0], [0, 0])
    # seqnet: scored once (rank 2 of 2), counted twice
    assert metrics(case)["mAP"] == pytest.approx(25)
    assert metrics(case)["recall"] == pytest.approx(50)
    assert metrics(case, duplicates="strict")["mAP"] == pytest.approx(50)
    assert metrics(case, duplicates="strict")["recall"] == pytest.approx(100)


def test_tied_entries_rank_by_gallery_order_but_share_the_precision():
    dets = [[(SECOND, 0.9, 0.5)], [(BOX, 0.9, 0.5)]]
    behind, ahead = make_case(dets, [0, 1], [1]), make_case(dets, [1, 0], [1])
    assert metrics(behind)["top1"] == 0 and metrics(ahead)["top1"] == 100
    assert metrics(behind)["mAP"] == metrics(ahead)["mAP"] == pytest.approx(50)


def test_of_tied_hits_in_an_image_the_first_is_the_positive():
    case = make_case([[(SECOND, 0.9, 0.5), (BOX, 0.9, 0.5), (BOX, 0.9, 0.5)]], [0], [0])
    (scores,) = evaluate_search(case.pooled(), [case.protocols["hand"]])
    assert scores.best_rank.tolist() == [2]
    assert scores.ap == pytest.approx([1 / 3])


def test_confidence_weighting_changes_the_order():
    dets = [[(SECOND, 0.5, 0.9)], [(BOX, 0.9, 0.8)]]
    case = make_case(dets, [0, 1], [1])
    assert metrics(case)["top1"] == 0
    assert metrics(case, similarity="cws")["top1"] == 100  # 0.45 against 0.72


def test_small_person_needs_less_overlap():
    small, shifted = [0.0, 0.0, 10.0, 10.0], [4.0, 0.0, 14.0, 10.0]  # IoU 60 / 140 = 0.43
    case = make_case([[(shifted, 0.9, 0.8)]], [0], [0])
    protocol = case.protocols["hand"]
    case.protocols["hand"] = replace(protocol, positive_box=np.array([small], np.float32))
    assert metrics(case)["mAP"] == 100  # threshold 100 / 400
    large = [[0.0, 0.0, 100.0, 100.0]]
    case = make_case([[([40.0, 0.0, 140.0, 100.0], 0.9, 0.8)]], [0], [0])
    case.protocols["hand"] = replace(protocol, positive_box=np.array(large, np.float32))
    assert metrics(case)["mAP"] == 0  # the same IoU, threshold 0.5


def test_threshold_of_the_overlap_by_hand():
    # IoU 60 / 140 = 0.43 with a person of 10 x 10 pixels (adaptive: 0.25), then of 100 x 100 (0.83)
    small, shifted = [0.0, 0.0, 10.0, 10.0], [4.0, 0.0, 14.0, 10.0]
    for size, expected in (
        (1, {("adaptive", 0.5): 100, ("fixed", 0.5): 0, ("fixed", 0.4): 100, ("adaptive", 1): 100}),
        (10, {("adaptive", 0.5): 0, ("adaptive", 0.4): 100, ("fixed", 0.4): 100, ("fixed", 1): 0}),
    ):
        case = make_case([[((size * np.array(shifted)).tolist(), 0.9, 0.8)]], [0], [0])
        box = size * np.array([small], np.float32)
        case.protocols["hand"] = replace(case.protocols["hand"], positive_box=box)
        for (rule, thresh), value in expected.items():
            assert metrics(case, iou_rule=rule, search_iou_thresh=thresh)["mAP"] == value, (
                size,
                rule,
            )
    # above 0.5 the adaptive rule acts on larger persons: 100 x 100 needs 0.83, not 1
    nearly = [5.0, 0.0, 105.0, 100.0]  # IoU 95 / 105 = 0.905
    case = make_case([[(nearly, 0.9, 0.8)]], [0], [0])
    box = np.array([[0.0, 0.0, 100.0, 100.0]], np.float32)
    case.protocols["hand"] = replace(case.protocols["hand"], positive_box=box)
    assert metrics(case, search_iou_thresh=1.0)["mAP"] == 100
    assert metrics(case, search_iou_thresh=0.95, iou_rule="fixed")["mAP"] == 0


@pytest.mark.parametrize("value", [0.0, -0.1, 1.01, float("nan")])
def test_wrong_threshold_of_the_overlap(value):
    case = make_case(THREE_IMAGES, [0, 1, 2], [0])
    with pytest.raises(ValueError, match=r"must lie in \(0, 1\].*SEARCH_IOU_THRESH"):
        metrics(case, search_iou_thresh=value)


def test_queries_share_a_list_of_excluded_images():
    case = random_case(11, ties=False)
    protocol, pooled = case.protocols["others"], case.pooled()
    lists = np.concatenate([protocol.excluded[::-1], protocol.excluded])
    row_of = len(lists) - 1 - np.arange(len(protocol.queries))[::-1]
    shared = replace(protocol, excluded=lists, excluded_row=row_of)
    expected, found = evaluate_search(pooled, [protocol, shared])
    assert 0 < expected.ap.sum() and found.ap.tolist() == expected.ap.tolist()
    assert found.best_rank.tolist() == expected.best_rank.tolist()
    for query in range(len(protocol.queries)):
        assert shared.excluded_images(query).tolist() == protocol.excluded_images(query).tolist()


def test_best_detection_as_query():
    nearly = [0.0, 0.0, 50.0, 90.0]
    dets = [
        [(SECOND, 0.9, 0.0), (nearly, 0.9, 0.6)],
        [(BOX, 0.9, 0.6), (SECOND, 0.9, 0.9)],
    ]
    case = make_case(dets, [1], [1])
    assert metrics(case)["top1"] == 0  # the embedding of the query box is closer to the stranger
    assert metrics(case, query_source="best_det")["top1"] == 100
    blind = make_case([[], dets[1]], [1], [1])
    (scores,) = evaluate_search(blind.pooled(), [blind.protocols["hand"]], query_source="best_det")
    assert scores.has_feat.tolist() == [False]
    assert scores.summary()["mAP"] == scores.summary()["recall"] == 0


def test_nothing_to_find_scores_zero():
    case = make_case(THREE_IMAGES, [0, 1, 2], [])
    assert set(metrics(case).values()) == {0.0}
    empty = make_case([[], [], []], [0, 1, 2], [0, 1, 2])
    assert set(metrics(empty).values()) == {0.0}


def test_gallery_of_one_image():
    case = make_case([[(BOX, 0.9, 0.3)]], [0], [0])
    assert set(metrics(case).values()) == {100.0}


def test_oracle_is_perfect():
    """Ground truth boxes with one embedding per identity: nothing may be lost on the way."""
    rng = np.random.default_rng(0)
    case = random_case(5, ties=False, num_images=12)
    axes = np.eye(8)
    for record in case.records:
        seen: set[int] = set()
        for annotation in record["annotations"]:
            if annotation["person_id"] in seen:  # clean data: no identity twice in an image
                annotation["person_id"] = -1
            seen.add(annotation["person_id"])
        found = case.dets[record["image_id"]]
        found.boxes = [a["bbox"] for a in record["annotations"]]
        found.scores = rng.uniform(0.5, 1, len(found.boxes)).tolist()
        found.feats = [axes[a["person_id"] % 8].tolist() for a in record["annotations"]]
    protocol = oracle_protocol(case)
    case.query_feats = {q.query_id: axes[q.person_id].tolist() for q in protocol.queries}
    (scores,) = evaluate_search(case.pooled(), [protocol])
    assert len(protocol.queries) >= 2
    assert scores.summary() == dict.fromkeys(["mAP", "top1", "top5", "top10", "recall"], 100.0)


def oracle_protocol(case):
    """One query per identity with several images, taken from the first one."""
    owners: dict[int, list] = {}
    for record in case.records:
        for a in record["annotations"]:
            if a["person_id"] >= 0:
                owners.setdefault(a["person_id"], []).append((record["image_id"], a["bbox"]))
    owners = {pid: places for pid, places in owners.items() if len(places) > 1}
    queries = [Query(pid, places[0][0], tuple(places[0][1]), pid) for pid, places in owners.items()]
    rows = [(i, *place) for i, places in enumerate(owners.values()) for place in places[1:]]
    return SearchProtocol(
        name="all",
        queries=queries,
        gallery=None,
        positive_query=np.array([r[0] for r in rows]),
        positive_image=np.array([r[1] for r in rows]),
        positive_box=np.array([r[2] for r in rows], np.float32),
        excluded=np.array([[q.image_id] for q in queries]),
    )


def test_chance_level_is_the_expectation():
    # one positive among four entries: top1 1/4, mAP (1 + 1/2 + 1/3 + 1/4) / 4, whatever the model
    dets = [[(BOX, 0.9, 1.0)], [(SECOND, 0.9, 0.1)] * 3]
    case = make_case(dets, [0, 1], [0])
    pooled, protocol = case.pooled(), case.protocols["hand"]
    chance = chance_level(protocol, pooled, seed=3, num_draws=500, topk=(1, 2))
    assert chance["top1"] == pytest.approx(25, abs=5)
    assert chance["top2"] == pytest.approx(50, abs=5)
    assert chance["mAP"] == pytest.approx(100 * (1 + 1 / 2 + 1 / 3 + 1 / 4) / 4, abs=3)
    assert chance["recall"] == 100
    assert metrics(case)["top1"] == 100


def test_chance_level_repeats_and_needs_a_draw():
    case = random_case(1)
    pooled, protocol = case.pooled(), case.protocols["all"]
    assert chance_level(protocol, pooled, 4) == chance_level(protocol, pooled, 4)
    assert chance_level(protocol, pooled, 4) != chance_level(protocol, pooled, 5)
    with pytest.raises(ValueError, match="num_draws is 0"):
        chance_level(protocol, pooled, num_draws=0)


def test_unknown_option():
    case = random_case(1)
    for name in ("similarity", "duplicates", "query_source"):
        with pytest.raises(ValueError, match=f"{name} is 'wrong'.*{name.upper()}"):
            evaluate_search(case.pooled(), list(case.protocols.values()), **{name: "wrong"})


BAD_PROTOCOLS = [
    ({"queries": []}, "has no queries"),
    ({"queries": [Query(1, 0, (0, 0, 1, 1), 7)] * 2}, r"query_id \[1\] is used more than once"),
    ({"queries": [Query(1, 55, (0, 0, 1, 1), 7)]}, r"1 image_id.*\[55\]"),
    ({"queries": [Query(2, 0, (0, 0, 1, 1), 7)]}, r"1 query_id.*\[2\]"),
    ({"gallery": np.array([[0, 1, 77]])}, r"1 image_id.*\[77\]"),
    ({"gallery": np.array([[0], [1]])}, "2 gallery rows for 1 queries"),
    ({"gallery": np.array([[0, 1]])}, "image_id 2 of query_id 1"),
    ({"gallery": None, "excluded": np.array([[2]])}, "image_id 2 of query_id 1"),
    (
        {"gallery": None, "excluded": np.array([[-1]]), "excluded_row": np.array([0, 0])},
        r"excluded_row has the shape \(2,\) for 1 queries",
    ),
    (
        {"gallery": None, "excluded": np.array([[-1]]), "excluded_row": np.array([1])},
        r"excluded_row must lie in \[0, 1\)",
    ),
    ({"positive_query": np.array([0, 0])}, r"lengths \[2, 3, 3\]"),
    ({"positive_query": np.array([0, 0, 1])}, r"must lie in \[0, 1\)"),
    ({"positive_image": np.array([0, 1, 9])}, r"image_id.*\[9\]"),
]


@pytest.mark.parametrize("change, message", BAD_PROTOCOLS)
def test_wrong_protocols_are_refused(change, message):
    case = make_case(THREE_IMAGES, [0, 1, 2], [0, 1, 2])
    protocol = replace(case.protocols["hand"], **change)
    with pytest.raises(ValueError, match=message):
        evaluate_search(case.pooled(), [protocol])


# ---- what holds for any test set ----
seeds = st.integers(0, 10**6)
matchings = st.sampled_from(["plain", "cbgm"])


def in_other_order(pooled, order):
    """The same predictions with image ``order[i]`` in place i."""
    counts = np.diff(pooled.det_offsets)[order]
    _, rows = expand_ranges(pooled.det_offsets[order], counts)
    return replace(
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
    moved = replace(
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
    less = replace(larger, gallery=smaller)
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
    once = replace(
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
