# SPDX-License-Identifier: Apache-2.0
"""Memory bank and loss of the supervised HHCL teacher (hybrid: centroids and hard instances).

Shape shorthand in this file:
    n: crops of a batch. D: length of an embedding. I: training identities. U: queue slots.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from person_search.schema import UNLABELED_PID


class HybridMemory(nn.Module):
    """Softmax over a centroid per identity and over a hardest instance per identity.

    Both banks are compared with the same batch; the loss is the mean of the two cross entropies.
    Unlabelled persons join as further negatives of both: their newest embeddings stand in a
    circular queue. All banks are buffers: saved, resumed, moved with the module.

    Args:
        num_pids: I. dim: D.
        temperature: of both softmaxes. momentum: share of a bank entry replaced at each visit.
        queue_size: U, unlabelled embeddings kept; 0 for none.
    """

    def __init__(
        self,
        num_pids: int,
        dim: int,
        temperature: float = 0.05,
        momentum: float = 0.2,
        queue_size: int = 0,
    ) -> None:
        super().__init__()
        self.temperature, self.momentum = temperature, momentum
        self.register_buffer("centroids", F.normalize(torch.randn(num_pids, dim), dim=1))
        self.register_buffer("hard_instances", self.centroids.clone())
        self.register_buffer("queue", torch.zeros(queue_size, dim))
        self.register_buffer("queue_head", torch.zeros((), dtype=torch.int64))

    def forward(self, feats: Tensor, pids: Tensor) -> Tensor:
        """Loss of a batch; updates the banks afterwards.

        Args:
            feats: (n, D) of unit length. pids: (n,) int64, ``UNLABELED_PID`` allowed.

        Returns:
            Scalar; zero (with a graph) if no crop is labelled.
        """
        labeled = pids != UNLABELED_PID
        loss = feats.sum() * 0.0
        if labeled.any():
            queue = self.queue[self.queue.any(dim=1)]
            for bank in (self.centroids, self.hard_instances):
                sim = feats[labeled] @ torch.cat([bank, queue]).T
                loss = loss + 0.5 * F.cross_entropy(sim / self.temperature, pids[labeled])
        self._update(feats.detach(), pids, labeled)
        return loss

    @torch.no_grad()
    def _update(self, feats: Tensor, pids: Tensor, labeled: Tensor) -> None:
        for pid in pids[labeled].unique():
            own = feats[pids == pid]
            hardest = own[(own @ self.centroids[pid]).argmin()]
            self._move(self.centroids, pid, own.mean(dim=0))
            self._move(self.hard_instances, pid, hardest)
        for feat in feats[~labeled] if len(self.queue) else ():
            self.queue[self.queue_head] = feat
            self.queue_head.copy_((self.queue_head + 1) % len(self.queue))

    def _move(self, bank: Tensor, pid: Tensor, target: Tensor) -> None:
        bank[pid] = F.normalize((1 - self.momentum) * bank[pid] + self.momentum * target, dim=0)
