# SPDX-License-Identifier: Apache-2.0
"""Counted operations against formulas by hand and PyTorch's counter.

Shape shorthand: M windows of S cells with C channels, N proposals.
"""

import pytest
import torch
from psdiff_tiny import tiny_model
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from torchvision.ops import RoIAlign

from person_search.utils.flops import count_flops
from psdiff.cdl import DynamicConvolution, ProposalSelfAttention, WindowCrossAttention

N, S, C, HEADS = 6, 9, 16, 4


@pytest.fixture(params=[True, False], ids=["fast", "plain"])
def fast_path(request):
    """PyTorch's fused attention in eval mode, on and off."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(request.param)
    yield request.param
    torch.backends.mha.set_fastpath_enabled(before)


def norms(count):
    return count.by_operator.get("layer_norm", 0)


@pytest.mark.parametrize("over", ["proposals", "cells"])
def test_self_attention(over, fast_path):
    """Four projections C x C per token, then scores and weighted sum of all pairs of tokens."""
    sequences, tokens = (1, N) if over == "proposals" else (N, S)
    by_hand = sequences * 2 * (4 * tokens * C * C + 2 * tokens * tokens * C)
    count = count_flops(ProposalSelfAttention(C, HEADS, over).eval(), (torch.randn(1, N, S, C),))
    assert count.total - norms(count) == by_hand
    assert norms(count) == 5 * N * S * C
    assert not count.suspicious
    used = any("_native_multi_head_attention" in name for name in count.by_operator)
    assert used == fast_path


def test_dynamic_convolution():
    hidden, out = 3, 5
    by_hand = 2 * N * C * (C * hidden + hidden * out)  # the kernels
    by_hand += 2 * N * S * (C * hidden + hidden * out)  # their application
    by_hand += 2 * N * S * out * C  # joining the cells
    module = DynamicConvolution(C, S, hidden, out)
    count = count_flops(module, (torch.randn(N, S, C), torch.randn(N, C)))
    assert count.total - norms(count) == by_hand


def test_cross_attention():
    """Query and output C x C; each head's key and value projection C x C / heads; S scores of C
    channels and a weighted sum of as many, for each head."""
    by_hand = 2 * N * (4 * C * C + 2 * HEADS * S * C)
    module = WindowCrossAttention(C, HEADS)
    count = count_flops(module, (torch.randn(N, C), torch.randn(N, S, C)))
    assert count.total == by_hand
    tokens, windows = torch.randn(N, 1, C), torch.randn(N, S, C)
    plain = nn.MultiheadAttention(C, HEADS, batch_first=True)
    with FlopCounterMode(display=False) as counter:
        plain(tokens, windows, windows)
    assert count.total < counter.get_total_flops(), "cheaper than PyTorch's own module"


def test_roi_align():
    rois = torch.tensor([[0.0, 0, 0, 8, 8], [0.0, 2, 2, 9, 30]])
    image = torch.randn(1, C, 32, 32)
    count = count_flops(RoIAlign((7, 7), 1.0, sampling_ratio=2), (image, rois))
    assert count.total == len(rois) * C * 7 * 7 * 4 * 4 * 2
    count = count_flops(RoIAlign((7, 7), 1.0, sampling_ratio=0), (image, rois))
    assert count.total == 0 and count.suspicious == ["torchvision::roi_align"]


def test_convolutions():
    image = torch.randn(2, 4, 10, 12)
    count = count_flops(nn.Conv2d(4, 6, 3, padding=1, groups=2), (image,))
    assert count.total == 2 * (2 * 6 * 10 * 12) * (2 * 9)
    count = count_flops(nn.ConvTranspose2d(4, 6, 2, stride=2), (image,))
    assert count.total == 2 * (2 * 10 * 12) * 4 * 6 * 4


def test_operators_without_a_rule_are_listed():
    count = count_flops(nn.Sequential(nn.LSTM(4, 4)), (torch.randn(3, 4),))
    assert count.suspicious == ["aten::lstm"]
    count = count_flops(nn.GELU(), (torch.randn(3),))
    assert count.uncounted == {"aten::gelu": 1} and not count.suspicious


def test_a_whole_step_agrees_with_the_counter_of_pytorch(fast_path):
    """PyTorch counts the kernels that run, without norms and RoIAlign."""

    class Step(nn.Module):
        def __init__(self, head):
            super().__init__()
            self.head = head

        def forward(self, roi_feats, boxes, reid_signal, t):
            output = self.head.denoise(roi_feats, boxes, reid_signal, t)
            return output.boxes, output.logits, output.reid_feats

    module = Step(tiny_model().eval().head)

    boxes = torch.tensor([[2.0, 3.0, 30.0, 40.0]]).expand(1, N, 4)
    inputs = (torch.randn(1, N, 9, 16), boxes, torch.randn(1, N, 16), torch.tensor([500]))
    step = count_flops(module, inputs)
    # that counter does not know fused kernels on the CPU
    torch.backends.mha.set_fastpath_enabled(False)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter, torch.no_grad():
        module(*inputs)
    assert step.total - norms(step) == counter.get_total_flops()
