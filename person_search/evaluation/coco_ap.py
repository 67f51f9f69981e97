# SPDX-License-Identifier: Apache-2.0
"""COCO-style AP by pycocotools for the pooled detections, comparable with other detectors.

Shape shorthand: T IoU thresholds, R = 101 recall points, A ranges of area.
"""

import contextlib
import io
from collections.abc import Sequence

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

COCO_MAX_DETS = 100
COCO_IOU_THRESHS = tuple(np.linspace(0.5, 0.95, 10).round(2).tolist())
COCO_AREAS = ("all", "small", "medium", "large")
"""COCO's area ranges: small below 32^2 square pixels, large from 96^2 on."""
_PERSON = 1  # COCO counts categories from 1


def coco_average_precision(*arrays: np.ndarray, iou_thresh: float = 0.5) -> float:
    """Computes AP with 101 recall points at one IoU threshold, at most 100 detections per image.

    Args:
        *arrays: Arrays of :func:`~person_search.evaluation.detection_metrics.evaluate_detection`.
        iou_thresh: Minimum IoU of a match.

    Returns:
        AP in percent; 0 without detections, nan without ground truth.
    """
    return float(_precisions(*arrays, iou_threshs=[iou_thresh], areas=["all"])[0, 0])


def coco_summary(*arrays: np.ndarray) -> dict[str, float]:
    """Computes COCO's metrics: AP over ten IoU thresholds, at two of them, and by area.

    Args:
        *arrays: Arrays of :func:`~person_search.evaluation.detection_metrics.evaluate_detection`.

    Returns:
        ``AP``, ``AP50``, ``AP75``, ``APs``, ``APm``, ``APl`` in percent; nan for an area range
        without persons.
    """
    ap = _precisions(*arrays, iou_threshs=COCO_IOU_THRESHS, areas=COCO_AREAS)
    at = {f"AP{100 * t:.0f}": ap[COCO_IOU_THRESHS.index(t), 0] for t in (0.5, 0.75)}
    by_area = {f"AP{name[0]}": ap[:, n].mean() for n, name in enumerate(COCO_AREAS) if n}
    metrics = {"AP": ap[:, 0].mean(), **at, **by_area}
    return {name: float(value) for name, value in metrics.items()}


def _precisions(
    gt_boxes: np.ndarray,
    gt_offsets: np.ndarray,
    det_boxes: np.ndarray,
    det_scores: np.ndarray,
    det_offsets: np.ndarray,
    *,
    iou_threshs: Sequence[float],
    areas: Sequence[str],
) -> np.ndarray:
    """Computes AP (T, A) in percent."""
    shape = (len(iou_threshs), len(areas))
    if len(gt_boxes) == 0:
        return np.full(shape, np.nan)
    images = [{"id": i} for i in range(len(gt_offsets) - 1)]
    ground_truth = _build_coco(images, gt_boxes, gt_offsets)
    detections = _build_coco(images, det_boxes, det_offsets, det_scores)
    evaluation = COCOeval(ground_truth, detections, "bbox")
    params = evaluation.params
    params.iouThrs = np.array(iou_threshs)
    chosen = [params.areaRngLbl.index(name) for name in areas]
    params.areaRng = [params.areaRng[n] for n in chosen]
    params.areaRngLbl = list(areas)
    params.maxDets = [COCO_MAX_DETS]
    with contextlib.redirect_stdout(io.StringIO()):  # it prints its progress
        evaluation.evaluate()
        evaluation.accumulate()
    precision = evaluation.eval["precision"][:, :, 0, :, 0]  # (T, R, A), -1 without persons
    return 100.0 * np.where(precision < 0, np.nan, precision).mean(axis=1)


def _build_coco(
    images: list[dict], boxes: np.ndarray, offsets: np.ndarray, scores: np.ndarray | None = None
) -> COCO:
    """Converts flat arrays to the in-memory form that COCOeval reads."""
    xywh = np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1).astype(np.float64)
    areas = xywh[:, 2] * xywh[:, 3]
    owners = np.repeat(np.arange(len(images)), np.diff(offsets))
    columns = [xywh.tolist(), areas.tolist(), owners.tolist()]
    annotations = [
        # ids start at 1: COCOeval takes a match with id 0 as unmatched
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
