# SPDX-License-Identifier: Apache-2.0
"""Losses of PSDiff (Eq. 13 and 14): focal class loss, L1 and GIoU on boxes, embedding distance.

Shape shorthand in this file:
    B: images. N: proposals of an image. K: ground truths of an image. D: embedding dimension.
    P: matched pairs of the whole batch.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from detectron2.structures import Instances
from detectron2.utils import comm
from fvcore.nn import sigmoid_focal_loss
from torch import Tensor
from torchvision.ops import generalized_box_iou_loss

from psdiff.box_diffusion import image_whwh
from psdiff.head import HeadOutput
from psdiff.matcher import LossWeights, ProposalMatcher


def loss_normalizer(num_pairs: int, num_proposals: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the divisor of all loss sums: the matched pairs of all processes, per process.

    Distributed training averages gradients over processes. With this divisor, the average equals
    the sum over all processes divided by all pairs, as if one process had the whole batch. Where
    the whole batch has no ground truth, the divisor is the number of proposals.

    Args:
        num_pairs: Matched pairs of this process.
        num_proposals: Proposals of this process.
        like: Tensor that determines dtype and device.

    Returns:
        The divisor, and the matched pairs of all processes, per process.
    """
    counts = like.new_tensor([num_pairs, num_proposals])
    world_size = comm.get_world_size()
    if world_size > 1:
        torch.distributed.all_reduce(counts)
    counts = counts / world_size
    return torch.where(counts[0] > 0, counts[0], counts[1]), counts[0]


class PSDiffCriterion:
    """Matches predictions with ground truths and computes the losses.

    Args:
        matcher: Assigns proposals to ground truths, image by image.
        weights: Weights of the losses.
    """

    def __init__(self, matcher: ProposalMatcher, weights: LossWeights) -> None:
        self.matcher, self.weights = matcher, weights
        self.normalizer: tuple[Tensor, Tensor] | None = None  # of the last call

    def __call__(self, output: HeadOutput, targets: Sequence[Instances]) -> dict[str, Tensor]:
        """Computes the losses of one batch.

        Args:
            output: Predictions of the head for B images, float32 also in mixed precision.
            targets: B Instances with ``gt_boxes`` (pixels) and ``gt_reid_feats`` (K, D), unit norm.

        Returns:
            Weighted scalars ``loss_cls``, ``loss_l1``, ``loss_giou`` and ``loss_reid``. The last
            three are zero, with a gradient, if the batch has no ground truth.
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
        # One gather for the batch: one per image would allocate a full-size gradient for each.
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

        w = self.weights
        self.normalizer = loss_normalizer(len(pred), output.logits.numel(), output.logits)
        norm = self.normalizer[0]
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
    """Computes the Euclidean distance of embeddings, Eq. 14 (not squared); (P, D) twice -> (P,).

    The gradient at distance zero is zero instead of undefined.
    """
    squared = (pred - target).square().sum(dim=-1)
    return squared.clamp(min=1e-12).sqrt()
