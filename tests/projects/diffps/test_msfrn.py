# SPDX-License-Identifier: Apache-2.0
"""Haar transform and MSFRN: formulas, exact inverse, literal reference, switches, counts."""

import pytest
import torch
import torch.nn.functional as F
from detectron2.config import get_cfg
from detectron2.layers import ShapeSpec
from hypothesis import given
from hypothesis import strategies as st

from diffps import add_diffps_config
from diffps.dwt import haar_dwt, haar_idwt
from diffps.msfrn import MSFRN, FrequencyRefinement, Level, LinearProjection, SubBandRefinement

LEVELS = [["a"], ["b", "c"], ["d", "e", "f", "g"]]
CHANNELS = [6, 5, 4]


def tiny_msfrn(**switches):
    return MSFRN(levels=LEVELS, in_channels=CHANNELS, dim=8, **switches)


def tiny_features(batch=2):
    shapes = {"a": (6, 2, 3), "b": (5, 4, 6), "c": (5, 4, 6)}
    shapes |= dict.fromkeys("defg", (4, 8, 12))
    return {name: torch.randn(batch, *shape) for name, shape in shapes.items()}


def parameters(module):
    return sum(p.numel() for p in module.parameters())


def test_haar_of_one_block_by_hand():
    ll, lh, hl, hh = (float(x) for x in haar_dwt(torch.tensor([[1.0, 2.0], [4.0, 8.0]])))
    assert (ll, lh, hl, hh) == (7.5, -4.5, -2.5, 1.5)


def test_names_of_the_bands():
    rows = torch.tensor([[1.0, 1.0], [0.0, 0.0]])  # top against bottom
    assert [float(x) for x in haar_dwt(rows)] == [1.0, 1.0, 0.0, 0.0]
    assert [float(x) for x in haar_dwt(rows.t())] == [1.0, 0.0, 1.0, 0.0]
    assert [float(x) for x in haar_dwt(torch.eye(2))] == [1.0, 0.0, 0.0, 1.0]


@given(st.integers(1, 9), st.integers(1, 9), st.integers(0, 100))
def test_haar_inverse_and_energy(height, width, seed):
    x = torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(seed))
    bands = haar_dwt(x)
    assert bands[0].shape == (2, 3, (height + 1) // 2, (width + 1) // 2)
    torch.testing.assert_close(haar_idwt(bands, (height, width)), x, atol=1e-6, rtol=1e-6)
    energy = sum(band.square().sum() for band in bands)
    torch.testing.assert_close(energy, x.square().sum())


def test_haar_of_an_odd_size_comes_out_even_unless_cut():
    bands = haar_dwt(torch.randn(1, 1, 5, 7))
    assert bands[0].shape[-2:] == (3, 4) and haar_idwt(bands).shape[-2:] == (6, 8)


def test_haar_inverse_is_exact_on_values_that_halve_exactly():
    x = torch.randint(-8, 8, (2, 3, 6, 4)).float()
    assert torch.equal(haar_idwt(haar_dwt(x)), x)


def test_sub_band_refinement_code_and_paper():
    band = torch.randn(2, 4, 3, 5)
    code = SubBandRefinement(4, "code").eval()
    mixed = torch.relu(code.mix[1](code.mix[0](code.depthwise(band))))
    average = mixed.mean(dim=(2, 3))
    gate = torch.sigmoid(average @ code.gate.weight[:, :, 0, 0].t() + code.gate.bias)
    torch.testing.assert_close(code(band), mixed * gate[:, :, None, None])
    assert (code(band) >= 0).all()

    paper = SubBandRefinement(4, "paper").eval()
    average = paper.depthwise(band).mean(dim=(2, 3))
    gate = torch.sigmoid(average @ paper.gate.weight[:, :, 0, 0].t() + paper.gate.bias)
    torch.testing.assert_close(paper(band), band * gate[:, :, None, None])
    assert torch.equal(paper(band).sign(), band.sign())


@pytest.mark.parametrize("mode", ["code", "paper"])
@pytest.mark.parametrize("refine_ll", [False, True])
@pytest.mark.parametrize("residual", [False, True])
def test_frequency_refinement_step_by_step(mode, refine_ll, residual):
    frm = FrequencyRefinement(4, mode, refine_ll, residual).eval()
    with torch.no_grad():
        frm.gamma.copy_(torch.tensor([0.5, -1.0, 2.0]))
    x = torch.randn(2, 4, 6, 7)
    ll, lh, hl, hh = haar_dwt(x)
    if refine_ll:
        ll = frm.refine_ll(ll)
    refinements = zip(frm.gamma, frm.refine_high, (lh, hl, hh), strict=True)
    high = [gamma * refine(band) for gamma, refine, band in refinements]
    expected = haar_idwt((ll, *high), (6, 7)) + (x if residual else 0)
    torch.testing.assert_close(frm(x), expected)


def test_with_strength_zero_only_the_low_pass_band_is_left():
    frm = FrequencyRefinement(4, "code", refine_ll=False, residual=False).eval()
    torch.nn.init.zeros_(frm.gamma)
    x = torch.randn(1, 4, 4, 4)
    blocks = F.interpolate(F.avg_pool2d(x, 2), scale_factor=2)
    torch.testing.assert_close(frm(x), blocks)


def test_network_level_by_level():
    msfrn, features = tiny_msfrn().eval(), tiny_features()
    coarse, middle, fine = msfrn.collect
    up = {"mode": "bilinear", "align_corners": False}

    a1 = F.interpolate(coarse.project(features["a"]), (4, 6), **up)
    a2 = middle.mix(torch.cat([middle.project(features[n]) for n in "bc"], dim=1)) + a1
    normalised = F.layer_norm(
        a2.permute(0, 2, 3, 1), (8,), msfrn.norm[0].weight, msfrn.norm[0].bias
    ).permute(0, 3, 1, 2)
    y2 = msfrn.refine[0](normalised)
    a3 = fine.mix(torch.cat([fine.project(features[n]) for n in "defg"], dim=1))
    a3 = a3 + F.interpolate(y2, (8, 12), **up)
    expected = msfrn.output(msfrn.refine[1](a3))
    torch.testing.assert_close(msfrn(features), expected, atol=1e-4, rtol=0)
    assert expected.shape == (2, 8, 8, 12)


def test_activations_of_a_level_share_one_projection_and_keep_their_own_statistics():
    level = Level(2, 4, 8).train()
    small, large = torch.randn(2, 4, 4, 4), 100 * torch.randn(2, 4, 4, 4)
    together = level.project(torch.cat([small, large]))[:2]
    apart = level.project(small)
    assert not torch.allclose(together, apart)
    steps = level.project[1].num_batches_tracked.item()
    level([small, large])
    assert level.project[1].num_batches_tracked.item() == steps + 2


@pytest.mark.parametrize(
    "switches",
    [{"mode": "paper", "refine_ll": True}, {"residual": False}, {"refine": False}, {}],
)
def test_every_switch_gets_gradients_everywhere(switches):
    msfrn = tiny_msfrn(**switches).train()
    msfrn(tiny_features()).square().mean().backward()
    for name, parameter in msfrn.named_parameters():
        assert parameter.grad is not None and torch.isfinite(parameter.grad).all(), name


def test_parameters_of_the_full_size():
    with torch.device("meta"):
        assert [parameters(LinearProjection(c, 1024)) for c in (320, 640, 1280)] == [
            1_391_616,
            1_719_296,
            2_374_656,
        ]
        assert parameters(FrequencyRefinement(1024, "code", False, True)) == 6_328_323
        full = MSFRN(levels=LEVELS, in_channels=[1280, 640, 320], dim=1024)
        assert parameters(full) == 25_484_294


def test_config_errors_name_their_key():
    cfg = get_cfg()
    add_diffps_config(cfg)
    shapes = {
        "u1r2_q": ShapeSpec(channels=1280, stride=32),
        "u2r1_v": ShapeSpec(channels=640, stride=16),
        "u3r0_q": ShapeSpec(channels=320, stride=8),
    }
    key = "MODEL.DIFFPS.MSFRN.LEVELS"
    for levels, words in (
        ([["u1r2_q"], ["u9r9_q"]], "u9r9_q"),
        ([["u1r2_q"], ["u2r1_v", "u3r0_q"]], "share one projection"),
        ([["u3r0_q"], ["u1r2_q"]], "coarse to fine"),
    ):
        cfg.MODEL.DIFFPS.MSFRN.LEVELS = levels
        with pytest.raises(ValueError, match=f"{key}.*{words}"):
            MSFRN(cfg, shapes)
    with pytest.raises(ValueError, match="MODEL.DIFFPS.MSFRN.FRM_MODE"):
        tiny_msfrn(mode="none")
