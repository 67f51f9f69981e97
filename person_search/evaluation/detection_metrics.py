# SPDX-License-Identifier: Apache-2.0
"""Detection metrics of the person search field: recall, precision and AP times recall.

Shape shorthand: N detections, M ground truth boxes, K true positives, I images.

They differ from COCO's in two points. A detection matches by *mutual best IoU*, not greedily by
score; and AP is the plain step-wise average precision, divided by the number of ground truth boxes
(which is the same as "average precision of the ranked list, times recall"):

    AP = (1 / M) * sum over true positives d of  TP(score >= s_d) / detections(score >= s_d)

Detections of equal score share one precision, so that the metric does not depend on their order.
"""

import numpy as np

from person_search.evaluation.box_metrics import first_of_each, overlapping_pairs


def evaluate_detection(
    gt_boxes: np.ndarray,
    gt_offsets: np.ndarray,
    det_boxes: np.ndarray,
    det_scores: np.ndarray,
    det_offsets: np.ndarray,
    iou_thresh: float = 0.5,
) -> dict[str, float]:
    """Scores pooled detections against all ground truth boxes, labeled or not.

    Args:
        gt_boxes: (M, 4) XYXY; image i has the rows ``gt_offsets[i]:gt_offsets[i + 1]``.
        gt_offsets: (I + 1,) int64.
        det_boxes: (N, 4) XYXY in the same frame.
        det_scores: (N,) scores.
        det_offsets: (I + 1,) int64, like ``gt_offsets``.
        iou_thresh: Minimum IoU of a match.

    Returns:
        ``AP``, ``recall``, ``precision`` in percent, ``num_gt`` and ``num_det``. Without detections
        all three are 0; without ground truth AP and recall are nan.
    """
    true_positives = match_mutual_best(gt_boxes, gt_offsets, det_boxes, det_offsets, iou_thresh)
    num_gt, num_det = len(gt_boxes), len(det_boxes)
    undefined = float("nan")
    ap = average_precision(det_scores, det_scores[true_positives], num_gt) if num_gt else undefined
    return {
        "AP": 100.0 * ap,
        "recall": 100.0 * len(true_positives) / num_gt if num_gt else undefined,
        "precision": 100.0 * len(true_positives) / max(num_det, 1),
        "num_gt": num_gt,
        "num_det": num_det,
    }


def match_mutual_best(
    gt_boxes: np.ndarray,
    gt_offsets: np.ndarray,
    det_boxes: np.ndarray,
    det_offsets: np.ndarray,
    iou_thresh: float,
) -> np.ndarray:
    """Finds the detections that are true positives.

    A pair matches if the detection is the best one of the ground truth box, that box is the best
    one of the detection, and their IoU reaches the threshold. Ties go to the lower index. The
    arguments are those of :func:`evaluate_detection`.

    Returns:
        (K,) indices of detections, K <= min(M, N).
    """
    gt_image = np.repeat(np.arange(len(gt_offsets) - 1), np.diff(gt_offsets))
    # pairs below the threshold never count as a match, so they are not computed
    gt, det, iou = overlapping_pairs(gt_boxes, gt_image, iou_thresh, det_boxes, det_offsets)
    best_det_of_gt = first_of_each(gt, -iou, det)
    best_gt_of_det = first_of_each(det, -iou, gt)
    return det[np.intersect1d(best_det_of_gt, best_gt_of_det, assume_unique=True)]


def average_precision(scores: np.ndarray, positive_scores: np.ndarray, num_gt: int) -> float:
    """Computes the step-wise average precision of a ranked list, times recall.

    ``(1 / num_gt) * sum over positives p of positives(>= s_p) / all(>= s_p)``, without
    interpolation. Equal scores are one step of the curve.

    Args:
        scores: (N,) scores of all entries, positives included, in any order.
        positive_scores: (K,) scores of the positives.
        num_gt: Number of objects to find, > 0 and >= K.

    Returns:
        A value in [0, 1]; 0 without positives.
    """
    return float(precision_steps(scores, positive_scores).sum() / num_gt)


def precision_steps(scores: np.ndarray, positive_scores: np.ndarray) -> np.ndarray:
    """Computes the precision of a ranked list at each positive, from the highest score down.

    ``positives(>= s_p) / all(>= s_p)``; equal scores share it. Only entries from the lowest
    positive upwards are sorted.

    Args:
        scores: (N,) scores of all entries, positives included, in any order.
        positive_scores: (K,) scores of the positives.

    Returns:
        (K,) precisions in (0, 1].
    """
    if len(positive_scores) == 0:
        return np.zeros(0)
    positives = np.sort(positive_scores)
    tail = np.sort(scores[scores >= positives[0]])
    positives_up_to = len(positives) - np.searchsorted(positives, positives, side="left")
    entries_up_to = len(tail) - np.searchsorted(tail, positives, side="left")
    return (positives_up_to / entries_up_to)[::-1]
