# SPDX-License-Identifier: Apache-2.0
"""Memory bank and loss of the supervised HHCL teacher (hybrid: centroids and hard instances).

Shape shorthand in this file:
    n: crops of a batch. D: embedding dimension. I: training identities.
    M: all training crops. U: entries of persons without identity.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from person_search.schema import UNLABELED_PID

_NO_TARGET = -100
"""Target ignored by the cross entropy."""


class UnlabeledQueue(nn.Module):
    """Circular queue with the latest embeddings of unlabeled persons, used as negatives.

    Args:
        size: Number of entries U.
        dim: Embedding dimension D.
    """

    def __init__(self, size: int, dim: int) -> None:
        super().__init__()
        self.register_buffer("slots", torch.zeros(size, dim))
        self.register_buffer("head", torch.zeros((), dtype=torch.int64))

    def entries(self) -> Tensor:
        """Returns the filled entries, at most (U, D)."""
        return self.slots[self.slots.any(dim=1)]

    def targets(self, rows: Tensor) -> Tensor:
        """Returns the target entry of each crop: none."""
        return torch.full_like(rows, _NO_TARGET)

    def fill(self, feats: Tensor) -> None:
        """Does nothing: the first batches fill the queue."""

    def update(self, feats: Tensor, rows: Tensor) -> None:
        """Replaces the oldest entries by embeddings (n, D)."""
        for feat in feats:
            self.slots[self.head] = feat
            self.head.copy_((self.head + 1) % len(self.slots))


class UnlabeledInstances(nn.Module):
    """One entry for each unlabeled crop, which is a class of its own.

    Args:
        pids: Person ids (M,) of all training crops.
        dim: Embedding dimension D.
        momentum: Share of an entry that is replaced at each update.
    """

    def __init__(self, pids: Tensor, dim: int, momentum: float) -> None:
        super().__init__()
        unlabeled = pids == UNLABELED_PID
        slot_of_row = torch.where(unlabeled, unlabeled.cumsum(0) - 1, _NO_TARGET)
        self.momentum = momentum
        self.register_buffer("slot_of_row", slot_of_row)
        self.register_buffer("slots", F.normalize(torch.randn(int(unlabeled.sum()), dim), dim=1))

    def entries(self) -> Tensor:
        """Returns all entries (U, D)."""
        return self.slots

    def targets(self, rows: Tensor) -> Tensor:
        """Returns the target entry of each crop: its own."""
        return self.slot_of_row[rows]

    def fill(self, feats: Tensor) -> None:
        """Sets all entries to embeddings (U, D), in the order of the crops."""
        self.slots.copy_(feats)

    def update(self, feats: Tensor, rows: Tensor) -> None:
        """Moves the entries of crops towards their embeddings (n, D)."""
        slots = self.slot_of_row[rows]
        moved = (1 - self.momentum) * self.slots[slots] + self.momentum * feats
        self.slots[slots] = F.normalize(moved, dim=1)


class HybridMemory(nn.Module):
    """Cross entropy against a centroid and a hardest instance per identity.

    Both banks are compared with the same batch; the loss is a weighted sum of the two cross
    entropies. Entries of unlabeled persons are additional classes of both. All banks are buffers.

    Args:
        num_pids: Number of training identities I.
        dim: Embedding dimension D.
        temperature: Temperature of both softmaxes.
        momentum: Share of a bank entry that is replaced at each update.
        mix: Weight of the hardest instances; the centroids have weight 1 - mix.
        unlabeled: Entries of persons without identity.
    """

    def __init__(
        self,
        num_pids: int,
        dim: int,
        temperature: float = 0.05,
        momentum: float = 0.8,
        mix: float = 0.5,
        unlabeled: UnlabeledQueue | UnlabeledInstances | None = None,
    ) -> None:
        super().__init__()
        self.temperature, self.momentum, self.mix = temperature, momentum, mix
        self.unlabeled = unlabeled
        self.register_buffer("centroids", F.normalize(torch.randn(num_pids, dim), dim=1))
        self.register_buffer("hard_instances", self.centroids.clone())

    def forward(self, feats: Tensor, pids: Tensor, rows: Tensor) -> Tensor:
        """Computes the loss of a batch, then updates the banks.

        Args:
            feats: Embeddings (n, D) of unit norm.
            pids: Person ids (n,) int64, ``UNLABELED_PID`` allowed.
            rows: Indices (n,) int64 of these crops among all training crops.

        Returns:
            Scalar; zero with a gradient if no crop has a target entry.
        """
        labeled = pids != UNLABELED_PID
        targets, extra = pids, feats[:0]
        if self.unlabeled is not None:
            extra = self.unlabeled.entries()
            slots = self.unlabeled.targets(rows)
            targets = torch.where(labeled | (slots < 0), pids, len(self.centroids) + slots)
        known = targets >= 0
        loss = feats.sum() * 0.0
        if known.any():
            banks = ((1 - self.mix, self.centroids), (self.mix, self.hard_instances))
            for weight, bank in banks:
                sim = feats[known] @ torch.cat([bank, extra]).T
                loss = loss + weight * F.cross_entropy(sim / self.temperature, targets[known])
        self._update(feats.detach(), pids, rows, labeled)
        return loss

    @torch.no_grad()
    def _update(self, feats: Tensor, pids: Tensor, rows: Tensor, labeled: Tensor) -> None:
        for pid in pids[labeled].unique():
            own = feats[pids == pid]
            # as in HHCL's release, hard is what differs from the hard instances so far
            hardest = own[(own @ self.hard_instances[pid]).argmin()]
            self._move(self.centroids, pid, own.mean(dim=0))
            self._move(self.hard_instances, pid, hardest)
        if self.unlabeled is not None:
            self.unlabeled.update(feats[~labeled], rows[~labeled])

    def _move(self, bank: Tensor, pid: Tensor, target: Tensor) -> None:
        bank[pid] = F.normalize((1 - self.momentum) * bank[pid] + self.momentum * target, dim=0)

    @torch.no_grad()
    def fill(self, feats: Tensor, pids: Tensor) -> None:
        """Sets all banks from the embeddings (M, D) and person ids (M,) of all training crops."""
        for pid in range(len(self.centroids)):
            own = feats[pids == pid]
            if len(own):  # identities may have no crop in a subset of the data
                self.centroids[pid] = F.normalize(own.mean(dim=0), dim=0)
                self.hard_instances[pid] = own[(own @ self.centroids[pid]).argmin()]
        if self.unlabeled is not None:
            self.unlabeled.fill(feats[pids == UNLABELED_PID])
