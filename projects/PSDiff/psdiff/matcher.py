# SPDX-License-Identifier: Apache-2.0
"""Which proposal answers for which ground truth while PSDiff is trained (Section IV-C).

Shape shorthand in this file:
    N: proposals of one image. K: its ground truths.
Boxes are XYXY pixels; the L1 cost is taken on boxes divided by the image's (w, h, w, h).
"""

from dataclasses import dataclass

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torchvision.ops import box_iou, generalized_box_iou

# A proposal far from a ground truth is taken only if nothing better is left.
_FAR_COST = 100.0
# Stands for a cost that is no number: a diverging model must get as far as its loss, which says so.
_LAST_RESORT = 1e6
_CENTER_RADIUS = 2.5


@dataclass(frozen=True)
class MatchWeights:
    """Weights of the matching cost; the same as those of the losses.

    ``reid`` 0 leaves embeddings out, as in detectors. The paper's words can also be read as the
    whole of Eq. 13 being the cost, which is 5.
    """

    cls: float = 2.0
    l1: float = 5.0
    giou: float = 2.0
    reid: float = 0.0
    focal_alpha: float = 0.25
    focal_gamma: float = 2.0


def pairwise_cost(
    logits: Tensor, boxes: Tensor, gt_boxes: Tensor, whwh: Tensor, weights: MatchWeights
) -> Tensor:
    """Cost of giving proposal n the ground truth k, without embeddings; (N, K) float32.

    Args:
        logits: (N,). boxes: (N, 4). gt_boxes: (K, 4). whwh: (4,) image size.
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
    """Whether a proposal's centre lies in a ground truth, or within 2.5 of its sizes of the centre.

    Returns:
        (N, K) bool.
    """
    center = (boxes[:, None, :2] + boxes[:, None, 2:]) / 2
    gt_center = (gt_boxes[:, :2] + gt_boxes[:, 2:]) / 2
    gt_size = gt_boxes[:, 2:] - gt_boxes[:, :2]
    inside = ((center > gt_boxes[:, :2]) & (center < gt_boxes[:, 2:])).all(dim=-1)
    close = ((center - gt_center).abs() < _CENTER_RADIUS * gt_size).all(dim=-1)
    return inside | close


def dynamic_k_assign(cost: Tensor, iou: Tensor, top_ious: int) -> tuple[Tensor, Tensor]:
    """Every ground truth takes its k cheapest proposals, k = sum of its highest IoUs (at least 1).

    A proposal wanted twice goes to the ground truth for which it is cheaper; a ground truth that
    loses all its proposals so takes the cheapest one still free.

    Args:
        cost: (N, K). iou: (N, K). top_ious: how many IoUs are summed.

    Returns:
        Matched proposals and their ground truths, two (P,) int64 in order of the proposals.
    """
    num_proposals, num_gt = cost.shape
    highest = iou.topk(min(top_ious, num_proposals), dim=0).values
    wanted = highest.sum(dim=0).int().clamp(min=1, max=num_proposals)
    rank = cost.argsort(dim=0).argsort(dim=0)
    owner_cost = torch.where(rank < wanted, cost, torch.full_like(cost, torch.inf))
    best_cost, owner = owner_cost.min(dim=1)
    owner = torch.where(best_cost.isinf(), torch.full_like(owner, -1), owner)
    # A free proposal given to one ground truth is taken from no other: who has none is known now.
    has_one = torch.zeros(num_gt + 1, dtype=torch.bool, device=cost.device)
    has_one[owner] = True  # -1, nobody, is the last
    for lonely in (~has_one[:num_gt]).nonzero().flatten().tolist():
        if not (owner < 0).any():
            break
        free_cost = torch.where(owner < 0, cost[:, lonely], torch.full_like(cost[:, 0], torch.inf))
        owner[free_cost.argmin()] = lonely
    matched = (owner >= 0).nonzero().squeeze(1)
    return matched, owner[matched]


class ProposalMatcher:
    """Assigns proposals to the ground truths of one image.

    Args:
        mode: ``dynamic_k`` (several proposals per ground truth) or ``hungarian`` (one each).
        weights: of the cost's parts.
        top_ious: of :func:`dynamic_k_assign`.
    """

    def __init__(self, mode: str, weights: MatchWeights, top_ious: int = 5) -> None:
        if mode not in ("dynamic_k", "hungarian"):
            raise ValueError(
                f"MODEL.PSDIFF.MATCHER is '{mode}'; it must be 'dynamic_k' or 'hungarian'."
            )
        if top_ious < 1:
            raise ValueError(f"MODEL.PSDIFF.MATCHER_TOP_IOUS is {top_ious}; it must be at least 1.")
        self.mode, self.weights, self.top_ious = mode, weights, top_ious

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
        """Returns indices of matched proposals and of their ground truths, (P,) int64 each.

        Args:
            logits: (N,). boxes: (N, 4) predicted. gt_boxes: (K, 4). image_size: (h, w).
            reid_feats, gt_reid_feats: (N, D) and (K, D), needed where they are part of the cost.
            Without ground truth both results are empty.
        """
        if len(gt_boxes) == 0:
            empty = torch.zeros(0, dtype=torch.int64, device=boxes.device)
            return empty, empty.clone()
        h, w = image_size
        whwh = boxes.new_tensor([w, h, w, h])
        cost = pairwise_cost(logits, boxes, gt_boxes, whwh, self.weights)
        if self.weights.reid:
            cost = cost + self.weights.reid * torch.cdist(reid_feats, gt_reid_feats)
        cost = cost.nan_to_num(_LAST_RESORT, _LAST_RESORT, -_LAST_RESORT)
        if self.mode == "hungarian":
            rows, columns = linear_sum_assignment(cost.cpu().numpy())
            return (
                torch.as_tensor(rows, device=boxes.device),
                torch.as_tensor(columns, device=boxes.device),
            )
        cost = cost + _FAR_COST * ~near_ground_truth(boxes, gt_boxes)
        return dynamic_k_assign(cost, box_iou(boxes, gt_boxes).nan_to_num(0.0), self.top_ious)
