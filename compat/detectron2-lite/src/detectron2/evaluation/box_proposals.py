# SPDX-License-Identifier: Apache-2.0
"""Average recall of class-agnostic box proposals.

Shape shorthand: G ground truth boxes and P proposals of one image, T thresholds.
"""

import torch
from detectron2.structures import Boxes, BoxMode, pairwise_iou

AREA_RANGES = {
    "all": (0**2, 1e5**2),
    "small": (0**2, 32**2),
    "medium": (32**2, 96**2),
    "large": (96**2, 1e5**2),
    "96-128": (96**2, 128**2),
    "128-256": (128**2, 256**2),
    "256-512": (256**2, 512**2),
    "512-inf": (512**2, 1e5**2),
}
"""name -> range of ground truth areas in pixels, both ends included."""


def _ground_truth(coco_api, image_id: int, area_range: tuple) -> Boxes | None:
    """Boxes of one image that are no crowds and have an area in the range; None without any box."""
    annotations = coco_api.loadAnns(coco_api.getAnnIds(imgIds=image_id))
    annotations = [a for a in annotations if a["iscrowd"] == 0]
    if not annotations:
        return None
    boxes = torch.as_tensor(
        [BoxMode.convert(a["bbox"], BoxMode.XYWH_ABS, BoxMode.XYXY_ABS) for a in annotations]
    ).reshape(-1, 4)
    areas = torch.as_tensor([a["area"] for a in annotations])
    low, high = area_range
    return Boxes(boxes[(areas >= low) & (areas <= high)])


def _match_greedily(iou: torch.Tensor) -> torch.Tensor:
    """One proposal for each ground truth box, best pairs first.

    Args:
        iou: (P, G) overlaps.

    Returns:
        (G,) overlaps of the pairs in the order they were made; 0 for boxes left over.
    """
    overlaps = torch.zeros(iou.shape[1])
    iou = iou.clone()
    for index in range(min(iou.shape)):
        best_per_gt, proposal_per_gt = iou.max(dim=0)
        overlap, gt = best_per_gt.max(dim=0)
        assert overlap >= 0
        overlaps[index] = overlap
        iou[proposal_per_gt[gt], :] = -1
        iou[:, gt] = -1
    return overlaps


def evaluate_box_proposals(
    dataset_predictions: list[dict], coco_api, thresholds=None, area: str = "all", limit=None
) -> dict:
    """Recall of proposals against the boxes of a data set.

    Args:
        dataset_predictions: for each image {"image_id", "proposals": Instances with
            proposal_boxes and objectness_logits}.
        coco_api: pycocotools' view of the data set.
        thresholds: (T,) overlaps; 0.5 to 0.95 in steps of 0.05 by default.
        area: a key of `AREA_RANGES`.
        limit: use only this many proposals an image, those of the highest score.

    Returns:
        "ar" (average over the thresholds; nan without ground truth), "recalls" and "thresholds"
        (T,), "gt_overlaps", and "num_pos", the number of ground truth boxes.
    """
    assert area in AREA_RANGES, f"Unknown area range: {area}; use one of {list(AREA_RANGES)}"
    overlaps, num_pos = [torch.zeros(0)], 0
    for prediction in dataset_predictions:
        proposals = prediction["proposals"]
        order = proposals.objectness_logits.sort(descending=True)[1]
        boxes = proposals.proposal_boxes[order]
        gt_boxes = _ground_truth(coco_api, prediction["image_id"], AREA_RANGES[area])
        if gt_boxes is None:
            continue
        num_pos += len(gt_boxes)
        if not len(gt_boxes) or not len(boxes):
            continue
        if limit is not None:
            boxes = boxes[:limit]
        overlaps.append(_match_greedily(pairwise_iou(boxes, gt_boxes)))
    gt_overlaps = torch.cat(overlaps).sort()[0]
    if thresholds is None:
        thresholds = torch.arange(0.5, 0.95 + 1e-5, 0.05, dtype=torch.float32)
    hits = [(gt_overlaps >= threshold).float().sum() for threshold in thresholds]
    recalls = (
        torch.stack(hits) / float(num_pos)
        if num_pos
        else torch.full((len(thresholds),), float("nan"))
    )
    return {
        "ar": recalls.mean(),
        "recalls": recalls,
        "thresholds": thresholds,
        "gt_overlaps": gt_overlaps,
        "num_pos": num_pos,
    }
