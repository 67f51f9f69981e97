# SPDX-License-Identifier: Apache-2.0
"""Losses of PSDiff (Eq. 13 and 14): focal class loss, L1 and GIoU on boxes, embedding distance.

Shape shorthand in this file:
    B: images. N: proposals of an image. P: matched pairs of the whole batch. D: embedding length.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from detectron2.structures import Instances
from detectron2.utils import comm
from fvcore.nn import giou_loss, sigmoid_focal_loss
from torch import Tensor

from psdiff.box_diffusion import image_whwh
from psdiff.head import HeadOutput
from psdiff.matcher import ProposalMatcher


@dataclass(frozen=True)
class LossWeights:
    """Weights of Eq. 13 and 14 and the constants of the focal loss."""

    cls: float = 2.0
    l1: float = 5.0
    giou: float = 2.0
    reid: float = 5.0
    focal_alpha: float = 0.25
    focal_gamma: float = 2.0


def mean_over_workers(count: int, like: Tensor) -> Tensor:
    """Mean of a count over all processes, at least one: what every loss sum is divided by."""
    total = like.new_tensor(float(count))
    world_size = comm.get_world_size()
    if world_size > 1:
        torch.distributed.all_reduce(total)
    return (total / world_size).clamp(min=1.0)


class PSDiffCriterion:
    """Matches predictions with ground truths and sums up the losses.

    Args:
        matcher: assigns proposals to ground truths, image by image.
        weights: of the losses.
    """

    def __init__(self, matcher: ProposalMatcher, weights: LossWeights) -> None:
        self.matcher, self.weights = matcher, weights

    def __call__(self, output: HeadOutput, targets: Sequence[Instances]) -> dict[str, Tensor]:
        """Losses of one batch.

        Args:
            output: of the head, B images.
            targets: B Instances with ``gt_boxes`` (pixels) and ``gt_reid_feats`` (K, D), unit.

        Returns:
            ``loss_cls``, ``loss_l1``, ``loss_giou``, ``loss_reid``: scalars, weighted. With no
            ground truth in the whole batch the last three are zero and still differentiable.
        """
        is_person = torch.zeros_like(output.logits)
        pred_boxes, gt_boxes, pred_reid, gt_reid, scales = [], [], [], [], []
        for index, target in enumerate(targets):
            boxes = target.gt_boxes.tensor
            proposal, truth = self.matcher(
                output.logits[index], output.boxes[index], boxes, target.image_size
            )
            is_person[index, proposal] = 1.0
            pred_boxes.append(output.boxes[index, proposal])
            gt_boxes.append(boxes[truth])
            pred_reid.append(output.reid_feats[index, proposal])
            gt_reid.append(target.gt_reid_feats[truth])
            scales.append(image_whwh(target.image_size, boxes).expand(len(proposal), 4))
        pred, true, whwh = torch.cat(pred_boxes), torch.cat(gt_boxes), torch.cat(scales)
        norm = mean_over_workers(len(pred), output.logits)
        w = self.weights
        focal = sigmoid_focal_loss(
            output.logits, is_person, alpha=w.focal_alpha, gamma=w.focal_gamma, reduction="sum"
        )
        distance = reid_distance(torch.cat(pred_reid), torch.cat(gt_reid))
        return {
            "loss_cls": w.cls * focal / norm,
            "loss_l1": w.l1 * F.l1_loss(pred / whwh, true / whwh, reduction="sum") / norm,
            "loss_giou": w.giou * giou_loss(pred, true, reduction="sum") / norm,
            "loss_reid": w.reid * distance.sum() / norm,
        }


def reid_distance(pred: Tensor, target: Tensor) -> Tensor:
    """Euclidean distance of embeddings, Eq. 14 (not squared); (P, D) twice -> (P,).

    The gradient at distance zero is zero instead of undefined.
    """
    squared = (pred - target).square().sum(dim=-1)
    return squared.clamp(min=1e-12).sqrt()
