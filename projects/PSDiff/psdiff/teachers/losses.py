# SPDX-License-Identifier: Apache-2.0
"""Supervised re-ID losses shared by several teachers.

Shape shorthand in this file: n crops of a batch, C feature dimension, I training identities.

The triplet losses compare Euclidean distances within a batch. A positive of crop i is *another*
crop of the same identity; crops without a positive are ignored.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from psdiff.teachers.reid_net import TeacherFeatures

DescribeRows = Callable[[Tensor], Iterator[TeacherFeatures]]


class TeacherLoss(nn.Module, ABC):
    """Base class of the losses; their weights and buffers are saved in checkpoints only."""

    uses_unlabeled = False
    """Batches also contain persons without identity."""

    def start_epoch(self, epoch: int, describe: DescribeRows) -> None:  # noqa: B027 - optional
        """Prepares an epoch; called before each one.

        Args:
            epoch: Epoch, from 0.
            describe: Computes the features of training crops, given their rows, by the network in
                eval mode and without augmentation, batch by batch.
        """

    @abstractmethod
    def forward(self, feats: TeacherFeatures, pids: Tensor, rows: Tensor) -> dict[str, Tensor]:
        """Computes the losses of a batch.

        Args:
            feats: Features of n crops.
            pids: Person ids (n,) int64, ``UNLABELED_PID`` only with ``uses_unlabeled``.
            rows: Indices (n,) int64 of these crops among all training crops.

        Returns:
            Scalars by name, ``loss_*``.
        """


def pairwise_distance(feats: Tensor) -> Tensor:
    """Computes Euclidean distances (n, n) of features (n, C) with finite gradients everywhere."""
    square = feats.square().sum(dim=1)
    square = square[:, None] + square[None, :] - 2.0 * feats @ feats.T
    return square.clamp(min=1e-12).sqrt()


def _pairs(pids: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Returns masks (n, n) of positives and negatives, and (n,) of crops that have both."""
    same = pids[:, None] == pids[None, :]
    positive = same & ~torch.eye(len(pids), dtype=torch.bool, device=pids.device)
    return positive, ~same, positive.any(dim=1) & ~same.all(dim=1)


def hardest_pairs(feats: Tensor, pids: Tensor) -> tuple[Tensor, Tensor]:
    """Computes the distances to the farthest positive and to the nearest negative.

    Args:
        feats: Features (n, C).
        pids: Person ids (n,).

    Returns:
        Two tensors with the distances of the crops that have both.
    """
    distance = pairwise_distance(feats)
    positive, negative, usable = _pairs(pids)
    farthest = distance.masked_fill(~positive, -torch.inf).amax(dim=1)
    nearest = distance.masked_fill(~negative, torch.inf).amin(dim=1)
    return farthest[usable], nearest[usable]


def _mean(values: Tensor, feats: Tensor) -> Tensor:
    """Returns the mean, or zero with a gradient if there are no values."""
    return values.mean() if len(values) else feats.sum() * 0.0


def batch_hard_triplet(feats: Tensor, pids: Tensor, margin: float) -> Tensor:
    """Computes mean(max(0, farthest positive - nearest negative + margin)) (Hermans 2017)."""
    farthest, nearest = hardest_pairs(feats, pids)
    return _mean(F.relu(farthest - nearest + margin), feats)


def softmax_triplet(feats: Tensor, pids: Tensor) -> Tensor:
    """Computes mean(log(1 + exp(farthest positive - nearest negative)))."""
    farthest, nearest = hardest_pairs(feats, pids)
    return _mean(F.softplus(farthest - nearest), feats)


def weighted_triplet(feats: Tensor, pids: Tensor) -> Tensor:
    """Computes the weighted regularized triplet loss of AGW, which has no margin.

    For each crop, the positive distances are averaged with weights softmax(distance), the negative
    ones with softmax(-distance); the loss is log(1 + exp(positive - negative)).
    """
    distance = pairwise_distance(feats)
    positive, negative, usable = _pairs(pids)
    distance, positive, negative = distance[usable], positive[usable], negative[usable]
    far = distance.masked_fill(~positive, -torch.inf).softmax(dim=1)
    near = (-distance).masked_fill(~negative, -torch.inf).softmax(dim=1)
    return _mean(F.softplus((distance * far).sum(dim=1) - (distance * near).sum(dim=1)), feats)


class CenterLoss(nn.Module):
    """Half the squared distance to the center of the identity, mean over crops (Wen 2016).

    Centers are buffers. In each batch, the center of an identity with m crops moves by RATE times
    the sum of their differences divided by 1 + m.

    Args:
        num_pids: Number of training identities I.
        dim: Feature dimension C.
    """

    RATE = 0.5

    def __init__(self, num_pids: int, dim: int) -> None:
        super().__init__()
        self.register_buffer("centers", torch.zeros(num_pids, dim))

    def forward(self, feats: Tensor, pids: Tensor) -> Tensor:
        """Computes the loss of features (n, C); moves the centers in training mode."""
        difference = feats - self.centers[pids]
        if self.training:
            with torch.no_grad():
                count = 1.0 + F.one_hot(pids, len(self.centers)).sum(dim=0)
                total = torch.zeros_like(self.centers).index_add(0, pids, difference)
                self.centers += self.RATE * total / count[:, None]
        return 0.5 * difference.square().sum(dim=1).mean()
