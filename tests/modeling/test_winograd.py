# SPDX-License-Identifier: Apache-2.0
"""Winograd's convolution against the definition of a convolution."""

import pytest
import torch
from detectron2.layers import Conv2d
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from person_search.modeling import winograd
from person_search.modeling.winograd import (
    WinogradConv2d,
    is_suitable,
    transform_weight,
    use_winograd,
)


@settings(max_examples=25, deadline=None)
@given(
    batch=st.integers(1, 3),
    channels=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    size=st.tuples(st.integers(1, 11), st.integers(1, 11)),
    strip=st.integers(1, 12),
    tile=st.sampled_from([2, 4]),
    seed=st.integers(0, 99),
)
def test_equals_the_direct_convolution(batch, channels, size, strip, tile, seed):
    """All sizes, odd ones and single cells too, in strips of any height."""
    torch.manual_seed(seed)
    conv = nn.Conv2d(*channels, 3, padding=1).double().requires_grad_(False)
    x = torch.randn(batch, channels[0], *size, dtype=torch.float64)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(winograd, "_STRIP_TILES", strip)
        got = WinogradConv2d(conv, tile)(x)
    torch.testing.assert_close(got, conv(x), atol=1e-12, rtol=1e-12)


def test_tile_by_the_width():
    tiles = [
        WinogradConv2d(nn.Conv2d(c, d, 3, padding=1).requires_grad_(False)).tile
        for c, d in ((128, 128), (1280, 640), (640, 1280), (1280, 1024))
    ]
    assert tiles == [4, 4, 4, 2]


def test_a_tile_by_the_formula():
    """One channel, one tile: A^T [(G g G^T) * (B^T d B)] A with matrices written out."""
    g, d = torch.arange(9.0).view(3, 3) - 3, torch.tensor([[1.0, -2.0], [4.0, 3.0]])
    conv = nn.Conv2d(1, 1, 3, padding=1, bias=False).requires_grad_(False)
    conv.weight.copy_(g)
    bt = torch.tensor([[1.0, 0, -1, 0], [0, 1, 1, 0], [0, -1, 1, 0], [0, 1, 0, -1]])
    at = torch.tensor([[1.0, 1, 1, 0], [0, 1, -1, -1]])
    weight = torch.tensor([[1.0, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]])
    transformed = transform_weight(conv.weight, 2).view(4, 4)
    assert torch.equal(transformed, weight @ g @ weight.T)
    expected = at @ (transformed * (bt @ F.pad(d, (1, 1, 1, 1)) @ bt.T)) @ at.T
    assert torch.equal(WinogradConv2d(conv, 2)(d[None, None])[0, 0], expected)
    # the upper left output is d * g with g's center on it: 1*1 -2*2 +4*4 +3*5 = 28
    assert expected[0, 0] == 28


@pytest.mark.parametrize(("tile", "most"), [(2, 6e-7), (4, 4e-6)])
def test_accuracy_of_float32(tile, most):
    torch.manual_seed(0)
    conv = nn.Conv2d(256, 128, 3, padding=1).requires_grad_(False)
    x = torch.randn(1, 256, 24, 20)
    exact = F.conv2d(x.double(), conv.weight.double(), conv.bias.double(), padding=1)
    fast = WinogradConv2d(conv, tile)(x)
    assert most / 4 < (fast - exact).norm() / exact.norm() < most


@pytest.mark.parametrize("tile", [2, 4])
def test_every_layout_of_the_input_gives_the_same_bits(tile):
    conv = nn.Conv2d(8, 4, 3, padding=1).requires_grad_(False)
    fast, x = WinogradConv2d(conv, tile), torch.randn(2, 8, 6, 10)
    assert torch.equal(fast(x), fast(x.to(memory_format=torch.channels_last)))
    assert fast(x).is_contiguous(memory_format=torch.channels_last)


def test_only_suitable_convolutions_are_replaced():
    other = [
        nn.Conv2d(8, 8, 1),
        nn.Conv2d(8, 8, 3),
        nn.Conv2d(8, 8, 3, padding=1, stride=2),
        nn.Conv2d(8, 8, 3, padding=1, groups=2),
        nn.Conv2d(8, 8, 3, padding=2, dilation=2),
        nn.Conv2d(8, 8, 3, padding=1, padding_mode="reflect"),
        nn.Conv2d(4, 8, 3, padding=1),
        nn.Conv2d(8, 8, 3, padding=1, dtype=torch.float16),
        nn.Conv2d(8, 8, 3, padding=1, device="meta"),
        nn.Linear(8, 8),
    ]
    assert not any(is_suitable(module, 8) for module in other)
    net = nn.Sequential(*other, nn.Sequential(nn.Conv2d(8, 8, 3, padding=1)))
    assert use_winograd(net, 8) == 1
    assert isinstance(net[-1][0], WinogradConv2d) and list(net[:-1]) == other


def test_layers_that_are_called_from_a_list_are_replaced():
    """Detectron2's FPN registers its layers, and calls them from lists."""
    fpn = nn.Module()
    fpn.add_module("output2", Conv2d(8, 8, 3, padding=1, bias=False))
    fpn.add_module("output3", Conv2d(8, 8, 3, padding=1, norm=nn.BatchNorm2d(8)))
    fpn.convs, fpn.names = [fpn.output3, fpn.output2], ["p3", "p2"]
    assert use_winograd(fpn, 8) == 1, "a norm inside of the layer is kept"
    assert isinstance(fpn.output2, WinogradConv2d) and fpn.convs == [fpn.output3, fpn.output2]
    assert fpn.names == ["p3", "p2"]
