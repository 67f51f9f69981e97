# SPDX-License-Identifier: Apache-2.0
"""Gradient accumulation."""

import pytest
import torch
from detectron2.engine import SimpleTrainer
from detectron2.utils.events import EventStorage
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from person_search.engine.train_step import StepTrainer, _split


class MeanLoss(nn.Module):
    """Its loss is linear in the images: mean over them of w * x."""

    def __init__(self, as_dict: bool = True):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([1.0, -2.0]))
        self.as_dict, self.sizes = as_dict, []

    def forward(self, batch: list[torch.Tensor]):
        self.sizes.append(len(batch))
        loss = torch.stack([(self.weight * x).sum() for x in batch]).mean()
        return {"loss_a": loss, "loss_b": 2 * loss} if self.as_dict else loss


def run(trainer_class, steps: int = 3, as_dict: bool = True, **kwargs):
    torch.manual_seed(0)
    model = MeanLoss(as_dict)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    data = [[torch.randn(2) for _ in range(5)] for _ in range(steps)]
    trainer = trainer_class(model, data, optimizer, **kwargs)
    losses = []
    with EventStorage() as storage:
        for trainer.iter in range(steps):
            storage.iter = trainer.iter
            trainer.run_step()
            losses.append(storage.latest()["total_loss"][0])
    return model, losses


@pytest.mark.parametrize("as_dict", [True, False])
@pytest.mark.parametrize("parts", [2, 3, 5, 9])
def test_parts_equal_the_whole_batch_for_a_linear_loss(parts: int, as_dict: bool) -> None:
    whole, whole_losses = run(SimpleTrainer, as_dict=as_dict)
    model, losses = run(StepTrainer, as_dict=as_dict, parts=parts)
    torch.testing.assert_close(model.weight, whole.weight)
    assert losses == pytest.approx(whole_losses)
    assert len(model.sizes) == 3 * min(parts, 5) and sum(model.sizes) == 15


@given(st.integers(1, 20), st.integers(1, 8))
def test_split_is_even_and_complete(size: int, parts: int) -> None:
    chunks = _split(list(range(size)), parts)
    assert [x for chunk in chunks for x in chunk] == list(range(size))
    lengths = [len(chunk) for chunk in chunks]
    assert len(chunks) == min(parts, size) and min(lengths) > 0
    assert max(lengths) - min(lengths) <= 1
