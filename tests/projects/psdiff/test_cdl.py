# SPDX-License-Identifier: Apache-2.0
"""The layer's shortcuts give what the plain computation gives."""

import pytest
import torch
from torch import nn

from psdiff.cdl import CollaborativeDenoisingLayer, WindowCrossAttention


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


@pytest.mark.parametrize("use_dc", [False, True])
def test_the_detection_feature_depends_on_where_things_are(use_dc):
    """Shuffled cells are another window, in every row of Table IV (b)."""
    torch.manual_seed(0)
    cdl = CollaborativeDenoisingLayer(
        dim=16, num_cells=9, embed_dim=8, heads=2, use_sa=False, use_dc=use_dc, use_ca=False
    )
    nn.init.zeros_(cdl.position)
    windows, tokens, time = torch.randn(1, 4, 9, 16), torch.randn(1, 4, 8), torch.randn(1, 64)
    _, plain = cdl(windows, tokens, time)
    _, shuffled = cdl(windows[:, :, torch.randperm(9)], tokens, time)
    assert (plain - shuffled).norm() > 0.1 * plain.norm()


@pytest.mark.parametrize(("init", "depends"), [("small", False), ("xavier", True)])
def test_initial_dependence_on_the_time(init, depends):
    torch.manual_seed(0)
    cdl = CollaborativeDenoisingLayer(
        dim=16, num_cells=9, embed_dim=8, heads=2, conditioning_init=init
    )
    cdl.init_conditioning()
    windows, tokens = torch.randn(1, 4, 9, 16), torch.randn(1, 4, 8)
    early, late = (cdl(windows, tokens, torch.randn(1, 64))[0] for _ in range(2))
    assert torch.equal(early, late) is not depends
