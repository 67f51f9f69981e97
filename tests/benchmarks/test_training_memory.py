# SPDX-License-Identifier: Apache-2.0
"""The calculated memory of a training step against known values."""

import pytest
import torch
from detectron2.structures import Boxes
from psdiff_tiny import tiny_model
from torch import nn
from training_memory import (
    FinestLevelPooler,
    LiveMemory,
    psdiff_training_memory,
    simulate_training,
)

N = 64


def mlp():
    return nn.Sequential(nn.Linear(N, N, bias=False), nn.ReLU(), nn.Linear(N, N, bias=False))


def mlp_step(module):
    return module(torch.empty(N, N)).sum()


def test_memory_of_a_perceptron():
    """All matrices are N x N, of u bytes. Two weights and the input are there from the start.

    The worst moment is in the backward pass, at the ReLU: alive are the weights (2), the input,
    the hidden features, the gradient of the second weight, and the gradients of the hidden
    features after and before the ReLU: 7 u. The loss and its gradient are single numbers.
    """
    unit = N * N * 4
    memory = simulate_training(mlp(), mlp_step)
    assert memory.parameters == memory.gradients == 2 * unit
    assert memory.optimizer == 4 * unit
    peak = memory.total - memory.optimizer
    assert peak == pytest.approx(7 * unit, abs=64)


def test_memory_of_a_perceptron_in_mixed_precision():
    """The same moment: weights in both precisions (2 + 1), the input (1 and, cast, 1/2), then
    hidden features, gradient of the second weight and the two of the hidden features, 1/2 each."""
    unit = N * N * 4
    memory = simulate_training(mlp(), mlp_step, amp=True)
    peak = memory.total - memory.optimizer
    assert 5.5 * unit <= peak <= 6.7 * unit
    assert memory.activations < simulate_training(mlp(), mlp_step).activations + unit


def test_tensors_without_data_take_what_real_ones_take():
    """The same network with and without data, some of it frozen."""
    torch.manual_seed(0)
    module = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, stride=2),
        nn.ReLU(inplace=True), nn.Flatten(2), nn.LayerNorm(49), nn.Linear(49, 16), nn.GELU(),
    )  # fmt: skip
    module[0].requires_grad_(False)
    memory = simulate_training(module, lambda m: m(torch.randn(4, 3, 16, 16)).square().sum())
    with LiveMemory() as live:
        for tensor in (*module.parameters(), *module.buffers()):
            live.add(tensor)
        module(torch.randn(4, 3, 16, 16)).square().sum().backward()
    assert memory.total - memory.optimizer == live.peak
    assert memory.gradients == sum(p.numel() * 4 for p in module.parameters() if p.requires_grad)


def test_live_memory_forgets_what_is_freed():
    with LiveMemory() as live:
        x = torch.zeros(100)
        y = x[10:20]  # a view does not allocate
        assert live.now == 400
        del x
        assert live.now == 400, "the view holds it"
        del y
        z = torch.zeros(50)
        assert live.now == 200 and live.peak == 400
    del z
    assert live.now == 0


def test_layer_norm_keeps_float32_in_mixed_precision():
    """As on a GPU: float32 in and out, so that its input is held in both precisions."""
    seen = []

    class Probe(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear, self.norm = nn.Linear(4, 4), nn.LayerNorm(4)

        def forward(self, x):
            x = self.linear(x)
            y = self.norm(x)
            seen.extend([x.dtype, y.dtype, (x @ x.T).softmax(dim=-1).dtype])
            return y.sum()

    simulate_training(Probe(), lambda m: m(torch.empty(2, 4)), amp=True)
    assert seen == [torch.float16, torch.float32, torch.float32]
    seen.clear()
    with torch.autocast("cpu", torch.bfloat16):
        Probe()(torch.zeros(2, 4))
    assert seen[1:] == [torch.bfloat16] * 2, "afterwards autocast is as it was"


def test_memory_of_the_model_grows_with_images_and_shrinks_with_amp():
    model = tiny_model().train()
    pooler, weights = model.head.pooler, [p.clone() for p in model.parameters()]
    size = (96, 128)
    one, two = (psdiff_training_memory(model, n, size, amp=False) for n in (1, 2))
    assert 1.7 < two.activations / one.activations < 2.1
    half = psdiff_training_memory(model, 2, size, amp=True)
    assert half.activations < two.activations
    assert model.head.pooler is pooler
    for before, after in zip(weights, model.parameters(), strict=True):
        assert after.grad is None and torch.equal(before, after)


def test_stand_in_for_the_pooler_has_its_shapes():
    model = tiny_model()
    features = [torch.randn(2, 16, 12, 16), torch.randn(2, 16, 6, 8)]
    boxes = torch.tensor([[2.0, 3.0, 30.0, 40.0]])
    inputs = features, [Boxes(boxes), Boxes(boxes)]
    stand_in = FinestLevelPooler(model.head.pooler)
    assert stand_in(*inputs).shape == model.head.pooler(*inputs).shape
