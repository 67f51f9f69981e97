# SPDX-License-Identifier: Apache-2.0
"""Precision-recall curves of detection and of search, as arrays for plots.

Shape shorthand: N detections, K true positives, Q queries, R recall levels.
"""

import numpy as np

from person_search.evaluation.detection_metrics import match_mutual_best
from person_search.evaluation.search_metrics import SearchScores

NUM_LEVELS = 101


def detection_curve(
    gt_boxes: np.ndarray,
    gt_offsets: np.ndarray,
    det_boxes: np.ndarray,
    det_scores: np.ndarray,
    det_offsets: np.ndarray,
    iou_thresh: float = 0.5,
) -> tuple[np.ndarray, np.ndarray]:
    """Precision over recall as the score threshold falls.

    Args: as :func:`~person_search.evaluation.detection_metrics.evaluate_detection`.

    Returns:
        recall and precision in [0, 1], one point per distinct score from the highest down; empty
        without detections or without ground truth. The last recall is that of all detections.
    """
    if len(gt_boxes) == 0 or len(det_boxes) == 0:
        return np.zeros(0), np.zeros(0)
    right = np.zeros(len(det_scores), bool)
    right[match_mutual_best(gt_boxes, gt_offsets, det_boxes, det_offsets, iou_thresh)] = True
    order = np.argsort(-det_scores, kind="stable")
    ranked = det_scores[order]
    last = np.append(ranked[1:] != ranked[:-1], True)  # equal scores are one point
    found = np.cumsum(right[order])[last]
    return found / len(gt_boxes), found / (np.flatnonzero(last) + 1)


def search_curve(
    scores: SearchScores, num_levels: int = NUM_LEVELS
) -> tuple[np.ndarray, np.ndarray]:
    """Mean precision over recall of all queries.

    Of each query the precision at a recall level is the highest at that recall or beyond, 0 where
    the query does not get so far. The area under the curve is thus a little above mAP, which does
    not interpolate.

    Returns:
        (R,) recall levels in [0, 1], (R,) mean precision in [0, 1].
    """
    levels = np.linspace(0.0, 1.0, num_levels)
    total = np.zeros(num_levels)
    for precisions, num_gt in zip(scores.precisions, scores.num_gt, strict=True):
        if len(precisions) == 0:
            continue
        best_beyond = np.maximum.accumulate(precisions[::-1])[::-1]
        # the k-th positive stands at recall k / num_gt; the margin is for rounding
        needed = np.ceil(levels * num_gt - 1e-9).astype(np.int64).clip(1)
        reached = needed <= len(precisions)
        total[reached] += best_beyond[needed[reached] - 1]
    return levels, total / max(len(scores.precisions), 1)
