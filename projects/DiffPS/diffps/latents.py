# SPDX-License-Identifier: Apache-2.0
"""Computes the noisy latent that the UNet receives from an image.

Shape shorthand: B images, (H, W) pixels, (h, w) = (H / 8, W / 8) cells, L latent channels (4).
Symbols: z scaled latent, eps standard normal noise, ``alpha_bar`` share of signal power at t.

The release uses an Euler scheduler, x = (z + sigma eps) / sqrt(sigma^2 + 1) with
sigma^2 = (1 - alpha_bar) / alpha_bar. This equals x = sqrt(alpha_bar) z + sqrt(1 - alpha_bar) eps,
the form used here, which also holds where sigma is infinite. At t = 0, sigma is 0.0291675.
"""

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor, nn

NOISE_MODES = ("none", "seeded", "random")


def image_digest(image: Tensor) -> str:
    """Returns a digest of the shape, type and content of an image of any layout."""
    digest = hashlib.blake2b(f"{tuple(image.shape)} {image.dtype}".encode(), digest_size=20)
    digest.update(image.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


@torch.no_grad()
def encode_moments(vae: nn.Module, images: Tensor) -> Tensor:
    """Runs the encoder of the VAE.

    Args:
        vae: VAE of the diffusion model.
        images: (B, 3, H, W) in [-1, 1].

    Returns:
        (B, 2 L, h, w): mean and standard deviation of the posterior, unscaled, in the VAE's dtype.
    """
    posterior = vae.encode(images.to(next(vae.parameters()).dtype)).latent_dist
    # the encoder returns channels last; in one layout, moments from a cache give the same bits
    return torch.cat([posterior.mean, posterior.std], dim=1).contiguous()


class LatentNoiser:
    """Turns the posterior of the VAE into the latent at one timestep.

    Args:
        alphas_cumprod: alpha_bar of every timestep.
        timestep: t.
        noise: ``none``, ``seeded`` (by the image) or ``random`` (the global generator).
        vae_sample: Whether to sample the posterior instead of taking its mean; the sample is
            seeded if the noise is.
        scale: ``scaling_factor`` of the VAE.
    """

    def __init__(
        self, alphas_cumprod: Tensor, timestep: int, noise: str, vae_sample: bool, scale: float
    ) -> None:
        if noise not in NOISE_MODES:
            raise ValueError(f"MODEL.DIFFPS.BACKBONE.NOISE is {noise!r}; allowed: {NOISE_MODES}")
        if not 0 <= timestep < len(alphas_cumprod):
            raise ValueError(
                f"MODEL.DIFFPS.BACKBONE.TIMESTEP is {timestep}; this model has timesteps 0 to "
                f"{len(alphas_cumprod) - 1}."
            )
        self.timestep, self.noise, self.vae_sample, self.scale = timestep, noise, vae_sample, scale
        self.alpha_bar = float(alphas_cumprod[timestep])

    @property
    def sigma(self) -> float:
        """Noise level in the Euler form."""
        return ((1 - self.alpha_bar) / self.alpha_bar) ** 0.5

    @property
    def is_repeatable(self) -> bool:
        """Whether the same image always gives the same latent."""
        return self.noise == "seeded" or (self.noise == "none" and not self.vae_sample)

    def __call__(self, moments: Tensor, keys: Sequence[str]) -> Tensor:
        """Draws the latents, the posterior before the noise.

        Args:
            moments: (B, 2 L, h, w) from :func:`encode_moments`.
            keys: Seed of each image; ignored unless ``noise`` is ``seeded``.

        Returns:
            (B, L, h, w) float32.
        """
        mean, std = moments.float().chunk(2, dim=1)
        generators = None
        if self.noise == "seeded":
            generators = [torch.Generator().manual_seed(_seed(key)) for key in keys]
        z = mean
        if self.vae_sample:
            z = mean + std * _randn(mean, generators)
        eps = None if self.noise == "none" else _randn(mean, generators)
        return noisy_latent(z * self.scale, self.alpha_bar, eps)


def noisy_latent(z: Tensor, alpha_bar: float, eps: Tensor | None) -> Tensor:
    """Returns the latent at a noise level; without ``eps`` it is scaled but has no noise."""
    x = alpha_bar**0.5 * z
    return x if eps is None else x + (1 - alpha_bar) ** 0.5 * eps


def _randn(like: Tensor, generators: list[torch.Generator] | None) -> Tensor:
    """Draws standard normal values; seeded ones on the CPU, so the same on every device."""
    if generators is None:
        return torch.randn_like(like)
    return torch.stack([torch.randn(like.shape[1:], generator=g) for g in generators]).to(like)


def _seed(key: str) -> int:
    return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=7).digest(), "big")
