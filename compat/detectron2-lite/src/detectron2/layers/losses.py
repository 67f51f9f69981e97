# SPDX-License-Identifier: Apache-2.0
"""Box regression losses that look at overlap, distance and shape."""

import math

import torch


def diou_loss(
    boxes1: torch.Tensor, boxes2: torch.Tensor, reduction: str = "none", eps: float = 1e-7
) -> torch.Tensor:
    """Distance-IoU loss, 1 - IoU + d^2 / c^2 (Zheng et al., AAAI 2020).

    d is the distance of the centers, c the diagonal of the smallest box around both.

    Args:
        boxes1: (N, 4) or (4,) boxes x0, y0, x1, y1.
        boxes2: boxes of the same shape.
        reduction: "none", "mean" (0 for no boxes) or "sum".
        eps: added to denominators.
    """
    iou, distance = _iou_and_distance(boxes1, boxes2, eps)
    return _reduce(1 - iou + distance, reduction)


def ciou_loss(
    boxes1: torch.Tensor, boxes2: torch.Tensor, reduction: str = "none", eps: float = 1e-7
) -> torch.Tensor:
    """Complete-IoU loss: the distance-IoU loss plus alpha * v (Zheng et al., AAAI 2020).

    v compares the aspect ratios and alpha weighs it by the overlap; no gradient goes through
    alpha. The arguments are those of ``diou_loss``.
    """
    iou, distance = _iou_and_distance(boxes1, boxes2, eps)
    angles = [
        torch.atan((b[..., 2] - b[..., 0]) / (b[..., 3] - b[..., 1])) for b in (boxes1, boxes2)
    ]
    v = (4 / math.pi**2) * (angles[1] - angles[0]).square()
    with torch.no_grad():
        alpha = v / (1 - iou + v + eps)
    return _reduce(1 - iou + distance + alpha * v, reduction)


def _iou_and_distance(
    boxes1: torch.Tensor, boxes2: torch.Tensor, eps: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns IoU and squared center distance over squared enclosing diagonal."""
    sizes = [b[..., 2:] - b[..., :2] for b in (boxes1, boxes2)]
    assert (sizes[0] >= 0).all(), "bad box: x1 or y1 of boxes1 smaller than x0 or y0"

    top_left = torch.max(boxes1[..., :2], boxes2[..., :2])
    bottom_right = torch.min(boxes1[..., 2:], boxes2[..., 2:])
    intersection = (bottom_right - top_left).clamp(min=0).prod(dim=-1)
    union = sizes[0].prod(dim=-1) + sizes[1].prod(dim=-1) - intersection
    iou = intersection / (union + eps)

    around_min = torch.min(boxes1[..., :2], boxes2[..., :2])
    around_max = torch.max(boxes1[..., 2:], boxes2[..., 2:])
    diagonal = (around_max - around_min).square().sum(dim=-1) + eps
    centers = [(b[..., :2] + b[..., 2:]) / 2 for b in (boxes1, boxes2)]
    return iou, (centers[0] - centers[1]).square().sum(dim=-1) / diagonal


def _reduce(loss: torch.Tensor, reduction: str) -> torch.Tensor:
    if reduction == "mean":
        # the mean over nothing would be nan; 0 * sum keeps the graph of gradients
        return loss.mean() if loss.numel() > 0 else 0.0 * loss.sum()
    return loss.sum() if reduction == "sum" else loss
