# SPDX-License-Identifier: Apache-2.0
"""Choose the best proposals of an image; add the ground truth to them for training.

Shape shorthand: N images, L feature levels, R_l predictions of level l.
"""

import math

import torch
from detectron2.layers import batched_nms, cat
from detectron2.structures import Boxes, Instances


def find_top_rpn_proposals(
    proposals: list[torch.Tensor],
    pred_objectness_logits: list[torch.Tensor],
    image_sizes: list[tuple[int, int]],
    nms_thresh: float,
    pre_nms_topk: int,
    post_nms_topk: int,
    min_box_size: float,
    training: bool,
) -> list[Instances]:
    """Keep the top of each level, suppress duplicates within levels, keep the top of the rest.

    Args:
        proposals: per level, decoded boxes (N, R_l, 4).
        pred_objectness_logits: per level, (N, R_l).
        image_sizes: per image (height, width), to clip to.
        nms_thresh: IoU from which the lower scored box goes.
        pre_nms_topk: kept per level and image before NMS.
        post_nms_topk: kept per image after it.
        min_box_size: boxes need both sides above this, in pixels, after clipping.
        training: whether Inf or NaN is an error. At inference such rows are dropped.

    Returns:
        Per image an Instances with `proposal_boxes` and `objectness_logits`, best first, without
        gradient on the choice.
    """
    boxes, logits, levels = _top_of_each_level(proposals, pred_objectness_logits, pre_nms_topk)
    results: list[Instances] = []
    for index, image_size in enumerate(image_sizes):
        image_boxes, image_logits, image_levels = Boxes(boxes[index]), logits[index], levels
        finite = torch.isfinite(image_boxes.tensor).all(dim=1) & torch.isfinite(image_logits)
        if not finite.all():
            if training:
                raise FloatingPointError("Inf or NaN among the proposals: training has diverged")
            image_boxes, image_logits = image_boxes[finite], image_logits[finite]
            image_levels = image_levels[finite]
        image_boxes.clip(image_size)

        large = image_boxes.nonempty(threshold=min_box_size)
        if _is_tracing() or not large.all():
            image_boxes, image_logits = image_boxes[large], image_logits[large]
            image_levels = image_levels[large]

        keep = batched_nms(image_boxes.tensor, image_logits, image_levels, nms_thresh)
        keep = keep[:post_nms_topk]  # NMS returns the best first
        result = Instances(image_size)
        result.proposal_boxes = image_boxes[keep]
        result.objectness_logits = image_logits[keep]
        results.append(result)
    return results


def _is_tracing() -> bool:
    # TorchScript cannot compile is_tracing().
    if torch.jit.is_scripting():
        return False
    return torch.jit.is_tracing()


def _top_of_each_level(
    proposals: list[torch.Tensor], pred_objectness_logits: list[torch.Tensor], topk: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Boxes (N, K, 4), logits (N, K) and levels (K,) of the best `topk` per level."""
    boxes: list[torch.Tensor] = []
    logits: list[torch.Tensor] = []
    levels: list[torch.Tensor] = []
    for level, level_logits in enumerate(pred_objectness_logits):
        available = level_logits.shape[1]
        if isinstance(available, torch.Tensor):  # traced
            count = torch.clamp(available, max=topk)
        else:
            count = min(available, topk)
        top_logits, rows = level_logits.topk(count, dim=1)
        boxes.append(proposals[level].gather(1, rows[:, :, None].expand(-1, -1, 4)))
        logits.append(top_logits)
        levels.append(torch.full_like(rows[0], level))
    return cat(boxes, dim=1), cat(logits, dim=1), cat(levels, dim=0)


def add_ground_truth_to_proposals(
    gt: list[Instances] | list[Boxes], proposals: list[Instances]
) -> list[Instances]:
    """Append each image's ground truth boxes to its proposals.

    It gives the second stage positives to learn from while the first one is still untrained.

    Args:
        gt: per image, Instances with `gt_boxes`, or the Boxes themselves. If the proposals have
            other fields than `proposal_boxes` and `objectness_logits`, the ground truth needs
            them too.
        proposals: per image, as from `find_top_rpn_proposals`.

    Returns:
        New Instances with the fields of the proposals; nothing is changed in place.
    """
    assert gt is not None
    if len(proposals) != len(gt):
        raise ValueError(
            f"proposals of {len(proposals)} images, ground truth of {len(gt)}: need the same length"
        )
    return [
        add_ground_truth_to_proposals_single_image(image_gt, image_proposals)
        for image_gt, image_proposals in zip(gt, proposals, strict=True)
    ]


def add_ground_truth_to_proposals_single_image(
    gt: Instances | Boxes, proposals: Instances
) -> Instances:
    """The same for one image."""
    if isinstance(gt, Boxes):
        boxes = gt
        gt = Instances(proposals.image_size, gt_boxes=boxes)
    boxes = gt.gt_boxes

    # A logit for a probability as near to 1 as makes sense: it outranks every real proposal.
    probability = 1.0 - 1e-10
    logit = math.log(probability / (1 - probability))
    gt_proposals = Instances(proposals.image_size, **gt.get_fields())
    gt_proposals.proposal_boxes = boxes
    gt_proposals.objectness_logits = torch.full(
        (len(boxes),), logit, device=proposals.objectness_logits.device
    )
    for name in proposals.get_fields():
        assert gt_proposals.has(name), (
            f"the proposals have a field {name!r} which the ground truth lacks"
        )
    return Instances.cat([proposals, gt_proposals])
