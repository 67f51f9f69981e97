# SPDX-License-Identifier: Apache-2.0
"""Times of the denoising steps, and diffusers' DDIM against its closed form."""

import math

import pytest
import torch

from psdiff.box_diffusion import SignalCodec, cosine_alphas_cumprod
from psdiff.sampler import DualSampler, build_scheduler, sampling_times


@pytest.mark.parametrize(
    "steps, expected",
    [
        (1, [999]),
        (2, [999, 499]),
        (4, [999, 749, 499, 249]),
        (8, [999, 874, 749, 624, 499, 374, 249, 124]),
    ],
)
def test_times(steps, expected):
    assert sampling_times(steps) == expected
    assert build_scheduler("ddim", steps).timesteps.tolist() == expected


@pytest.mark.parametrize("steps", [0, -1, 1001])
def test_impossible_numbers_of_steps_are_refused(steps):
    with pytest.raises(ValueError, match=f"MODEL.PSDIFF.STEPS is {steps}"):
        build_scheduler("ddim", steps)


def test_unknown_sampler_and_eta_are_refused():
    with pytest.raises(ValueError, match="MODEL.PSDIFF.SAMPLER is 'euler'"):
        build_scheduler("euler", 4)
    with pytest.raises(ValueError, match="MODEL.PSDIFF.ETA is 1.5"):
        DualSampler(SignalCodec(), "ddim", 2, eta=1.5)


def closed_form_ddim(x, x_start, t, t_next, eta, noise):
    """DDIM on x_0 predictions, literally."""
    alphas = cosine_alphas_cumprod()
    ab = alphas[t].item()
    ab_next = alphas[t_next].item() if t_next >= 0 else 1.0
    eps = (x / math.sqrt(ab) - x_start) / math.sqrt(1 / ab - 1)
    sigma = eta * math.sqrt((1 - ab / ab_next) * (1 - ab_next) / (1 - ab))
    direction = math.sqrt(max(1 - ab_next - sigma**2, 0.0)) * eps
    return math.sqrt(ab_next) * x_start + direction + sigma * noise


@pytest.mark.parametrize(
    "t, t_next, expected", [(999, 499, 1.062799), (874, 749, 1.041545), (249, 124, 0.772845)]
)
def test_published_check_values(t, t_next, expected):
    assert closed_form_ddim(1.0, 0.5, t, t_next, 0.0, 0.0) == pytest.approx(expected, abs=2e-5)


@pytest.mark.parametrize("steps", [1, 2, 4, 8])
@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_step_equals_the_closed_form(steps, eta):
    codec = SignalCodec()
    sampler = DualSampler(codec, "ddim", steps, eta)
    torch.manual_seed(0)
    for t, t_next in zip(sampler.times, [*sampler.times[1:], -1], strict=True):
        boxes_start, boxes = torch.rand(2, 5, 4) * 4 - 2, torch.randn(2, 5, 4)
        reid_start, reid = torch.randn(2, 5, 8), torch.randn(2, 5, 8)
        noise = torch.randn(2, 5, 12)
        new_boxes, new_reid = sampler.step(boxes_start, reid_start, boxes, reid, t, noise)
        expected_boxes = closed_form_ddim(boxes, boxes_start, t, t_next, eta, noise[..., :4])
        clean = codec.encode_reid(reid_start)
        expected_reid = closed_form_ddim(reid, clean, t, t_next, eta, noise[..., 4:])
        torch.testing.assert_close(new_boxes, expected_boxes, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(new_reid, expected_reid, atol=1e-5, rtol=1e-4)


def test_only_the_box_part_is_clamped():
    sampler = DualSampler(SignalCodec(snr_box=2.0, snr_reid=3.0), "ddim", 1)
    far = torch.full((1, 1, 4), 7.0)
    reid = torch.tensor([[[0.3, 0.4]]])
    boxes, embeddings = sampler.step(far, reid, far, reid, 999)
    torch.testing.assert_close(boxes, torch.full((1, 1, 4), 2.0))
    torch.testing.assert_close(embeddings, torch.tensor([[[1.8, 2.4]]]))
