# SPDX-License-Identifier: Apache-2.0
"""OIM in two processes, importable by child processes."""

from pathlib import Path

import torch
import torch.nn.functional as F
from detectron2.utils import comm
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from person_search.modeling import OIMLoss

INPUT_DIM, EMBED_DIM, NUM_PIDS, QUEUE_SIZE = 5, 8, 4, 6
# Identities of every step, for the first and for the second process. The queue of six slots
# overflows; some steps have no person, or no labeled person, in one process or both.
STEPS = [
    ([0, 1, 0, -1, 0], [1, 1, -1, -1, 3]),
    ([-1, -1], [2, 0]),
    ([], [3, 3, -1]),
    ([-1], []),
    ([-1, -1, -1, -1], [-1, -1, -1, -1, -1, -1, -1, 2]),
]


class Embedder(nn.Module):
    """A linear layer to unit length and its OIM loss."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(INPUT_DIM, EMBED_DIM)
        self.oim = OIMLoss(NUM_PIDS, EMBED_DIM, QUEUE_SIZE)

    def forward(self, x: Tensor, pids: Tensor) -> Tensor:
        return self.oim(F.normalize(self.linear(x), dim=1), pids)


def batches(step: int) -> list[tuple[Tensor, Tensor]]:
    """The inputs and identities of both processes in one step."""
    generator = torch.Generator().manual_seed(step)
    return [
        (torch.randn(len(pids), INPUT_DIM, generator=generator), torch.tensor(pids).long())
        for pids in STEPS[step]
    ]


def train(wrap, inputs) -> dict[str, list]:
    """Runs all steps with SGD; returns the values to compare, step by step."""
    torch.manual_seed(0)
    model = wrap(Embedder())
    embedder = getattr(model, "module", model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    record: dict[str, list] = {"loss": [], "grad": [], "lut": [], "cq": [], "cq_head": []}
    for step in range(len(STEPS)):
        optimizer.zero_grad()
        loss = model(*inputs(step))
        loss.backward()
        optimizer.step()
        record["loss"].append(loss.detach())
        record["grad"].append(embedder.linear.weight.grad.clone())
        for name, buffer in embedder.oim.named_buffers():
            record[name].append(buffer.clone())
    return record


def train_alone() -> dict[str, list]:
    """One process with the images of both."""

    def inputs(step: int) -> tuple[Tensor, Tensor]:
        xs, pids = zip(*batches(step), strict=True)
        return torch.cat(xs), torch.cat(pids)

    return train(lambda model: model, inputs)


def train_together(folder: str) -> None:
    """One of two processes; writes its record to ``folder``."""
    torch.set_num_threads(1)
    rank = comm.get_rank()
    record = train(
        lambda model: DistributedDataParallel(model, broadcast_buffers=False),
        lambda step: batches(step)[rank],
    )
    torch.save(record, Path(folder) / f"record{rank}.pt")
