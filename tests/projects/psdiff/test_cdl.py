# SPDX-License-Identifier: Apache-2.0
"""The layer's shortcuts give what the plain computation gives."""

import pytest
import torch
from torch import nn

from psdiff.cdl import WindowCrossAttention


@pytest.mark.parametrize("dim, heads", [(16, 1), (16, 4), (24, 3)])
def test_cross_attention_is_multi_head_attention(dim, heads):
    """With the same weights, PyTorch's own module with keys and values in full, and gradients."""
    torch.manual_seed(0)
    ours, plain = WindowCrossAttention(dim, heads), nn.MultiheadAttention(dim, heads)
    nn.init.normal_(ours.in_proj_bias)
    nn.init.normal_(ours.out_proj.bias)
    plain.load_state_dict(ours.state_dict())
    tokens, windows = torch.randn(5, dim), torch.randn(5, 9, dim)
    keys = windows.transpose(0, 1)
    expected = plain(tokens[None], keys, keys)[0][0]
    result = ours(tokens, windows)
    torch.testing.assert_close(result, expected, atol=1e-5, rtol=1e-5)

    for output in (result, expected):
        output.square().sum().backward()
    for (name, mine), theirs in zip(ours.named_parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad, atol=1e-4, rtol=1e-4, msg=name)


def test_cross_attention_without_boxes():
    assert WindowCrossAttention(8, 2)(torch.zeros(0, 8), torch.zeros(0, 9, 8)).shape == (0, 8)
