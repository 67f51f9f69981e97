# SPDX-License-Identifier: Apache-2.0
"""Online instance matching (OIM): an identity classifier whose weights are stored embeddings.

"Joint Detection and Identification Feature Learning for Person Search", CVPR 2017.

Shape shorthand in this file:
    n: persons in the batch of this process. m: persons in the batches of all processes.
    L: identities. Q: slots of the queue. D: length of an embedding.
Naming: ``lut`` (L, D) holds one embedding per labeled identity, ``cq`` (Q, D) the latest embeddings
of unlabeled persons. ``cq_head`` is the slot that is written next.
"""

import torch
import torch.nn.functional as F
from detectron2.utils import comm
from torch import Tensor, nn

from person_search.schema import UNLABELED_PID


class OIMLoss(nn.Module):
    """Computes the cross-entropy of embeddings against table and queue, then stores them.

    An embedding x of identity y is scored against every stored embedding, ``scale * x . v``, and
    should select row y of the table. Unlabeled persons contribute no loss, but their embeddings
    enter the queue, where they are negatives for all others.

    The memory is updated in the forward pass after the loss: with all labeled persons in order,
    ``lut[y] = unit(momentum * lut[y] + (1 - momentum) * x)``, and with all unlabeled ones in order.
    All computations are in float32, also with AMP. An embedding with NaN or Inf is not stored,
    since AMP skips its step.

    With several processes, each one updates its copy of the memory with the embeddings of all, in
    the order of the ranks. The loss is normalized so that the mean of the gradients over the
    processes is the gradient of one process with all images. Every process must therefore call
    the loss once per iteration, even without persons.

    Args:
        num_pids: Number of identities L, ``MODEL.REID.NUM_PIDS``.
        embed_dim: Length of an embedding D.
        queue_size: Number of slots Q; 0 for no queue.
        momentum: Share of the old row in an updated one, in [0, 1).
        scale: Factor of the cosine similarity, the inverse of a softmax temperature.
    """

    identity_buffers = ("lut", "cq", "cq_head")
    """See :class:`person_search.interface.HasIdentityBuffers`."""

    def __init__(
        self,
        num_pids: int,
        embed_dim: int,
        queue_size: int,
        momentum: float = 0.5,
        scale: float = 30.0,
    ) -> None:
        super().__init__()
        if num_pids < 1 or queue_size < 0 or not 0 <= momentum < 1:
            raise ValueError(
                f"OIM of {num_pids} identities (MODEL.REID.NUM_PIDS), queue of {queue_size}, "
                f"momentum {momentum}: at least 1, at least 0 and within [0, 1) are needed."
            )
        self.momentum, self.scale = momentum, scale
        self.register_buffer("lut", torch.zeros(num_pids, embed_dim))
        self.register_buffer("cq", torch.zeros(queue_size, embed_dim))
        self.register_buffer("cq_head", torch.zeros((), dtype=torch.int64))

    def extra_repr(self) -> str:
        """Returns the settings for ``repr``."""
        return (
            f"num_pids={len(self.lut)}, embed_dim={self.lut.shape[1]}, queue_size={len(self.cq)}, "
            f"momentum={self.momentum}, scale={self.scale}"
        )

    def forward(self, reid_feats: Tensor, pids: Tensor) -> Tensor:
        """Computes the loss of a batch; in training mode, updates the memory.

        Args:
            reid_feats: Embeddings of unit length, (n, D).
            pids: Identities 0 .. L-1 or ``UNLABELED_PID``, (n,) int64. Background is not allowed.

        Returns:
            Scalar, the mean over the labeled persons. Zero (with zero gradient) without any.

        Raises:
            ValueError: If the table has no row for an identity.
        """
        if len(pids) and (int(pids.max()) >= len(self.lut) or int(pids.min()) < UNLABELED_PID):
            wrong = sorted({p for p in pids.tolist() if not UNLABELED_PID <= p < len(self.lut)})
            raise ValueError(
                f"OIM got the identities {wrong[:10]}, but its look-up table has {len(self.lut)} "
                f"rows (MODEL.REID.NUM_PIDS). Allowed are 0 .. {len(self.lut) - 1}, and "
                f"{UNLABELED_PID} for unlabeled. NUM_PIDS 0 takes the number from the training set."
            )
        with torch.autocast(reid_feats.device.type, enabled=False):
            reid_feats = reid_feats.float()
            labeled = pids != UNLABELED_PID
            # A copy: the update below must not change the graph of this loss.
            memory = torch.cat([self.lut, self.cq])
            logits = self.scale * reid_feats[labeled] @ memory.t()
            total = F.cross_entropy(logits, pids[labeled], reduction="sum")
            loss = total / _share_of_processes(labeled.sum())
            # Without a labeled person, this keeps all parameters in the graph, as DDP requires.
            loss = loss + 0.0 * torch.nan_to_num(reid_feats).sum()
        if self.training:
            self.update(reid_feats.detach(), pids)
        return loss

    @torch.no_grad()
    def update(self, reid_feats: Tensor, pids: Tensor) -> None:
        """Stores the embeddings (n, D) and identities (n,) of all processes."""
        reid_feats, pids = _gather_rows(reid_feats), _gather_rows(pids)
        finite = torch.isfinite(reid_feats).all(dim=1)
        reid_feats, pids = reid_feats[finite], pids[finite]
        labeled = pids != UNLABELED_PID
        self._update_lut(reid_feats[labeled], pids[labeled])
        self._update_queue(reid_feats[~labeled])

    def _update_lut(self, reid_feats: Tensor, pids: Tensor) -> None:
        """Moves the rows ``pids`` towards the embeddings, one after the other.

        Persons of different identities change different rows, so the first embeddings of all
        identities are written at once, then the second ones, and so on.
        """
        turns = _occurrence(pids)
        for turn in range(int(turns.max()) + 1 if len(turns) else 0):
            now = turns == turn
            rows = pids[now]
            mixed = self.momentum * self.lut[rows] + (1 - self.momentum) * reid_feats[now]
            self.lut[rows] = F.normalize(mixed, dim=1)

    def _update_queue(self, reid_feats: Tensor) -> None:
        """Writes the embeddings into consecutive slots of the ring buffer."""
        size = len(self.cq)
        if size == 0 or len(reid_feats) == 0:
            return
        slots = (self.cq_head + torch.arange(len(reid_feats), device=self.cq.device)) % size
        # A slot written twice keeps the later embedding.
        self.cq[slots[-size:]] = reid_feats[-size:]
        self.cq_head.copy_((self.cq_head + len(reid_feats)) % size)

    def _load_from_state_dict(self, state_dict, prefix, *args) -> None:
        error_msgs = args[-1]
        kept = dict(state_dict)
        for name, what, key in (
            ("lut", "identities", "MODEL.REID.NUM_PIDS"),
            ("cq", "queue slots", "the queue size"),
        ):
            ours, theirs = getattr(self, name), state_dict.get(prefix + name)
            if theirs is not None and theirs.shape != ours.shape:
                error_msgs.append(
                    f"{prefix}{name} of the weights has {_size(theirs)}, that of the model "
                    f"{_size(ours)} ({what} x embedding): they are from another training set or "
                    f"config. Set {key} and MODEL.REID.EMBED_DIM to the values of that training, "
                    "or remove the key to start with an empty memory."
                )
                kept[prefix + name] = ours
        super()._load_from_state_dict(kept, prefix, *args)


def _size(tensor: Tensor) -> str:
    return " x ".join(map(str, tensor.shape))


def _occurrence(values: Tensor) -> Tensor:
    """Counts the equal entries before each entry: [7, 3, 7, 7] -> [0, 0, 1, 2]."""
    order = torch.argsort(values, stable=True)
    ranked = values[order]
    position = torch.arange(len(values), device=values.device)
    # Start of the run of equal values that each sorted entry belongs to.
    start = torch.searchsorted(ranked, ranked)
    result = torch.empty_like(position)
    result[order] = position - start
    return result


def _share_of_processes(count: Tensor) -> Tensor:
    """Returns the count of all processes, at least 1, divided by their number; float32."""
    count = count.float()
    world_size = comm.get_world_size()
    if world_size > 1:
        torch.distributed.all_reduce(count)
    return count.clamp(min=1.0) / world_size


def _gather_rows(rows: Tensor) -> Tensor:
    """Gathers rows (n, ...) of all processes in the order of the ranks: (m, ...)."""
    world_size = comm.get_world_size()
    if world_size == 1:
        return rows
    count = torch.tensor([len(rows)], device=rows.device)
    counts = [torch.zeros_like(count) for _ in range(world_size)]
    torch.distributed.all_gather(counts, count)
    counts = [int(c) for c in counts]
    # all_gather requires equal sizes
    padded = rows.new_zeros(max(counts), *rows.shape[1:])
    padded[: len(rows)] = rows
    gathered = [torch.zeros_like(padded) for _ in range(world_size)]
    torch.distributed.all_gather(gathered, padded)
    return torch.cat([part[:c] for part, c in zip(gathered, counts, strict=True)])
