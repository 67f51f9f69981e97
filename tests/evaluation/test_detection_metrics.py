# SPDX-License-Identifier: Apache-2.0
"""Detection metrics on cases that can be worked out on paper."""

import numpy as np
import pytest

from person_search.evaluation import evaluate_detection
from person_search.evaluation.coco_ap import coco_average_precision
from person_search.evaluation.detection_metrics import average_precision, match_mutual_best

A, B, C = [0, 0, 10, 20], [50, 0, 60, 20], [100, 0, 110, 20]
FAR = [500, 500, 510, 520]


def flat(images):
    boxes = [box for image in images for box in image]
    return np.array(boxes, float).reshape(-1, 4), np.cumsum([0] + [len(i) for i in images])


def evaluate(gt, dets, scores, **kwargs):
    det_boxes, det_offsets = flat(dets)
    return evaluate_detection(*flat(gt), det_boxes, np.array(scores), det_offsets, **kwargs)


def evaluate_coco(gt, dets, scores):
    det_boxes, det_offsets = flat(dets)
    return coco_average_precision(*flat(gt), det_boxes, np.array(scores), det_offsets)


def test_three_images_by_hand():
    gt = [[A, B], [A], [C]]
    dets = [[A, FAR], [A], []]
    # ranked: FAR 0.9 wrong, A 0.8 right, A 0.7 right; C and B are missed
    metrics = evaluate(gt, dets, [0.8, 0.9, 0.7])
    assert metrics["AP"] == pytest.approx(100 * (1 / 2 + 2 / 3) / 4)
    assert metrics["recall"] == pytest.approx(50)
    assert metrics["precision"] == pytest.approx(200 / 3)
    assert (metrics["num_gt"], metrics["num_det"]) == (4, 3)


def test_equal_scores_share_one_precision():
    # one right and one wrong detection of equal score: precision 1/2 in either order
    assert evaluate([[A]], [[A, FAR]], [0.5, 0.5])["AP"] == pytest.approx(50)
    assert evaluate([[A]], [[FAR, A]], [0.5, 0.5])["AP"] == pytest.approx(50)


def test_second_detection_of_a_person_is_wrong_even_with_the_higher_score():
    shifted = [0, 1, 10, 20]  # IoU 0.95, the score does not decide
    metrics = evaluate([[A]], [[shifted, A]], [0.9, 0.6])
    assert metrics["precision"] == 50
    assert metrics["AP"] == pytest.approx(50)
    # COCO goes by score: the first to come takes the box
    assert evaluate_coco([[A]], [[shifted, A]], [0.9, 0.6]) == pytest.approx(100)


def test_best_match_must_be_mutual():
    near_a = [1, 0, 11, 20]
    # both detections lie over A; the second one is closest to A as well and has no box of its own
    true_positives = match_mutual_best(*flat([[A, [8, 0, 18, 20]]]), *flat([[A, near_a]]), 0.1)
    assert true_positives.tolist() == [0]


def test_iou_at_the_threshold_counts():
    half = [0, 0, 10, 10]  # IoU exactly 0.5 with A
    assert evaluate([[A]], [[half]], [1.0])["recall"] == 100
    assert evaluate([[A]], [[half]], [1.0], iou_thresh=0.51)["recall"] == 0


def test_no_detections_and_no_boxes():
    nothing = evaluate([[A], []], [[], []], [])
    assert [nothing[k] for k in ("AP", "recall", "precision")] == [0, 0, 0]
    assert (nothing["num_gt"], nothing["num_det"]) == (1, 0)
    assert evaluate_coco([[A], []], [[], []], []) == 0
    undefined = evaluate([[], []], [[A], []], [0.9])
    assert np.isnan(undefined["AP"]) and np.isnan(undefined["recall"])
    assert undefined["precision"] == 0
    assert np.isnan(evaluate_coco([[], []], [[A], []], [0.9]))


def test_perfect_detections():
    gt = [[A, B], [], [C]]
    metrics = evaluate(gt, gt, [0.6, 0.9, 0.7])
    assert [metrics[k] for k in ("AP", "recall", "precision")] == [100, 100, 100]
    assert evaluate_coco(gt, gt, [0.6, 0.9, 0.7]) == pytest.approx(100)


def test_coco_by_hand():
    # 4 boxes; ranked wrong, right, right: recall 1/4 at precision 2/3 (interpolated), 2/4 at 2/3.
    # The 51 recall points 0, 0.01, ..., 0.50 get 2/3, the others 0.
    metric = evaluate_coco([[A, B], [A], [C]], [[A, FAR], [A], []], [0.8, 0.9, 0.7])
    assert metric == pytest.approx(100 * 51 * (2 / 3) / 101)


def test_coco_prints_nothing(capsys):
    evaluate_coco([[A]], [[A]], [0.9])
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    "scores, positive_scores, num_gt, expected",
    [
        ([0.9, 0.8, 0.7], [0.9, 0.7], 2, (1 + 2 / 3) / 2),
        ([0.9, 0.8, 0.7], [0.9, 0.7], 4, (1 + 2 / 3) / 4),
        ([0.9, 0.9, 0.7], [0.9, 0.9], 2, 1.0),
        ([0.9, 0.9, 0.9], [0.9], 1, 1 / 3),
        ([0.9], [], 3, 0.0),
    ],
)
def test_average_precision_by_hand(scores, positive_scores, num_gt, expected):
    value = average_precision(np.array(scores), np.array(positive_scores), num_gt)
    assert value == pytest.approx(expected)
