# SPDX-License-Identifier: Apache-2.0
"""Schedule, codecs and padding of PSDiff."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from psdiff.box_diffusion import (
    SignalCodec,
    add_noise,
    boxes_to_norm,
    cosine_alphas_cumprod,
    norm_to_boxes,
    pad_ground_truth,
)


@pytest.mark.parametrize(
    "t, expected",
    [
        (124, 0.9579),
        (249, 0.8470),
        (374, 0.684227),
        (499, 0.493844),
        (624, 0.304395),
        (749, 0.144232),
        (874, 0.037472),
        (998, 2.43e-6),
        (999, 2.43e-9),
    ],
)
def test_schedule_has_the_published_values(t, expected):
    assert cosine_alphas_cumprod()[t].item() == pytest.approx(expected, rel=5e-3, abs=1e-12)


def test_add_noise_mixes_by_variance():
    x = add_noise(torch.tensor([1.0]), torch.tensor([2.0]), torch.tensor(0.36))
    assert x.item() == pytest.approx(0.6 * 1.0 + 0.8 * 2.0)


@given(st.integers(1, 2000), st.integers(1, 2000), st.integers(0, 10_000))
def test_boxes_survive_the_way_to_the_signal_and_back(height, width, seed):
    g = torch.Generator().manual_seed(seed)
    corner = torch.rand(5, 2, generator=g, dtype=torch.float64) * 0.5
    size = 0.01 + torch.rand(5, 2, generator=g, dtype=torch.float64) * 0.49
    scale = torch.tensor([width, height, width, height], dtype=torch.float64)
    boxes = torch.cat([corner, corner + size], dim=1) * scale
    codec = SignalCodec()
    signal = codec.encode_boxes(boxes_to_norm(boxes, (height, width)))
    assert signal.abs().max() <= codec.snr_box
    torch.testing.assert_close(codec.decode_boxes(signal, (height, width)), boxes)


def test_hand_computed_box_signal():
    boxes = torch.tensor([[10.0, 20.0, 30.0, 60.0]])  # centre (20, 40), size (20, 40)
    norm = boxes_to_norm(boxes, (100, 200))
    torch.testing.assert_close(norm, torch.tensor([[0.1, 0.4, 0.1, 0.4]]))
    signal = SignalCodec(snr_box=2.0).encode_boxes(norm)
    torch.testing.assert_close(signal, torch.tensor([[-1.6, -0.4, -1.6, -0.4]]))


def test_boxes_are_clamped_and_embeddings_are_not():
    codec = SignalCodec(snr_box=2.0, snr_reid=3.0)
    boxes = codec.decode_boxes(torch.tensor([[9.0, 0.0, 9.0, -9.0]]), (100, 100))
    assert boxes[0].tolist() == pytest.approx([50.0, 49.995, 150.0, 50.005])
    reid = codec.encode_reid(torch.tensor([[30.0, 40.0]]))
    torch.testing.assert_close(reid, torch.tensor([[1.8, 2.4]]))


def test_no_size_is_below_its_floor():
    boxes = norm_to_boxes(torch.tensor([[0.5, 0.5, -3.0, 0.0]]), (1000, 1000))
    assert (boxes[0, 2:] - boxes[0, :2]).tolist() == pytest.approx([0.1, 0.1], rel=1e-3)


def test_rms_norm_gives_entries_of_variance_one():
    signal = SignalCodec(snr_reid=3.0, embed_norm="rms").encode_reid(torch.randn(4, 256))
    assert signal.square().mean(dim=1).sqrt().tolist() == pytest.approx([3.0] * 4)
    assert SignalCodec(embed_norm="rms").reid_length(256) == pytest.approx(3 * math.sqrt(256))


def test_max_norm_gives_a_largest_entry_of_one():
    """Norm of Eq. 10 taken at its word: into [-1, 1], whatever the length."""
    codec = SignalCodec(snr_reid=3.0, embed_norm="max")
    signal = codec.encode_reid(torch.tensor([[0.3, -0.4], [20.0, 5.0]]))
    torch.testing.assert_close(signal, torch.tensor([[2.25, -3.0], [3.0, 0.75]]))
    lengths = codec.encode_reid(torch.randn(2000, 256)).norm(dim=1)
    assert codec.reid_length(256) == pytest.approx(lengths.median().item(), rel=0.02)


def test_wiener_gain_is_the_best_linear_guess():
    """Against the least squares slope of clean on noisy entries, measured on samples."""
    for norm, t in (("l2", 124), ("l2", 499), ("rms", 749), ("max", 249)):
        codec = SignalCodec(embed_norm=norm)
        ab = cosine_alphas_cumprod()[t].float()
        clean = codec.encode_reid(torch.randn(4000, 64))
        noisy = add_noise(clean, torch.randn_like(clean), ab)
        slope = (clean * noisy).sum() / noisy.square().sum()
        assert codec.wiener_gain(ab, 64).item() == pytest.approx(slope.item(), rel=0.03)
    assert SignalCodec().wiener_gain(torch.tensor(1.0), 64) == 1.0
    assert SignalCodec().wiener_gain(torch.tensor(0.0), 64) == 0.0


@pytest.mark.parametrize("kwargs", [{"embed_norm": "l1"}, {"snr_box": 0.0}, {"snr_reid": -1.0}])
def test_codec_refuses_wrong_settings(kwargs):
    with pytest.raises(ValueError, match="MODEL.PSDIFF"):
        SignalCodec(**kwargs)


def _ground_truth(count):
    boxes = torch.rand(count, 4) * 0.2 + 0.4
    return boxes, torch.nn.functional.normalize(torch.randn(count, 8), dim=1)


def test_repeat_padding_takes_ground_truths_in_turn():
    boxes, reid = _ground_truth(3)
    padded, embeddings = pad_ground_truth(boxes, reid, 7, "repeat")
    index = [0, 1, 2, 0, 1, 2, 0]
    torch.testing.assert_close(padded, boxes[index])
    torch.testing.assert_close(embeddings, reid[index])


@pytest.mark.parametrize("mode, real", [("noise", 3), ("mix", 10)])
def test_noise_padding_keeps_real_ones_first(mode, real):
    boxes, reid = _ground_truth(3)
    padded, embeddings = pad_ground_truth(boxes, reid, 20, mode)
    torch.testing.assert_close(padded[:real], boxes[torch.arange(real) % 3])
    torch.testing.assert_close(embeddings.norm(dim=1), torch.ones(20))
    distance = (padded[real:, None] - boxes).abs().sum(-1).min(dim=1).values
    assert (distance > 1e-6).all()
    assert (padded[:, 2:] >= 1e-4 - 1e-9).all()


@pytest.mark.parametrize("mode", ["repeat", "noise", "mix"])
@pytest.mark.parametrize("count", [0, 5, 6])
def test_padding_always_gives_n_proposals(mode, count):
    boxes, reid = _ground_truth(count)
    padded, embeddings = pad_ground_truth(boxes, reid, 5, mode)
    assert padded.shape == (5, 4) and embeddings.shape == (5, 8)


def test_more_ground_truths_than_proposals_give_a_subset():
    boxes, reid = _ground_truth(9)
    padded, embeddings = pad_ground_truth(boxes, reid, 4, "repeat")
    rows = [(boxes == row).all(dim=1).nonzero().item() for row in padded]
    assert len(set(rows)) == 4
    torch.testing.assert_close(embeddings, reid[rows])


def test_unknown_padding_is_refused():
    with pytest.raises(ValueError, match="MODEL.PSDIFF.PAD is 'zeros'"):
        pad_ground_truth(*_ground_truth(1), 4, "zeros")
