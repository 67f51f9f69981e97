# SPDX-License-Identifier: Apache-2.0
"""SFAN: the one-map form against the sum over parts, the saddle of the release, its repair."""

import pytest
import torch
import torch.nn.functional as F

from diffps.sfan import SFAN

N, C, H, W, K = 3, 6, 4, 2, 4


def make(**switches):
    text = torch.randn(K, C)
    sfan = SFAN(text_vectors=text, channels=C, **switches)
    with torch.no_grad():
        sfan.part_weights.normal_()
    return sfan, text


def as_released(**switches):
    return make(**{"norm": "part", "temperature": 1.0, "learn_temperature": False, **switches})


def sum_over_parts(x, text, sfan, norm, temperature, skip):
    """Eq. 6 with a copy of X per part."""
    cosine = torch.stack(
        [F.cosine_similarity(x, t.view(1, -1, 1, 1).expand_as(x), dim=1) for t in text], dim=1
    )
    s = cosine / temperature
    if norm == "part":
        maps = s.softmax(dim=1)
    elif norm == "sigmoid":
        maps = 1 / (1 + torch.exp(-s))
    else:
        e = torch.exp(s - s.amax(dim=(2, 3), keepdim=True))
        maps = e / e.mean(dim=(2, 3), keepdim=True)
    per_part = maps[:, :, None] * x[:, None]  # (N, K, C, h, w)
    semantic = (sfan.part_weights.softmax(0).view(1, -1, 1, 1, 1) * per_part).sum(dim=1)
    return x + sfan.alpha * (semantic - x) if skip else semantic


@pytest.mark.parametrize("norm", ["part", "spatial", "sigmoid"])
@pytest.mark.parametrize("skip", [True, False])
@pytest.mark.parametrize("temperature", [1.0, 0.07])
def test_equals_the_sum_over_parts(norm, skip, temperature):
    sfan, text = make(norm=norm, skip=skip, temperature=temperature, alpha_init=0.37)
    x = torch.randn(N, C, H, W)
    expected = sum_over_parts(x, text, sfan, norm, temperature, skip)
    torch.testing.assert_close(sfan(x), expected, atol=1e-5, rtol=1e-5)


def test_alpha_zero_gives_the_input_bit_for_bit():
    sfan, _ = as_released(alpha_init=0.0)
    x = torch.randn(N, C, H, W)
    assert torch.equal(sfan(x), x)


def test_release_starts_where_part_weights_have_no_gradient_and_the_repair_does_not():
    x = torch.randn(N, C, H, W)
    released, _ = as_released(alpha_init=0.0)
    released(x).square().sum().backward()
    assert (released.part_weights.grad == 0).all()
    # and the map is nearly flat: softmax of cosines over parts, without temperature
    m = released.part_maps(x)
    assert m.std(dim=(2, 3)).max() < 0.15

    repaired, _ = make()
    repaired(x).square().sum().backward()
    assert (repaired.part_weights.grad != 0).any()
    assert repaired.part_maps(x).std(dim=(2, 3)).max() > 0.5


def test_maps_are_normalized():
    x = torch.randn(N, C, H, W)
    over_parts = as_released()[0].part_maps(x)
    torch.testing.assert_close(over_parts.sum(dim=1), torch.ones(N, H, W))
    over_cells = make(norm="spatial")[0].part_maps(x)
    torch.testing.assert_close(over_cells.mean(dim=(2, 3)), torch.ones(N, K))


def test_parameters():
    def names(sfan):
        return {name: p.numel() for name, p in sfan.named_parameters()}

    assert names(as_released()[0]) == {"part_weights": K, "alpha": 1}
    assert names(make(skip=False, learn_temperature=False)[0]) == {"part_weights": K}
    assert "log_temperature" in names(make()[0])
    # vectors of the diffusion model are not ours to save
    assert "text_vectors" not in make()[0].state_dict()


def test_different_widths_need_a_projection():
    with pytest.raises(ValueError, match=r"8 channels \(MODEL.DIFFPS.MSFRN.DIM\).*6.*PROJECT"):
        SFAN(text_vectors=torch.randn(K, C), channels=8)
    sfan = SFAN(text_vectors=torch.randn(K, C), channels=8, project=True)
    x = torch.randn(N, 8, H, W)
    sfan(x).sum().backward()
    assert sfan(x).shape == x.shape and sfan.project.weight.grad.any()


def test_no_rois_half_precision_and_dead_cells():
    sfan, _ = make()
    assert sfan(torch.zeros(0, C, H, W)).shape == (0, C, H, W)
    assert sfan(torch.randn(N, C, H, W).bfloat16()).dtype == torch.bfloat16
    x = torch.zeros(N, C, H, W, requires_grad=True)
    sfan(x).sum().backward()
    assert torch.isfinite(x.grad).all()


def test_invalid_settings_name_their_key():
    for switch in ({"norm": "cells"}, {"temperature": 0.0}):
        key = next(iter(switch)).upper()
        with pytest.raises(ValueError, match=f"MODEL.DIFFPS.SFAN.{key}"):
            make(**switch)
    with pytest.raises(ValueError, match="MODEL.DIFFPS.SFAN.PARTS is empty"):
        SFAN(text_vectors=torch.zeros(0, C), channels=C)
