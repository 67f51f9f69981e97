# SPDX-License-Identifier: Apache-2.0
"""DetAggregator, DGRPN modulation and anchors: literal references, hand-computed cases, defects."""

import math

import pytest
import torch
import torch.nn.functional as F
from detectron2.config import get_cfg
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_proposal_generator
from detectron2.structures import Boxes
from detectron2.utils.events import EventStorage
from hypothesis import given
from hypothesis import strategies as st
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList as TorchvisionImageList

from diffps import add_diffps_config
from diffps.det_aggregator import DetAggregator, feature_shape
from diffps.dgrpn import AttentionModulator, RoundedAnchorGenerator


def literal_gaussians(attention, beta, tau, delta, peak_window, neighbor_window, peaks):
    """Eq. 1 to 3 for one image, cell by cell; ``peaks`` are the (x, y) to use."""
    scores = attention.clamp(min=0) / (attention.max() + 1e-8)
    scores = torch.where(scores > tau, scores, torch.zeros(()))
    height, width = scores.shape
    if peaks is None:
        radius = peak_window // 2
        peaks = []
        for y in range(height):
            for x in range(width):
                window = scores[
                    max(y - radius, 0) : y + radius + 1, max(x - radius, 0) : x + radius + 1
                ]
                if scores[y, x] > 0 and scores[y, x] == window.max():
                    peaks.append((x, y))
    radius, b, planes = neighbor_window // 2, beta.abs() + 1e-6, []
    for cx, cy in peaks:
        var_x = var_y = 1e-30
        for y in range(max(cy - radius, 0), min(cy + radius + 1, height)):
            for x in range(max(cx - radius, 0), min(cx + radius + 1, width)):
                var_x += (x - cx) ** 2 * scores[y, x].item()
                var_y += (y - cy) ** 2 * scores[y, x].item()
        s_w, s_h = (max(delta, math.sqrt(max(v, 1e-8))) for v in (var_x, var_y))
        gx = (torch.arange(width) - cx).float().square() / (b * s_w**2)
        gy = (torch.arange(height) - cy).float().square() / (b * s_h**2)
        planes.append(torch.exp(-gx[None, :] - gy[:, None]))
    if not planes:
        return scores * 0.0 * beta, peaks
    return torch.stack(planes).amax(dim=0), peaks


def peaked_map(seed, height=20, width=24):
    """A smooth random map with several separate peaks, from 0 to 1."""
    noise = torch.randn(1, 1, height, width, generator=torch.Generator().manual_seed(seed))
    x = F.avg_pool2d(noise, 3, 1, 1)[0, 0]
    return (x - x.min()) / (x.max() - x.min())


@pytest.mark.parametrize("topk", [1, 50])
def test_modulation_and_gradients_equal_the_literal_equations(topk):
    attention = torch.stack([peaked_map(0), peaked_map(1)])
    modulator = AttentionModulator(tau=0.5, delta=1.5, gamma_init=0.5, beta_init=1.3, topk=topk)
    features = torch.randn(2, 3, 20, 24, requires_grad=True)
    found, valid = modulator.peaks(modulator.scores(attention))
    output = modulator(features, attention[:, None])
    weight = torch.randn_like(output)
    (output * weight).sum().backward()

    beta = torch.tensor(1.3, requires_grad=True)
    gamma = torch.tensor(0.5, requires_grad=True)
    reference_features = features.detach().clone().requires_grad_()
    planes = []
    for image in range(2):
        kept = [tuple(p) for p in found[image, valid[image]].tolist()] if topk == 1 else None
        plane, peaks = literal_gaussians(attention[image], beta, 0.5, 1.5, 7, 9, kept)
        assert set(peaks) == {tuple(p) for p in found[image, valid[image]].tolist()}
        planes.append(plane)
    expected = reference_features + gamma * torch.stack(planes)[:, None] * reference_features
    (expected * weight).sum().backward()
    close = {"atol": 1e-4, "rtol": 1e-5}
    torch.testing.assert_close(output, expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(features.grad, reference_features.grad, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(modulator.beta.grad, beta.grad, **close)
    torch.testing.assert_close(modulator.gamma.grad, gamma.grad, **close)


def test_closed_form():
    """Two cells above the threshold, one peak: both extents fall back to delta = 5."""
    attention = torch.zeros(1, 1, 160, 160)
    attention[0, 0, 80, 80], attention[0, 0, 80, 81] = 1.0, 0.8
    modulator = AttentionModulator(topk=1)
    scores = modulator.scores(attention[:, 0])
    peaks, valid = modulator.peaks(scores)
    assert peaks.tolist() == [[[80, 80]]] and valid.all()
    assert [float(s) for s in modulator.extents(scores, peaks)] == [5.0, 5.0]
    g = modulator.gaussians(attention)[0, 0]
    assert g[80, 80].item() == pytest.approx(1.0, abs=1e-5)
    assert g[80, 85].item() == pytest.approx(math.exp(-1), abs=1e-5)
    assert g[85, 80].item() == pytest.approx(math.exp(-1), abs=1e-5)


def test_widest_extent():
    """A window full of ones: sum of 9 (x - cx)^2 over 9 columns is 540 (specification: 23.24)."""
    modulator = AttentionModulator()
    s_w, s_h = modulator.extents(torch.ones(1, 20, 20), torch.tensor([[[10, 10], [0, 10]]]))
    assert s_w[0, 0].item() == pytest.approx(math.sqrt(540)) == s_h[0, 0].item()
    # at the left border the window loses its left half in x, and half of the weights in y
    assert s_w[0, 1].item() == pytest.approx(math.sqrt(9 * 30))
    assert s_h[0, 1].item() == pytest.approx(math.sqrt(5 * 60))


def test_a_map_of_zeros_changes_nothing_unless_as_released():
    features, attention = torch.randn(1, 2, 8, 8), torch.zeros(1, 1, 8, 8)
    ours = AttentionModulator(gamma_init=0.7)
    assert torch.equal(ours(features, attention), features)
    released = AttentionModulator(gamma_init=0.7, mask_empty_peaks=False, topk=3)
    assert released.gaussians(attention).max() == 1.0
    # the fillers are the first cells in reading order
    peaks, _ = released.peaks(attention[:, 0])
    assert peaks[0].tolist() == [[0, 0], [1, 0], [2, 0]]


def test_gradients_are_finite_where_an_image_has_no_peak():
    modulator = AttentionModulator(gamma_init=0.7)
    attention = torch.stack([torch.zeros(16, 16), peaked_map(0, 16, 16)])[:, None]
    modulator(torch.randn(2, 2, 16, 16), attention).sum().backward()
    assert torch.isfinite(modulator.beta.grad) and modulator.beta.grad != 0


def test_norm_over_image_or_batch():
    attention = torch.zeros(2, 1, 8, 8)
    attention[0, 0, 2, 2], attention[1, 0, 5, 5] = 1.0, 0.5
    by_image = AttentionModulator(norm="image").gaussians(attention)
    by_batch = AttentionModulator(norm="batch").gaussians(attention)
    assert by_image[1].max() == 1.0 and by_batch[1].max() == 0.0
    assert torch.equal(by_image[0], by_batch[0])


@given(st.integers(0, 1000), st.integers(3, 12), st.integers(3, 12))
def test_gaussians_are_one_at_peaks_and_within_zero_and_one(seed, height, width):
    modulator = AttentionModulator()
    attention = torch.rand(2, 1, height, width, generator=torch.Generator().manual_seed(seed))
    g = modulator.gaussians(attention)
    peaks, valid = modulator.peaks(modulator.scores(attention[:, 0]))
    assert g.shape == attention.shape and (g >= 0).all() and (g <= 1).all()
    for image, (cells, used) in enumerate(zip(peaks, valid, strict=True)):
        for x, y in cells[used].tolist():
            assert g[image, 0, y, x] == 1.0


def test_the_dtype_of_features_is_kept():
    features = torch.randn(1, 2, 8, 8).bfloat16()
    output = AttentionModulator(gamma_init=0.5)(features, peaked_map(0, 8, 8)[None, None])
    assert output.dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("setting", "key"),
    [({"norm": "all"}, "NORM"), ({"peak_window": 4}, "PEAK_WINDOW"), ({"topk": 0}, "TOPK")],
)
def test_invalid_settings_name_their_key(setting, key):
    with pytest.raises(ValueError, match=f"MODEL.DIFFPS.DGRPN.{key}"):
        AttentionModulator(**setting)


def test_det_aggregator():
    aggregator = DetAggregator(in_channels=3, dim=4).eval()
    pointwise, norm1, _, depthwise, norm2 = aggregator
    for norm in (norm1, norm2):
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.5, 2.0)
    x = torch.randn(2, 3, 5, 6, requires_grad=True)
    output = aggregator(x)

    def normalised(y, norm):
        scale = norm.weight / (norm.running_var + norm.eps).sqrt()
        return (y - norm.running_mean[:, None, None]) * scale[:, None, None] + norm.bias.view(
            -1, 1, 1
        )

    y = x.detach().clone().requires_grad_()
    hidden = torch.einsum("oc,bchw->bohw", pointwise.weight[:, :, 0, 0], y)
    hidden = normalised(hidden, norm1).clamp(min=0)
    padded = F.pad(hidden, (1, 1, 1, 1))
    expected = sum(
        padded[:, :, i : i + 5, j : j + 6] * depthwise.weight[:, 0, i, j].view(-1, 1, 1)
        for i in range(3)
        for j in range(3)
    )
    expected = normalised(expected, norm2)
    torch.testing.assert_close(output, expected, atol=1e-5, rtol=0)
    assert (output < 0).any(), "there is no ReLU at the end"
    output.square().sum().backward()
    expected.square().sum().backward()
    torch.testing.assert_close(x.grad, y.grad, atol=1e-5, rtol=1e-5)


def test_parameters_of_the_full_size():
    with torch.device("meta"):
        aggregator = DetAggregator(in_channels=320, dim=1024)
    assert sum(p.numel() for p in aggregator.parameters()) == 340_992
    assert sum(p.numel() for p in AttentionModulator().parameters()) == 2


def test_unknown_feature_is_named():
    with pytest.raises(ValueError, match="SOME.KEY is 'u9'.*'u3r0_k'"):
        feature_shape({"u3r0_k": ShapeSpec(channels=1, stride=8)}, "u9", "SOME.KEY")


def test_anchors_are_those_of_torchvision():
    sizes, ratios = (32, 64, 128, 256, 512), (0.5, 1.0, 2.0)
    ours = RoundedAnchorGenerator(
        sizes=[list(sizes)], aspect_ratios=[list(ratios)], strides=[8], offset=0.0
    )([torch.zeros(1, 1, 160, 160)])[0].tensor
    theirs = AnchorGenerator((sizes,), (ratios,))(
        TorchvisionImageList(torch.zeros(1, 1, 1280, 1280), [(1280, 1280)]),
        [torch.zeros(1, 1, 160, 160)],
    )[0]
    assert len(ours) == 384_000
    # per cell: sizes first here, ratios first there
    theirs = theirs.view(-1, 3, 5, 4).transpose(1, 2).reshape(-1, 4)
    assert torch.equal(ours, theirs)


def dgrpn_cfg():
    cfg = get_cfg()
    add_diffps_config(cfg)
    cfg.MODEL.PROPOSAL_GENERATOR.NAME = "DGRPN"
    cfg.MODEL.RPN.IN_FEATURES = ["guided"]
    cfg.MODEL.RPN.SMOOTH_L1_BETA = 1 / 9
    cfg.MODEL.RPN.BATCH_SIZE_PER_IMAGE = 8
    return cfg


SHAPES = {"guided": ShapeSpec(channels=6, stride=8), "attn": ShapeSpec(channels=1, stride=8)}


def test_rpn_losses_are_those_of_the_specification():
    """Mean cross-entropy over sampled anchors; smooth L1 with beta 1/9 over their number."""
    rpn = build_proposal_generator(dgrpn_cfg(), SHAPES)
    anchors = rpn.anchor_generator([torch.zeros(1, 6, 2, 3)])[0]
    labels = torch.full((2, len(anchors)), -1, dtype=torch.int8)
    labels[0, :4], labels[0, 4:8] = 1, 0
    labels[1, 3:5], labels[1, 10:16] = 1, 0  # 8 sampled in either image
    logits, deltas = torch.randn(2, len(anchors)), torch.randn(2, len(anchors), 4)
    gt = [Boxes(anchors.tensor + 3 * torch.randn(len(anchors), 4)).tensor for _ in range(2)]
    with EventStorage():
        losses = rpn.losses([anchors], [logits], list(labels), [deltas], gt)

    target = torch.stack([rpn.box2box_transform.get_deltas(anchors.tensor, g) for g in gt])
    sampled, positive = labels >= 0, labels == 1
    bce = F.binary_cross_entropy_with_logits(logits[sampled], labels[sampled].float())
    difference = (deltas - target)[positive].abs()
    smooth = torch.where(difference < 1 / 9, 4.5 * difference**2, difference - 1 / 18).sum() / 16
    torch.testing.assert_close(losses["loss_rpn_cls"], bce, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(losses["loss_rpn_loc"], smooth, atol=1e-5, rtol=1e-5)


def test_rpn_head_of_the_full_size():
    cfg = dgrpn_cfg()
    shapes = SHAPES | {"guided": ShapeSpec(channels=1024, stride=8)}
    cfg.MODEL.ANCHOR_GENERATOR.SIZES = [[32, 64, 128, 256, 512]]
    with torch.device("meta"):
        rpn = build_proposal_generator(cfg, shapes)
    assert sum(p.numel() for p in rpn.rpn_head.parameters()) == 9_515_083


def test_without_guidance_it_is_a_plain_rpn():
    cfg = dgrpn_cfg()
    cfg.MODEL.DIFFPS.DGRPN.ENABLED = False
    rpn = build_proposal_generator(cfg, {"guided": SHAPES["guided"]})
    x = torch.randn(1, 6, 4, 4)
    assert rpn.guide(x, None) is x and not any("modulator" in n for n, _ in rpn.named_parameters())


def test_guidance_needs_a_map_of_its_stride():
    with pytest.raises(ValueError, match="DGRPN.ENABLED.*ATTN.LAYERS"):
        build_proposal_generator(dgrpn_cfg(), {"guided": SHAPES["guided"]})
    with pytest.raises(ValueError, match="ATTN.STRIDE is 16.*stride 8"):
        coarse = {"attn": ShapeSpec(channels=1, stride=16)}
        build_proposal_generator(dgrpn_cfg(), SHAPES | coarse)
