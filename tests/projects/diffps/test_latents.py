# SPDX-License-Identifier: Apache-2.0
"""Noise schedule, latents and their randomness."""

import pytest
import torch
from diffusers import EulerDiscreteScheduler

from diffps.latents import LatentNoiser, encode_moments, image_digest, noisy_latent
from diffps.loading import DiffusionFolder


@pytest.fixture(scope="module")
def alphas_cumprod(tiny_sd):
    return DiffusionFolder(tiny_sd).load_alphas_cumprod()


def make(alphas_cumprod, timestep=0, noise="none", vae_sample=False):
    return LatentNoiser(alphas_cumprod, timestep, noise, vae_sample, 0.18215)


def test_the_cleanest_timestep_of_the_specification(alphas_cumprod):
    noiser = make(alphas_cumprod)
    assert len(alphas_cumprod) == 1000
    assert noiser.sigma == pytest.approx(0.0291675, abs=1e-7)
    assert noiser.alpha_bar**0.5 == pytest.approx(0.9995748, abs=1e-7)


@pytest.mark.filterwarnings("ignore:__array__:DeprecationWarning")
def test_schedule_equals_the_euler_scheduler(tiny_sd, alphas_cumprod):
    euler = EulerDiscreteScheduler.from_pretrained(
        tiny_sd, subfolder="scheduler", timestep_spacing="linspace"
    )
    euler.set_timesteps(1000)
    assert euler.timesteps.tolist() == list(range(999, -1, -1))
    z, eps = torch.randn(2, 4, 6, 5), torch.randn(2, 4, 6, 5)
    for step, t in ((0, 999), (500, 499), (998, 1), (999, 0)):
        noiser = make(alphas_cumprod, t)
        assert noiser.sigma == pytest.approx(float(euler.sigmas[step]), rel=1e-5)
        sigma = euler.sigmas[step]
        expected = (z + sigma * eps) / (sigma**2 + 1) ** 0.5
        got = noisy_latent(z, noiser.alpha_bar, eps)
        torch.testing.assert_close(got, expected, atol=1e-6, rtol=1e-6)


def test_mean_without_noise_is_only_scaled(alphas_cumprod):
    moments = torch.randn(2, 8, 3, 3)
    got = make(alphas_cumprod)(moments, ["", ""])
    torch.testing.assert_close(got, 0.9995748 * 0.18215 * moments[:, :4])


def test_posterior_is_drawn_before_the_noise(alphas_cumprod):
    moments = torch.rand(2, 8, 3, 3)
    torch.manual_seed(7)
    first, second = torch.randn(2, 4, 3, 3), torch.randn(2, 4, 3, 3)
    torch.manual_seed(7)
    noiser = make(alphas_cumprod, 300, "random", vae_sample=True)
    z = 0.18215 * (moments[:, :4] + moments[:, 4:] * first)
    expected = (z + noiser.sigma * second) / (noiser.sigma**2 + 1) ** 0.5
    torch.testing.assert_close(noiser(moments, ["", ""]), expected)


def test_seeded_noise_belongs_to_the_image_and_not_to_the_batch(alphas_cumprod):
    noiser = make(alphas_cumprod, 500, "seeded", vae_sample=True)
    a, b = torch.rand(2, 1, 8, 3, 3)
    both = noiser(torch.cat([a, b]), ["aa", "bb"])
    torch.manual_seed(123)
    assert torch.equal(both[1:], noiser(b, ["bb"]))
    assert not torch.equal(both[:1], noiser(a, ["bb"]))


@pytest.mark.parametrize(
    "noise, vae_sample, repeatable",
    [
        ("none", False, True),
        ("none", True, False),
        ("seeded", True, True),
        ("random", False, False),
    ],
)
def test_is_repeatable(alphas_cumprod, noise, vae_sample, repeatable):
    noiser = make(alphas_cumprod, 0, noise, vae_sample)
    moments = torch.rand(1, 8, 3, 3)
    assert noiser.is_repeatable == repeatable
    assert torch.equal(noiser(moments, ["a"]), noiser(moments, ["a"])) == repeatable


def test_infinite_sigma_is_pure_noise():
    eps = torch.randn(3)
    assert torch.equal(noisy_latent(torch.randn(3), 0.0, eps), eps)


@pytest.mark.parametrize("timestep", [-1, 1000])
def test_timestep_out_of_range(alphas_cumprod, timestep):
    with pytest.raises(ValueError, match="timesteps 0 to 999"):
        make(alphas_cumprod, timestep)


def test_unknown_noise(alphas_cumprod):
    with pytest.raises(ValueError, match="NOISE is 'gauss'.*seeded"):
        make(alphas_cumprod, noise="gauss")


def test_moments_are_mean_and_std_of_the_posterior(tiny_sd):
    vae = DiffusionFolder(tiny_sd).load_vae(torch.float32)
    images = torch.rand(1, 3, 64, 128) * 2 - 1
    posterior = vae.encode(images).latent_dist
    moments = encode_moments(vae, images)
    assert moments.shape == (1, 8, 8, 16) and not moments.requires_grad
    assert torch.equal(moments[:, :4], posterior.mode())
    assert torch.equal(moments[:, 4:], posterior.std)
    assert vae.decoder is None


def test_digest_sees_content_shape_and_type():
    image = torch.arange(12).view(3, 2, 2)
    others = [image + 1, image.view(3, 4, 1), image.float(), image.flip(2)]
    assert len({image_digest(x) for x in [image, *others]}) == 5
    assert image_digest(image) == image_digest(image.clone())
    strided = torch.arange(24).view(3, 2, 4)[:, :, ::2]
    assert image_digest(strided) == image_digest(strided.contiguous())
