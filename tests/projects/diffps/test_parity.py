# SPDX-License-Identifier: Apache-2.0
"""Parity with what the released code computes, by references written out from its description.

docs/parity_diffps.md lists all checks and where each is made. Here are those that need a
reference of some length; tolerances are those of the specification.
"""

import pytest
import torch
import torch.nn.functional as F
from detectron2.config import get_cfg
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_proposal_generator
from detectron2.structures import Boxes, Instances
from torchvision.models.detection._utils import BoxCoder, Matcher
from torchvision.ops import box_iou

from diffps import add_diffps_config
from diffps.dgrpn import AttentionModulator
from diffps.dwt import haar_dwt, haar_idwt
from diffps.msfrn import MSFRN


# ---- 7: DGRPN ------------------------------------------------------------------------------------
def released_modulation(features, maps, beta, gamma, topk):
    """Eq. 1 to 4 as released: maximum of the batch, K full maps, one peak list per image."""
    maps = maps.clamp(min=0)
    maps = maps / (maps.max() + 1e-8)
    scores = torch.where(maps > 0.7, maps, 0.0)
    pooled = F.max_pool2d(scores[:, None], 7, stride=1, padding=3)[:, 0]
    is_peak = (scores > 0) & (scores == pooled)
    height, width = scores.shape[1:]
    x, y = torch.arange(width).float(), torch.arange(height).float()
    offset = torch.arange(-4, 5).float()
    planes = []
    for image, found in zip(scores, is_peak, strict=True):
        top = torch.where(found, image, 0.0).flatten().topk(topk)
        assert (top.values > 0).all(), "the check asks for as many peaks"
        padded, gaussians = F.pad(image, (4, 4, 4, 4)), []
        for index in top.indices.tolist():
            cy, cx = divmod(index, width)
            window = padded[cy : cy + 9, cx : cx + 9]
            s_w = (window.sum(0) * offset**2).sum().clamp(min=1e-8).sqrt().clamp(min=5.0)
            s_h = (window.sum(1) * offset**2).sum().clamp(min=1e-8).sqrt().clamp(min=5.0)
            b = beta.abs() + 1e-6
            exponent = (x - cx) ** 2 / (b * s_w**2) + ((y - cy) ** 2 / (b * s_h**2))[:, None]
            gaussians.append(torch.exp(-exponent))
        planes.append(torch.stack(gaussians).amax(dim=0))
    g = torch.stack(planes)[:, None]
    return features + gamma * g * features


def test_dgrpn_as_released_with_fifty_peaks():
    """Check 7: output and gradients of beta, gamma and F; 1e-5."""
    torch.manual_seed(0)
    maps = 0.6 * torch.rand(2, 96, 96)
    # peaks of different height, none within another's window, some at the border
    rows, columns = torch.meshgrid(torch.arange(0, 96, 11), torch.arange(0, 96, 11), indexing="ij")
    maps[:, rows, columns] = 0.8 + 0.2 * torch.rand(2, *rows.shape)
    inputs = torch.randn(2, 4, 96, 96)
    weight = torch.randn_like(inputs) / inputs.numel() ** 0.5
    ours = AttentionModulator(
        beta_init=1.3, gamma_init=0.5, mask_empty_peaks=False, norm="batch", topk=50
    )
    features = inputs.clone().requires_grad_()
    output = ours(features, maps[:, None])
    (output * weight).sum().backward()

    beta, gamma = (torch.tensor(v, requires_grad=True) for v in (1.3, 0.5))
    reference = inputs.clone().requires_grad_()
    expected = released_modulation(reference, maps, beta, gamma, topk=50)
    (expected * weight).sum().backward()
    close = {"atol": 1e-5, "rtol": 1e-5}
    torch.testing.assert_close(output, expected, **close)
    torch.testing.assert_close(features.grad, reference.grad, **close)
    torch.testing.assert_close(ours.beta.grad, beta.grad, **close)
    torch.testing.assert_close(ours.gamma.grad, gamma.grad, **close)
    assert gamma.grad.abs() > 1e-3 < beta.grad.abs()


# ---- 10: Haar transform --------------------------------------------------------------------------
def test_haar_equals_convolution_with_its_filters():
    """Check 10: a filter bank of Haar (db1), even sizes, forward and back; 1e-6."""
    x = torch.randn(2, 3, 8, 12)
    low, high = torch.tensor([1.0, 1.0]) / 2**0.5, torch.tensor([1.0, -1.0]) / 2**0.5
    # along the rows' direction first: LH is top against bottom
    filters = [torch.outer(v, h) for v, h in ((low, low), (high, low), (low, high), (high, high))]
    bank = torch.stack(filters)[:, None]
    expected = F.conv2d(x.view(6, 1, 8, 12), bank, stride=2).view(2, 3, 4, 4, 6)
    bands = haar_dwt(x)
    torch.testing.assert_close(torch.stack(bands, dim=2), expected, atol=1e-6, rtol=0)
    back = F.conv_transpose2d(expected.view(6, 4, 4, 6), bank, stride=2).view(2, 3, 8, 12)
    torch.testing.assert_close(haar_idwt(bands), back, atol=1e-6, rtol=0)
    a, b, c, d = x[..., ::2, ::2], x[..., ::2, 1::2], x[..., 1::2, ::2], x[..., 1::2, 1::2]
    by_formula = (
        (a + b + c + d) / 2,
        (a + b - c - d) / 2,
        (a - b + c - d) / 2,
        (a - b - c + d) / 2,
    )
    for band, formula in zip(bands, by_formula, strict=True):
        torch.testing.assert_close(band, formula, atol=1e-6, rtol=0)


# ---- 11: MSFRN -----------------------------------------------------------------------------------
class ReleasedMSFRN:
    """The network out of plain operations on a state dict, in eval mode."""

    def __init__(self, state):
        self.w = state

    def norm(self, x, key):
        w = self.w
        return F.batch_norm(
            x, w[key + ".running_mean"], w[key + ".running_var"], w[key + ".weight"],
            w[key + ".bias"], eps=1e-5,
        )  # fmt: skip

    def depthwise(self, x, key):
        return F.conv2d(x, self.w[key], padding=1, groups=x.shape[1])

    def lpm(self, x, key):
        x = F.relu(self.norm(F.conv2d(x, self.w[key + ".0.weight"]), key + ".1"))
        x = F.relu(self.norm(self.depthwise(x, key + ".3.weight"), key + ".4"))
        return self.norm(F.conv2d(x, self.w[key + ".6.weight"]), key + ".7")

    def srb(self, x, key):
        x = self.depthwise(x, key + ".depthwise.weight")
        r = F.relu(self.norm(F.conv2d(x, self.w[key + ".mix.0.weight"]), key + ".mix.1"))
        pooled = F.adaptive_avg_pool2d(r, 1)
        gate = F.conv2d(pooled, self.w[key + ".gate.weight"], self.w[key + ".gate.bias"])
        return r * gate.sigmoid()

    def frm(self, x, key):
        a, b, c, d = x[..., ::2, ::2], x[..., ::2, 1::2], x[..., 1::2, ::2], x[..., 1::2, 1::2]
        ll = (a + b + c + d) / 2
        high = ((a + b - c - d) / 2, (a - b + c - d) / 2, (a - b - c + d) / 2)
        gamma = self.w[key + ".gamma"]
        lh, hl, hh = (
            gamma[i] * self.srb(band, f"{key}.refine_high.{i}") for i, band in enumerate(high)
        )
        y = torch.zeros_like(x)
        y[..., ::2, ::2], y[..., ::2, 1::2] = (ll + lh + hl + hh) / 2, (ll + lh - hl - hh) / 2
        y[..., 1::2, ::2], y[..., 1::2, 1::2] = (ll - lh + hl - hh) / 2, (ll - lh - hl + hh) / 2
        return y + x

    def __call__(self, f):
        def up2(x):
            return F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)

        p = [f"collect.{i}.project" for i in range(3)]
        a2 = torch.cat([self.lpm(f[n], p[1]) for n in ("u2r1_v", "u2r2_q")], dim=1)
        a2 = F.conv2d(a2, self.w["collect.1.mix.weight"]) + up2(self.lpm(f["u1r2_q"], p[0]))
        mean, var = a2.mean(1, keepdim=True), a2.var(1, keepdim=True, unbiased=False)
        a2 = (a2 - mean) / (var + 1e-5).sqrt()
        a2 = a2 * self.w["norm.0.weight"][:, None, None] + self.w["norm.0.bias"][:, None, None]
        names = ("u3r0_q", "u3r0_k", "u3r0_v", "u3r1_k")
        a3 = torch.cat([self.lpm(f[n], p[2]) for n in names], dim=1)
        a3 = F.conv2d(a3, self.w["collect.2.mix.weight"]) + up2(self.frm(a2, "refine.0"))
        return F.conv2d(self.frm(a3, "refine.1"), self.w["output.weight"])


def test_msfrn_as_released_from_a_state_dict():
    """Check 11: LPM, SRB, FRM and the whole network with the config's defaults; 1e-4."""
    torch.manual_seed(0)
    cfg = get_cfg()
    add_diffps_config(cfg)
    cfg.MODEL.DIFFPS.MSFRN.DIM = 32
    channels = {"u1r2_q": (16, 32), "u2r1_v": (12, 16), "u2r2_q": (12, 16)}
    channels |= dict.fromkeys(("u3r0_q", "u3r0_k", "u3r0_v", "u3r1_k"), (8, 8))
    shapes = {name: ShapeSpec(channels=c, stride=s) for name, (c, s) in channels.items()}
    features = {n: torch.randn(2, c, 128 // s, 192 // s) for n, (c, s) in channels.items()}
    msfrn = MSFRN(cfg, shapes)
    for name, value in msfrn.state_dict().items():
        if value.is_floating_point() and value.ndim == 1:  # norms, gammas: not at their start
            value.uniform_(0.5, 1.5) if "mean" not in name else value.normal_(std=0.2)
    msfrn.eval()
    released = ReleasedMSFRN(msfrn.state_dict())
    with torch.no_grad():
        for got, expected in (
            (msfrn.collect[0].project(features["u1r2_q"]),
             released.lpm(features["u1r2_q"], "collect.0.project")),
            (msfrn(features), released(features)),
        ):  # fmt: skip
            torch.testing.assert_close(got, expected, atol=1e-4, rtol=0)


# ---- 16: anchors ---------------------------------------------------------------------------------
def test_labels_of_anchors_on_the_full_grid():
    """Check 16: 384,000 anchors of a 160 x 160 grid, matched as torchvision does; exact."""
    cfg = get_cfg()
    add_diffps_config(cfg)
    cfg.MODEL.PROPOSAL_GENERATOR.NAME = "DGRPN"
    cfg.MODEL.ANCHOR_GENERATOR.NAME = "RoundedAnchorGenerator"
    cfg.MODEL.ANCHOR_GENERATOR.SIZES = [[32, 64, 128, 256, 512]]
    cfg.MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS = [[0.5, 1.0, 2.0]]
    cfg.MODEL.ANCHOR_GENERATOR.OFFSET = 0.0
    cfg.MODEL.RPN.IN_FEATURES = ["guided"]
    cfg.MODEL.RPN.BATCH_SIZE_PER_IMAGE = 10**6  # all are sampled
    shapes = {"guided": ShapeSpec(channels=4, stride=8), "attn": ShapeSpec(channels=1, stride=8)}
    rpn = build_proposal_generator(cfg, shapes)
    anchors = rpn.anchor_generator([torch.zeros(1, 4, 160, 160)])[0]
    gt = torch.tensor([[300.0, 200, 380, 420], [305, 210, 372, 400], [1000, 900, 1270, 1275],
                       [20, 20, 27, 33], [700.3, 711.7, 733.2, 800.1]])  # fmt: skip
    target = Instances((1280, 1280), gt_boxes=Boxes(gt))
    matcher = Matcher(0.7, 0.3, allow_low_quality_matches=True)
    expected = matcher(box_iou(gt, anchors.tensor))
    (labels,), (boxes,) = rpn.label_and_sample_anchors([anchors], [target])
    classes = (expected >= 0).to(labels.dtype)
    classes[expected == Matcher.BETWEEN_THRESHOLDS] = -1
    positive, negative = classes == 1, classes == 0
    assert len(labels) == 384_000 and torch.equal(labels == 1, positive)
    assert positive.sum() >= len(gt)
    # half of the sample may be positive, the rest is negative: all of them fit
    assert torch.equal(labels == 0, negative)
    assert torch.equal(boxes[positive], gt[expected[positive]])
    encoded = BoxCoder((1.0, 1.0, 1.0, 1.0)).encode_single(gt[expected], anchors.tensor)
    ours = rpn.box2box_transform.get_deltas(anchors.tensor, gt[expected])
    torch.testing.assert_close(ours[positive], encoded[positive], atol=1e-5, rtol=1e-5)


# ---- 5: token ids of the real vocabulary ---------------------------------------------------------
def test_words_are_one_token_of_the_real_vocabulary():
    """Check 5: ids of CLIP's vocabulary, which no folder of ours holds; exact."""
    open_clip = pytest.importorskip(
        "open_clip", reason="pip install open_clip_torch, which brings the vocabulary of CLIP"
    )
    ids = {"person": 2533, "head": 1375, "shirts": 5803, "pants": 5003, "shoes": 4079}
    tokenizer = open_clip.SimpleTokenizer()
    assert {word: tokenizer.encode(word) for word in ids} == {w: [i] for w, i in ids.items()}
