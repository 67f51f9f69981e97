# SPDX-License-Identifier: Apache-2.0
"""Losses of supervised re-ID that several teachers share.

Shape shorthand in this file: n crops of a batch, C length of a feature, I training identities.

The triplet losses compare Euclidean distances within a batch. A positive of crop i is *another*
crop of the same identity; crops without one do not count.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from psdiff.teachers.reid_net import TeacherFeatures

DescribeRows = Callable[[Tensor], Iterator[TeacherFeatures]]


class TeacherLoss(nn.Module, ABC):
    """What a teacher is trained with. Weights and buffers of it are saved in checkpoints only."""

    uses_unlabeled = False
    """Whether batches hold persons without identity as well."""

    def start_epoch(self, epoch: int, describe: DescribeRows) -> None:  # noqa: B027 - optional
        """Called before each epoch.

        Args:
            epoch: from 0.
            describe: features of training crops, given their rows, as the network in eval mode sees
                them without augmentation; batch by batch.
        """

    @abstractmethod
    def forward(self, feats: TeacherFeatures, pids: Tensor, rows: Tensor) -> dict[str, Tensor]:
        """Losses of a batch.

        Args:
            feats: of n crops. pids: (n,) int64, ``UNLABELED_PID`` only with ``uses_unlabeled``.
            rows: (n,) int64, which of all training crops these are.

        Returns:
            Scalars by name, ``loss_*``.
        """


def pairwise_distance(feats: Tensor) -> Tensor:
    """Euclidean distances (n, n) of features (n, C), with a gradient that is finite everywhere."""
    square = feats.square().sum(dim=1)
    square = square[:, None] + square[None, :] - 2.0 * feats @ feats.T
    return square.clamp(min=1e-12).sqrt()


def _pairs(pids: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Masks (n, n) of positives and negatives, and (n,) of crops that have both."""
    same = pids[:, None] == pids[None, :]
    positive = same & ~torch.eye(len(pids), dtype=torch.bool, device=pids.device)
    return positive, ~same, positive.any(dim=1) & ~same.all(dim=1)


def hardest_pairs(feats: Tensor, pids: Tensor) -> tuple[Tensor, Tensor]:
    """Distance to the farthest positive and to the nearest negative, of crops that have both.

    Args:
        feats: (n, C). pids: (n,).

    Returns:
        Two tensors of equal length, at most n.
    """
    distance = pairwise_distance(feats)
    positive, negative, usable = _pairs(pids)
    farthest = distance.masked_fill(~positive, -torch.inf).amax(dim=1)
    nearest = distance.masked_fill(~negative, torch.inf).amin(dim=1)
    return farthest[usable], nearest[usable]


def _mean(values: Tensor, feats: Tensor) -> Tensor:
    """Mean; zero with a graph if there are no values."""
    return values.mean() if len(values) else feats.sum() * 0.0


def batch_hard_triplet(feats: Tensor, pids: Tensor, margin: float) -> Tensor:
    """max(0, farthest positive - nearest negative + margin), mean over crops (Hermans 2017)."""
    farthest, nearest = hardest_pairs(feats, pids)
    return _mean(F.relu(farthest - nearest + margin), feats)


def softmax_triplet(feats: Tensor, pids: Tensor) -> Tensor:
    """-log of the softmax share of the negative distance among the hardest two, mean over crops."""
    farthest, nearest = hardest_pairs(feats, pids)
    return _mean(F.softplus(farthest - nearest), feats)


def weighted_triplet(feats: Tensor, pids: Tensor) -> Tensor:
    """Weighted regularized triplet of AGW: all pairs, the harder the heavier, and no margin.

    For each crop, its positive distances are averaged with weights softmax(distance), its negative
    ones with softmax(-distance); the loss is log(1 + exp(positive - negative)).
    """
    distance = pairwise_distance(feats)
    positive, negative, usable = _pairs(pids)
    distance, positive, negative = distance[usable], positive[usable], negative[usable]
    far = distance.masked_fill(~positive, -torch.inf).softmax(dim=1)
    near = (-distance).masked_fill(~negative, -torch.inf).softmax(dim=1)
    return _mean(F.softplus((distance * far).sum(dim=1) - (distance * near).sum(dim=1)), feats)


class CenterLoss(nn.Module):
    """Half the squared distance to the center of the own identity, mean over crops (Wen 2016).

    Centers follow the features by themselves: in each batch, the center of an identity with m crops
    moves by RATE times the sum of their differences divided by 1 + m. They are a buffer.

    Args:
        num_pids: I. dim: C.
    """

    RATE = 0.5

    def __init__(self, num_pids: int, dim: int) -> None:
        super().__init__()
        self.register_buffer("centers", torch.zeros(num_pids, dim))

    def forward(self, feats: Tensor, pids: Tensor) -> Tensor:
        difference = feats - self.centers[pids]
        loss = 0.5 * difference.square().sum(dim=1).mean()
        if self.training:
            self._move(difference.detach(), pids)
        return loss

    @torch.no_grad()
    def _move(self, difference: Tensor, pids: Tensor) -> None:
        count = torch.ones_like(self.centers[:, 0]).index_add(
            0, pids, torch.ones_like(difference[:, 0])
        )
        total = torch.zeros_like(self.centers).index_add(0, pids, difference)
        self.centers += self.RATE * total / count[:, None]
