# SPDX-License-Identifier: Apache-2.0
"""Online instance matching (OIM): an identity classifier whose weights are remembered embeddings.

"Joint Detection and Identification Feature Learning for Person Search", CVPR 2017.

Shape shorthand in this file:
    n: persons of this process's batch. m: of all processes. L: identities. Q: slots of the queue.
    D: length of an embedding.
Naming: ``lut`` (L, D) holds one embedding per labelled identity, ``cq`` (Q, D) the latest
embeddings of unlabelled persons; ``cq_head`` is the slot that is written next.
"""

import torch
import torch.nn.functional as F
from detectron2.utils import comm
from torch import Tensor, nn

from person_search.schema import UNLABELED_PID


class OIMLoss(nn.Module):
    """Cross-entropy of embeddings against the look-up table and the queue; then remembers them.

    An embedding x of identity y is scored against every remembered embedding, ``scale * x . v``,
    and should pick row y of the table. Unlabelled persons give no loss, but their embeddings enter
    the queue, where they serve all others as negatives.

    The memory is updated in the forward pass, after the loss, with all labelled persons in order,
    ``lut[y] = unit(momentum * lut[y] + (1 - momentum) * x)``, and all unlabelled ones in turn.
    Everything is computed in float32, under AMP too, and an embedding with NaN or Inf is not
    remembered (AMP throws away the step it came from).

    With several processes each one updates its copy of the memory with the embeddings of all, in
    the order of the ranks, and the loss is normalised so that the mean of the gradients over the
    processes is the gradient of one process with all images. Every process must therefore call it
    once per iteration, also with no person at all.

    Args:
        num_pids: L, ``MODEL.REID.NUM_PIDS``.
        embed_dim: D.
        queue_size: Q; 0 for no queue.
        momentum: share of the old row in an updated one, in [0, 1).
        scale: factor of the cosine similarity, the inverse of a softmax temperature.
    """

    identity_buffers = ("lut", "cq", "cq_head")
    """Buffers that mean something only together with the training set; see AtomicCheckpointer."""

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
        return (
            f"num_pids={len(self.lut)}, embed_dim={self.lut.shape[1]}, queue_size={len(self.cq)}, "
            f"momentum={self.momentum}, scale={self.scale}"
        )

    def forward(self, reid_feats: Tensor, pids: Tensor) -> Tensor:
        """Loss of a batch; in training mode the memory is updated.

        Args:
            reid_feats: (n, D) of unit length.
            pids: (n,) int64, identity 0 .. L-1 or ``UNLABELED_PID``. No background.

        Returns:
            Scalar, mean over the labelled persons; zero (with zero gradient) without any.

        Raises:
            ValueError: an identity that the table has no row for.
        """
        self._check(pids)
        with torch.autocast(reid_feats.device.type, enabled=False):
            reid_feats = reid_feats.float()
            labeled = pids != UNLABELED_PID
            # Copies: the update below must not reach into the graph of this loss.
            memory = torch.cat([self.lut, self.cq])
            logits = self.scale * reid_feats[labeled] @ memory.t()
            total = F.cross_entropy(logits, pids[labeled], reduction="sum")
            loss = total / _share_of_processes(labeled.sum())
            # Without a labelled person this keeps the graph whole, as DDP wants it.
            loss = loss + 0.0 * torch.nan_to_num(reid_feats).sum()
        if self.training:
            self.update(reid_feats.detach(), pids)
        return loss

    @torch.no_grad()
    def update(self, reid_feats: Tensor, pids: Tensor) -> None:
        """Remembers the embeddings of all processes: (n, D) and (n,) as in ``forward``."""
        reid_feats, pids = _gather_rows(reid_feats), _gather_rows(pids)
        finite = torch.isfinite(reid_feats).all(dim=1)
        reid_feats, pids = reid_feats[finite], pids[finite]
        labeled = pids != UNLABELED_PID
        self._update_lut(reid_feats[labeled], pids[labeled])
        self._update_queue(reid_feats[~labeled])

    def _update_lut(self, reid_feats: Tensor, pids: Tensor) -> None:
        """Moves the rows ``pids`` towards the embeddings, one after the other.

        Persons of different identities do not touch each other's row, so everybody's first
        embedding is written in one go, then everybody's second, and so on.
        """
        turns = _occurrence(pids)
        for turn in range(int(turns.max()) + 1 if len(turns) else 0):
            now = turns == turn
            rows = pids[now]
            mixed = self.momentum * self.lut[rows] + (1 - self.momentum) * reid_feats[now]
            self.lut[rows] = F.normalize(mixed, dim=1)

    def _update_queue(self, reid_feats: Tensor) -> None:
        """Writes the embeddings into consecutive slots, round and round."""
        size = len(self.cq)
        if size == 0 or len(reid_feats) == 0:
            return
        slots = (self.cq_head + torch.arange(len(reid_feats), device=self.cq.device)) % size
        # A slot written twice keeps the later embedding.
        self.cq[slots[-size:]] = reid_feats[-size:]
        self.cq_head.copy_((self.cq_head + len(reid_feats)) % size)

    def _check(self, pids: Tensor) -> None:
        if len(pids) and (int(pids.max()) >= len(self.lut) or int(pids.min()) < UNLABELED_PID):
            wrong = sorted({p for p in pids.tolist() if not UNLABELED_PID <= p < len(self.lut)})
            raise ValueError(
                f"OIM got the identities {wrong[:10]}, but its look-up table has {len(self.lut)} "
                f"rows (MODEL.REID.NUM_PIDS): 0 .. {len(self.lut) - 1}, or {UNLABELED_PID} for "
                "unlabelled, are possible. NUM_PIDS 0 takes the number from the training set."
            )

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
                    f"{_size(ours)} ({what} x embedding): they come from another training set or "
                    f"config. Set {key} and MODEL.REID.EMBED_DIM to the values of that training, "
                    "or leave the key out to start with an empty memory."
                )
                kept[prefix + name] = ours
        super()._load_from_state_dict(kept, prefix, *args)


def _size(tensor: Tensor) -> str:
    return " x ".join(map(str, tensor.shape))


def _occurrence(values: Tensor) -> Tensor:
    """For each entry of (n,), how many equal ones stand before it: [7, 3, 7, 7] -> [0, 0, 1, 2]."""
    order = torch.argsort(values, stable=True)
    ranked = values[order]
    position = torch.arange(len(values), device=values.device)
    # Where the run of equal values begins that each sorted entry belongs to.
    start = torch.searchsorted(ranked, ranked)
    result = torch.empty_like(position)
    result[order] = position - start
    return result


def _share_of_processes(count: Tensor) -> Tensor:
    """The count of all processes together, at least one, divided by their number; float32."""
    count = count.float()
    world_size = comm.get_world_size()
    if world_size > 1:
        torch.distributed.all_reduce(count)
    return count.clamp(min=1.0) / world_size


def _gather_rows(rows: Tensor) -> Tensor:
    """Rows (n, ...) of all processes, in the order of the ranks: (m, ...)."""
    world_size = comm.get_world_size()
    if world_size == 1:
        return rows
    count = torch.tensor([len(rows)], device=rows.device)
    counts = [torch.zeros_like(count) for _ in range(world_size)]
    torch.distributed.all_gather(counts, count)
    counts = [int(c) for c in counts]
    # all_gather wants equal sizes.
    padded = rows.new_zeros(max(counts), *rows.shape[1:])
    padded[: len(rows)] = rows
    gathered = [torch.zeros_like(padded) for _ in range(world_size)]
    torch.distributed.all_gather(gathered, padded)
    return torch.cat([part[:c] for part, c in zip(gathered, counts, strict=True)])
