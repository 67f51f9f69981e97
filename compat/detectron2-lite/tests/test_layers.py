# SPDX-License-Identifier: Apache-2.0
"""Layers compared with PyTorch and with literal formulas."""

import math

import pytest
import torch
from detectron2.layers import (
    CNNBlockBase,
    Conv2d,
    DeformConv,
    FrozenBatchNorm2d,
    ROIAlign,
    batched_nms,
    cat,
    ciou_loss,
    cross_entropy,
    diou_loss,
    get_norm,
    nonzero_tuple,
)
from torch import nn


def trained_norm(channels=3):
    norm = nn.BatchNorm2d(channels)
    for value in norm.state_dict().values():
        if value.dim():
            value.copy_(torch.rand(channels) + 0.5)
    return norm.eval()


def test_frozen_norm_computes_what_it_was_made_from():
    norm, x = trained_norm(), torch.randn(2, 3, 4, 4)
    frozen = FrozenBatchNorm2d.convert_frozen_batchnorm(nn.Sequential(norm))
    assert list(frozen.parameters()) == []
    for inputs in (x, x.clone().requires_grad_()):
        torch.testing.assert_close(frozen(inputs), norm(x))
    thawed = FrozenBatchNorm2d.convert_frozenbatchnorm2d_to_batchnorm2d(frozen).eval()
    torch.testing.assert_close(thawed(x), norm(x))
    assert len(list(thawed.parameters())) == 2


def test_fresh_frozen_norm_changes_nothing():
    x = torch.randn(2, 3, 4, 4)
    torch.testing.assert_close(FrozenBatchNorm2d(3)(x), x)


@pytest.mark.parametrize(("version", "fills"), [(None, True), (1, True), (2, False), (3, False)])
def test_frozen_norm_takes_old_checkpoints(version, fills):
    state = nn.Module().state_dict()
    state.update(weight=torch.full((3,), 2.0), bias=torch.ones(3))
    state._metadata = {"": {"version": version}}
    norm = FrozenBatchNorm2d(3)
    missing = norm.load_state_dict(state, strict=False).missing_keys
    assert (missing == []) == fills
    assert norm.weight.tolist() == [2, 2, 2]
    assert norm.running_var.tolist() == pytest.approx([1 if fills else 1 - 1e-5] * 3, abs=1e-7)


def test_frozen_block_does_not_learn():
    class Block(CNNBlockBase):
        def __init__(self):
            super().__init__(3, 4, 2)
            self.conv = Conv2d(3, 4, 3, stride=2, norm=get_norm("BN", 4))

    block = Block()
    assert block.freeze() is block
    assert not any(p.requires_grad for p in block.parameters())
    assert isinstance(block.conv.norm, FrozenBatchNorm2d)


def test_conv_applies_norm_then_activation():
    norm = trained_norm(2)
    conv = Conv2d(3, 2, 1, norm=norm, activation=torch.relu)
    plain = nn.functional.conv2d(x := torch.randn(1, 3, 2, 2), conv.weight, conv.bias)
    torch.testing.assert_close(conv(x), torch.relu(norm(plain)))
    assert conv(torch.zeros(0, 3, 2, 2)).shape == (0, 2, 2, 2)


def test_empty_batch_is_refused_under_sync_norm():
    conv = Conv2d(3, 4, 1, norm=nn.SyncBatchNorm(4))
    with pytest.raises(AssertionError, match="empty"):
        conv(torch.zeros(0, 3, 5, 5))


def test_get_norm():
    assert get_norm("", 4) is None and get_norm(None, 4) is None
    assert get_norm(lambda channels: channels + 1, 4) == 5
    with pytest.raises(KeyError):
        get_norm("NoSuchNorm", 4)


def test_layer_norm_is_over_channels():
    x = torch.randn(2, 3, 4, 5)
    expected = nn.functional.layer_norm(x.permute(0, 2, 3, 1), (3,), eps=1e-6).permute(0, 3, 1, 2)
    torch.testing.assert_close(get_norm("LN", 3)(x), expected)


def test_roi_align_of_a_ramp_gives_cell_centers():
    ramp = torch.arange(8.0).expand(1, 1, 8, 8)  # the value at x is x - 0.5 in pixel corners
    boxes = torch.tensor([[0, 2.0, 2.0, 6.0, 6.0]])
    pooled = ROIAlign((2, 2), 1.0, 0, aligned=True)(ramp, boxes)
    assert pooled[0, 0].tolist() == [[2.5, 4.5], [2.5, 4.5]]
    pooled = ROIAlign((2, 2), 1.0, 0, aligned=False)(ramp, boxes)
    assert pooled[0, 0].tolist() == [[3.0, 5.0], [3.0, 5.0]]
    assert ROIAlign((2, 2), 1.0, 0)(ramp, boxes[:0]).shape == (0, 1, 2, 2)


def test_nms_works_within_groups():
    boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 9], [0, 0, 10, 8]])
    scores = torch.tensor([0.5, 0.9, 0.8])
    assert batched_nms(boxes, scores, torch.tensor([0, 0, 0]), 0.5).tolist() == [1]
    assert batched_nms(boxes, scores, torch.tensor([0, 0, 1]), 0.5).tolist() == [1, 2]


def test_box_losses_by_hand():
    box, shifted = torch.tensor([[0.0, 0, 2, 2]]), torch.tensor([[1.0, 0, 3, 2]])
    # IoU 1/3; centers 1 apart; the box around both is 3 by 2
    assert diou_loss(box, shifted).tolist() == pytest.approx([1 - 1 / 3 + 1 / 13])
    assert ciou_loss(box, shifted).tolist() == pytest.approx([1 - 1 / 3 + 1 / 13])  # same shape
    flat = torch.tensor([[0.0, 0, 2, 1]])
    v = 4 / math.pi**2 * (math.atan(2) - math.atan(1)) ** 2
    expected = 0.5 + 0.25 / 8 + v * v / (0.5 + v)
    assert ciou_loss(box, flat).tolist() == pytest.approx([expected], rel=1e-5)


@pytest.mark.parametrize("loss", [diou_loss, ciou_loss])
def test_loss_of_nothing_has_a_gradient(loss):
    boxes = torch.zeros(0, 4, requires_grad=True)
    loss(boxes, boxes.detach(), "mean").backward()
    assert boxes.grad.shape == (0, 4)


def test_cross_entropy_of_nothing_is_zero():
    logits = torch.zeros(0, 4, requires_grad=True)
    value = cross_entropy(logits, torch.zeros(0, dtype=torch.int64))
    value.backward()
    assert value.item() == 0
    logits, target = torch.randn(3, 4), torch.tensor([0, 1, 3])
    assert cross_entropy(logits, target) == nn.functional.cross_entropy(logits, target)


def test_small_wrappers():
    single = torch.ones(2)
    assert cat([single]) is single
    assert cat([single, single]).shape == (4,)
    assert [i.tolist() for i in nonzero_tuple(torch.tensor([0, 3, 0, 1]))] == [[1, 3]]


def test_absent_layers_say_what_to_install():
    with pytest.raises(ImportError, match=r"DeformConv is not in detectron2-lite; install"):
        DeformConv(3, 4)
    with pytest.raises(ImportError, match="nms_rotated is not in detectron2-lite; install"):
        from detectron2.layers import nms_rotated  # noqa: F401
    with pytest.raises(ImportError, match="NaiveSyncBatchNorm is not in detectron2-lite"):
        from detectron2.layers.batch_norm import NaiveSyncBatchNorm  # noqa: F401
