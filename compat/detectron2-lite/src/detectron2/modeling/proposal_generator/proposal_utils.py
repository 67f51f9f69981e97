# SPDX-License-Identifier: Apache-2.0
"""Selection of proposals, and their extension by ground truth boxes.

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
    """Selects the proposals with the highest scores of each level, and applies NMS.

    Args:
        proposals: For each level, (N, R_l, 4) decoded boxes.
        pred_objectness_logits: For each level, (N, R_l) logits.
        image_sizes: (height, width) of each image.
        nms_thresh: IoU threshold of NMS within each level.
        pre_nms_topk: Number of proposals per level and image before NMS.
        post_nms_topk: Number of proposals per image after NMS.
        min_box_size: Side length in pixels that the clipped boxes must exceed.
        training: Whether Inf or NaN is an error. At inference, such proposals are removed.

    Returns:
        For each image, Instances with `proposal_boxes` and `objectness_logits`, highest score
        first.
    """
    boxes, logits, levels = _top_of_each_level(proposals, pred_objectness_logits, pre_nms_topk)
    results: list[Instances] = []
    for index, image_size in enumerate(image_sizes):
        image_boxes, image_logits, image_levels = Boxes(boxes[index]), logits[index], levels
        finite = torch.isfinite(image_boxes.tensor).all(dim=1) & torch.isfinite(image_logits)
        if not finite.all():
            if training:
                raise FloatingPointError("the proposals contain Inf or NaN: training has diverged")
            image_boxes, image_logits = image_boxes[finite], image_logits[finite]
            image_levels = image_levels[finite]
        image_boxes.clip(image_size)

        large = image_boxes.nonempty(threshold=min_box_size)
        if _is_tracing() or not large.all():
            image_boxes, image_logits = image_boxes[large], image_logits[large]
            image_levels = image_levels[large]

        keep = batched_nms(image_boxes.tensor, image_logits, image_levels, nms_thresh)
        keep = keep[:post_nms_topk]  # sorted by score
        result = Instances(image_size)
        result.proposal_boxes = image_boxes[keep]
        result.objectness_logits = image_logits[keep]
        results.append(result)
    return results


def _is_tracing() -> bool:
    # TorchScript cannot compile is_tracing()
    if torch.jit.is_scripting():
        return False
    return torch.jit.is_tracing()


def _top_of_each_level(
    proposals: list[torch.Tensor], pred_objectness_logits: list[torch.Tensor], topk: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Returns (N, K, 4) boxes, (N, K) logits and (K,) levels of the best ``topk`` per level."""
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
    """Appends the ground truth boxes of each image to its proposals.

    They provide foreground for the second stage while the first one is not trained yet.

    Args:
        gt: For each image, Instances with `gt_boxes`, or Boxes. It must have all fields of the
            proposals except `proposal_boxes` and `objectness_logits`.
        proposals: For each image, Instances from ``find_top_rpn_proposals``.

    Returns:
        New list of Instances with the fields of the proposals.
    """
    assert gt is not None
    if len(proposals) != len(gt):
        raise ValueError(
            f"proposals of {len(proposals)} images and ground truth of {len(gt)} images must have "
            "the same length"
        )
    return [
        add_ground_truth_to_proposals_single_image(image_gt, image_proposals)
        for image_gt, image_proposals in zip(gt, proposals, strict=True)
    ]


def add_ground_truth_to_proposals_single_image(
    gt: Instances | Boxes, proposals: Instances
) -> Instances:
    """Appends the ground truth boxes of one image; see ``add_ground_truth_to_proposals``."""
    if isinstance(gt, Boxes):
        gt = Instances(proposals.image_size, gt_boxes=gt)
    boxes = gt.gt_boxes
    # the logit of a probability close to 1
    probability = 1.0 - 1e-10
    logit = math.log(probability / (1 - probability))
    gt_proposals = Instances(proposals.image_size, **gt.get_fields())
    gt_proposals.proposal_boxes = boxes
    gt_proposals.objectness_logits = torch.full(
        (len(boxes),), logit, device=proposals.objectness_logits.device
    )
    for name in proposals.get_fields():
        assert gt_proposals.has(name), f"the ground truth lacks the field {name!r} of the proposals"
    return Instances.cat([proposals, gt_proposals])
