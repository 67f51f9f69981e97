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
from fvcore.nn import sigmoid_focal_loss
from torch import Tensor
from torchvision.ops import generalized_box_iou_loss

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


def pairs_per_worker(count: int, like: Tensor) -> Tensor:
    """What every loss sum is divided by: matched pairs of all processes, at least 1, per process.

    Distributed training averages gradients over the processes. With this divisor the average is
    the sum over all processes divided by all their pairs, as if one process had the whole batch.

    Args:
        count: matched pairs of this process. like: gives type and device.
    """
    total = like.new_tensor(float(count))
    world_size = comm.get_world_size()
    if world_size > 1:
        torch.distributed.all_reduce(total)
    return total.clamp(min=1.0) / world_size


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
            output: of the head, B images, float32 also in mixed precision.
            targets: B Instances with ``gt_boxes`` (pixels) and ``gt_reid_feats`` (K, D), unit.

        Returns:
            ``loss_cls``, ``loss_l1``, ``loss_giou``, ``loss_reid``: scalars, weighted. With no
            ground truth in the whole batch the last three are zero and still differentiable.
        """
        with torch.autocast(output.logits.device.type, enabled=False):
            return self._losses(output, targets)

    def _losses(self, output: HeadOutput, targets: Sequence[Instances]) -> dict[str, Tensor]:
        matches = [
            self.matcher(
                output.logits[i],
                output.boxes[i],
                target.gt_boxes.tensor,
                target.image_size,
                output.reid_feats[i],
                target.gt_reid_feats,
            )
            for i, target in enumerate(targets)
        ]
        # One gather for the batch: one per image would fill a gradient of full size for each.
        num_proposals = output.logits.shape[1]
        matched = torch.cat([rows + i * num_proposals for i, (rows, _) in enumerate(matches)])
        pairs = list(zip(targets, matches, strict=True))
        true = torch.cat([target.gt_boxes.tensor[truth] for target, (_, truth) in pairs])
        true_reid = torch.cat([target.gt_reid_feats[truth] for target, (_, truth) in pairs])
        whwh = torch.cat(
            [image_whwh(x.image_size, true).expand(len(rows), 4) for x, (rows, _) in pairs]
        )
        pred = output.boxes.flatten(0, 1)[matched]
        is_person = torch.zeros_like(output.logits)
        is_person.view(-1)[matched] = 1.0

        norm, w = pairs_per_worker(len(pred), output.logits), self.weights
        focal = sigmoid_focal_loss(
            output.logits, is_person, alpha=w.focal_alpha, gamma=w.focal_gamma, reduction="sum"
        )
        giou = generalized_box_iou_loss(pred, true, reduction="sum")
        distance = reid_distance(output.reid_feats.flatten(0, 1)[matched], true_reid)
        return {
            "loss_cls": w.cls * focal / norm,
            "loss_l1": w.l1 * F.l1_loss(pred / whwh, true / whwh, reduction="sum") / norm,
            "loss_giou": w.giou * giou / norm,
            "loss_reid": w.reid * distance.sum() / norm,
        }


def reid_distance(pred: Tensor, target: Tensor) -> Tensor:
    """Euclidean distance of embeddings, Eq. 14 (not squared); (P, D) twice -> (P,).

    The gradient at distance zero is zero instead of undefined.
    """
    squared = (pred - target).square().sum(dim=-1)
    return squared.clamp(min=1e-12).sqrt()
