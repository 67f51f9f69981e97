# SPDX-License-Identifier: Apache-2.0
"""Assignment of proposals to ground truths in the training of PSDiff (Section IV-C).

Shape shorthand in this file:
    N: proposals of one image. K: its ground truths. P: matched pairs.
Boxes are XYXY pixels; the L1 cost is computed on boxes divided by the image's (w, h, w, h).
"""

from dataclasses import dataclass

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torchvision.ops import box_iou, generalized_box_iou

from psdiff.box_diffusion import image_whwh
from psdiff.config import check_choice, check_range

# Added to the cost of proposals far from a ground truth: they are the last choice.
_FAR_COST = 100.0
# Replaces NaN and infinity: a diverging model must reach its loss, which reports the divergence.
_NOT_FINITE_COST = 1e6
_CENTER_RADIUS = 2.5


@dataclass(frozen=True)
class LossWeights:
    """Weights of Eq. 13 and 14, and the constants of the focal loss."""

    cls: float = 2.0
    l1: float = 5.0
    giou: float = 2.0
    reid: float = 5.0
    focal_alpha: float = 0.25
    focal_gamma: float = 2.0


def pairwise_cost(
    logits: Tensor, boxes: Tensor, gt_boxes: Tensor, whwh: Tensor, weights: LossWeights
) -> Tensor:
    """Computes the cost of each assignment without the embeddings.

    Args:
        logits: Class logits (N,).
        boxes: Predicted boxes (N, 4).
        gt_boxes: Ground-truth boxes (K, 4).
        whwh: Image size (w, h, w, h), shape (4,).
        weights: Weights of the class, L1 and GIoU costs.

    Returns:
        Cost (N, K) float32.
    """
    score = logits.float().sigmoid().clamp(1e-6, 1 - 1e-6)
    alpha, gamma = weights.focal_alpha, weights.focal_gamma
    as_person = -alpha * (1 - score) ** gamma * score.log()
    as_background = -(1 - alpha) * score**gamma * (1 - score).log()
    cost_cls = (as_person - as_background)[:, None]
    cost_l1 = torch.cdist(boxes / whwh, gt_boxes / whwh, p=1)
    cost_giou = -generalized_box_iou(boxes, gt_boxes)
    return weights.cls * cost_cls + weights.l1 * cost_l1 + weights.giou * cost_giou


def near_ground_truth(boxes: Tensor, gt_boxes: Tensor) -> Tensor:
    """Finds the proposals whose center lies inside or close to a ground truth.

    Close means within 2.5 ground-truth widths and heights of its center.

    Args:
        boxes: Proposals (N, 4).
        gt_boxes: Ground truths (K, 4).

    Returns:
        Mask (N, K) bool.
    """
    center = (boxes[:, None, :2] + boxes[:, None, 2:]) / 2
    gt_center = (gt_boxes[:, :2] + gt_boxes[:, 2:]) / 2
    gt_size = gt_boxes[:, 2:] - gt_boxes[:, :2]
    inside = ((center > gt_boxes[:, :2]) & (center < gt_boxes[:, 2:])).all(dim=-1)
    close = ((center - gt_center).abs() < _CENTER_RADIUS * gt_size).all(dim=-1)
    return inside | close


def dynamic_k_assign(cost: Tensor, iou: Tensor, top_ious: int) -> tuple[Tensor, Tensor]:
    """Assigns to each ground truth its k cheapest proposals.

    k is the sum of the highest IoUs of the ground truth, at least 1. A proposal chosen twice goes
    to the ground truth with the lower cost. A ground truth left without a proposal gets the
    cheapest free one.

    Args:
        cost: Cost (N, K).
        iou: IoU (N, K).
        top_ious: Number of IoUs that are summed.

    Returns:
        Indices of matched proposals, ascending, and of their ground truths; (P,) int64 each.
    """
    num_proposals, num_gt = cost.shape
    highest = iou.topk(min(top_ious, num_proposals), dim=0).values
    wanted = highest.sum(dim=0).int().clamp(min=1, max=num_proposals)
    rank = cost.argsort(dim=0).argsort(dim=0)
    owner_cost = torch.where(rank < wanted, cost, torch.inf)
    best_cost, owner = owner_cost.min(dim=1)
    owner = torch.where(best_cost.isinf(), -1, owner)
    # A free proposal given away below is taken from no other ground truth, so the ground truths
    # without a proposal are known now.
    has_one = torch.zeros(num_gt + 1, dtype=torch.bool, device=cost.device)
    has_one[owner] = True  # -1 (no ground truth) is the last entry
    for lonely in (~has_one[:num_gt]).nonzero().flatten().tolist():
        if not (owner < 0).any():
            break
        owner[torch.where(owner < 0, cost[:, lonely], torch.inf).argmin()] = lonely
    matched = (owner >= 0).nonzero().squeeze(1)
    return matched, owner[matched]


class ProposalMatcher:
    """Assigns proposals to the ground truths of one image.

    Args:
        mode: ``dynamic_k`` (several proposals per ground truth) or ``hungarian`` (one each).
        weights: Weights of the class, L1 and GIoU costs, those of the losses.
        top_ious: See :func:`dynamic_k_assign`.
        reid_weight: Weight of the embedding distance in the cost. The paper does not state it
            clearly: 0 as in detectors, or 5, where all of Eq. 13 is the cost.
    """

    def __init__(
        self, mode: str, weights: LossWeights, top_ious: int = 5, reid_weight: float = 0.0
    ) -> None:
        check_choice("MATCHER", mode, ("dynamic_k", "hungarian"))
        check_range("MATCHER_TOP_IOUS", top_ious, 1)
        self.mode, self.weights, self.top_ious = mode, weights, top_ious
        self.reid_weight = reid_weight

    @torch.no_grad()
    def __call__(
        self,
        logits: Tensor,
        boxes: Tensor,
        gt_boxes: Tensor,
        image_size: tuple[int, int],
        reid_feats: Tensor | None = None,
        gt_reid_feats: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Matches the proposals of one image.

        Args:
            logits: Class logits (N,).
            boxes: Predicted boxes (N, 4).
            gt_boxes: Ground-truth boxes (K, 4).
            image_size: Image size (h, w).
            reid_feats: Predicted embeddings (N, D); required if they are part of the cost.
            gt_reid_feats: Embeddings (K, D) of the ground truths, likewise.

        Returns:
            Indices of matched proposals and of their ground truths, (P,) int64 each; empty without
            ground truths.
        """
        if len(gt_boxes) == 0:
            empty = torch.zeros(0, dtype=torch.int64, device=boxes.device)
            return empty, empty.clone()
        cost = pairwise_cost(logits, boxes, gt_boxes, image_whwh(image_size, boxes), self.weights)
        if self.reid_weight:
            cost = cost + self.reid_weight * torch.cdist(reid_feats, gt_reid_feats)
        cost = cost.nan_to_num(_NOT_FINITE_COST, _NOT_FINITE_COST, -_NOT_FINITE_COST)
        if self.mode == "hungarian":
            rows, columns = map(torch.as_tensor, linear_sum_assignment(cost.cpu().numpy()))
            return rows.to(boxes.device), columns.to(boxes.device)
        cost = cost + _FAR_COST * ~near_ground_truth(boxes, gt_boxes)
        return dynamic_k_assign(cost, box_iou(boxes, gt_boxes).nan_to_num(0.0), self.top_ious)
