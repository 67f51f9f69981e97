# SPDX-License-Identifier: Apache-2.0
"""From an image to the noisy latent that the UNet is given.

Shape shorthand: B images, (H, W) pixels, (h, w) = (H / 8, W / 8) cells, L latent channels (4).
Symbols: z scaled latent, eps standard normal noise, ``alpha_bar`` share of signal power at t.

The release goes by an Euler scheduler, x = (z + sigma eps) / sqrt(sigma^2 + 1) with
sigma^2 = (1 - alpha_bar) / alpha_bar. That is x = sqrt(alpha_bar) z + sqrt(1 - alpha_bar) eps, the
form used here, which also holds where sigma is infinite. At t = 0, sigma is 0.0291675.
"""

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor, nn

NOISE_MODES = ("none", "seeded", "random")


def image_digest(image: Tensor) -> str:
    """Returns a digest of shape, type and content of an image of any layout."""
    digest = hashlib.blake2b(f"{tuple(image.shape)} {image.dtype}".encode(), digest_size=20)
    digest.update(image.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


@torch.no_grad()
def encode_moments(vae: nn.Module, images: Tensor) -> Tensor:
    """Runs the VAE's encoder.

    Args:
        images: (B, 3, H, W) in [-1, 1].

    Returns:
        (B, 2 L, h, w): mean and standard deviation of the posterior, unscaled, in the VAE's dtype.
    """
    posterior = vae.encode(images.to(_dtype(vae))).latent_dist
    # the encoder leaves channels last; in one layout, moments from a cache give the same bits
    return torch.cat([posterior.mean, posterior.std], dim=1).contiguous()


class LatentNoiser:
    """Turns the VAE's posterior into the latent at one timestep."""

    def __init__(
        self, alphas_cumprod: Tensor, timestep: int, noise: str, vae_sample: bool, scale: float
    ) -> None:
        """
        Args:
            alphas_cumprod: alpha_bar of every timestep. timestep: t.
            noise: ``none``, ``seeded`` (by the image) or ``random`` (the global generator).
            vae_sample: draw from the posterior instead of taking its mean; seeded if the noise is.
            scale: factor of the VAE (``scaling_factor``).
        """
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
        """Draws the latents.

        Args:
            moments: (B, 2 L, h, w) from :func:`encode_moments`.
            keys: of the B images, to seed by; not looked at unless ``noise`` is ``seeded``.

        Returns:
            (B, L, h, w) float32. The posterior is drawn before the noise.
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
    """The latent at a noise level; no ``eps`` leaves out the noise, not the scaling."""
    x = alpha_bar**0.5 * z
    return x if eps is None else x + (1 - alpha_bar) ** 0.5 * eps


def _randn(like: Tensor, generators: list[torch.Generator] | None) -> Tensor:
    """Standard normal numbers; seeded ones are drawn on the CPU, so the same on every device."""
    if generators is None:
        return torch.randn_like(like)
    return torch.stack([torch.randn(like.shape[1:], generator=g) for g in generators]).to(like)


def _seed(key: str) -> int:
    return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=7).digest(), "big")


def _dtype(module: nn.Module) -> torch.dtype:
    return next(module.parameters()).dtype
