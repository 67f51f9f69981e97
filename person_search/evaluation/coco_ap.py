# SPDX-License-Identifier: Apache-2.0
"""COCO-style AP at one IoU threshold, by pycocotools, for the same pooled detections.

Given beside the field's own AP because it can be compared with other detectors.
"""

import contextlib
import io

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

COCO_MAX_DETS = 100
_PERSON = 1  # COCO counts categories from 1


def coco_average_precision(
    gt_boxes: np.ndarray,
    gt_offsets: np.ndarray,
    det_boxes: np.ndarray,
    det_scores: np.ndarray,
    det_offsets: np.ndarray,
    iou_thresh: float = 0.5,
) -> float:
    """AP with 101 recall points, all areas, at most 100 detections per image.

    Args: as :func:`~person_search.evaluation.detection_metrics.evaluate_detection`.

    Returns:
        percent; 0 without detections, nan without ground truth.
    """
    if len(gt_boxes) == 0:
        return float("nan")
    if len(det_boxes) == 0:
        return 0.0
    images = [{"id": i} for i in range(len(gt_offsets) - 1)]
    ground_truth = _build_coco(images, gt_boxes, gt_offsets)
    detections = _build_coco(images, det_boxes, det_offsets, det_scores)
    evaluation = COCOeval(ground_truth, detections, "bbox")
    params = evaluation.params
    params.iouThrs = np.array([iou_thresh])
    params.areaRng, params.areaRngLbl = [params.areaRng[0]], ["all"]
    params.maxDets = [COCO_MAX_DETS]
    with contextlib.redirect_stdout(io.StringIO()):  # it prints its progress
        evaluation.evaluate()
        evaluation.accumulate()
    return 100.0 * float(evaluation.eval["precision"][0, :, 0, 0, 0].mean())


def _build_coco(
    images: list[dict], boxes: np.ndarray, offsets: np.ndarray, scores: np.ndarray | None = None
) -> COCO:
    """Wraps flat arrays in the in-memory form that COCOeval reads."""
    xywh = np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1).astype(np.float64)
    areas = xywh[:, 2] * xywh[:, 3]
    owners = np.repeat(np.arange(len(images)), np.diff(offsets))
    columns = [xywh.tolist(), areas.tolist(), owners.tolist()]
    annotations = [
        # ids start at 1: COCOeval takes a match with id 0 for no match
        {"id": i, "image_id": owner, "category_id": _PERSON, "bbox": b, "area": a, "iscrowd": 0}
        for i, (b, a, owner) in enumerate(zip(*columns, strict=True), start=1)
    ]
    if scores is not None:
        for annotation, score in zip(annotations, scores.tolist(), strict=True):
            annotation["score"] = score
    coco = COCO()
    coco.dataset = {
        "images": images,
        "annotations": annotations,
        "categories": [{"id": _PERSON, "name": "person"}],
    }
    with contextlib.redirect_stdout(io.StringIO()):
        coco.createIndex()
    return coco
