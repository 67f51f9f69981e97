# SPDX-License-Identifier: Apache-2.0
"""First stage: the VAE that turns images into latents.

Shape shorthand: N scenes, B crops, (H, W) pixels, (h, w) = (H / 8, W / 8) cells, L = 4 channels.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from diffps.latents import encode_moments
from diffps.prior.scenes import Scenes

CROP = 64
"""Side of training crops in pixels."""
_KL_WEIGHT = 1e-4
_COLOR_WEIGHT = 16.0
_COARSE_WEIGHT = 4.0
_COARSE = 4  # pixels


class AutoencoderLoss:
    """Reconstruction of crops, and a little pull of the latents towards a normal distribution.

    Means over squares of 4 x 4 pixels count extra, and their colors most: with the plain mean error
    all four channels learn edges and light first, and the people stay gray.
    """

    def __init__(self, vae: nn.Module, scenes: Scenes, batch: int = 8) -> None:
        """
        Args:
            vae: ``AutoencoderKL``.
            batch: B; half of the crops are around people.
        """
        self.vae, self.scenes, self.batch = vae, scenes, batch
        self.peopled = [i for i, figures in enumerate(scenes.figures) if figures]
        self.device = next(vae.parameters()).device

    def __call__(self, generator: torch.Generator) -> dict[str, Tensor]:
        images = self.draw(generator).to(self.device)
        posterior = self.vae.encode(images).latent_dist
        noise = torch.randn(posterior.mean.shape, generator=generator).to(self.device)
        output = self.vae.decode(posterior.mean + posterior.std * noise).sample
        kl = posterior.mean.square() + posterior.var - 1 - posterior.logvar
        error = output - images
        coarse = F.avg_pool2d(error, _COARSE)
        color = coarse - coarse.mean(dim=1, keepdim=True)
        return {
            "pixel": error.abs().mean(),
            "coarse": _COARSE_WEIGHT * coarse.square().mean(),
            "color": _COLOR_WEIGHT * color.square().mean(),
            "kl": _KL_WEIGHT * 0.5 * kl.mean(),
        }

    def draw(self, generator: torch.Generator) -> Tensor:
        """Returns (B, 3, CROP, CROP) in [-1, 1]."""
        height, width = self.scenes.images.shape[2:]
        crops = []
        for index in range(self.batch):
            around_person = index % 2 == 1 and self.peopled
            pool = self.peopled if around_person else range(len(self.scenes))
            scene = pool[_draw_int(len(pool), generator)]
            x, y = _draw_int(width - CROP + 1, generator), _draw_int(height - CROP + 1, generator)
            if around_person:
                figures = self.scenes.figures[scene]
                box = figures[_draw_int(len(figures), generator)].box
                x = _around(box[0], box[2], width, generator)
                y = _around(box[1], box[3], height, generator)
            crop = self.scenes.images[scene, :, y : y + CROP, x : x + CROP]
            crops.append(crop.flip(2) if _draw_int(2, generator) else crop)
        return torch.stack(crops).float() / 127.5 - 1


def _draw_int(count: int, generator: torch.Generator) -> int:
    return int(torch.randint(count, (1,), generator=generator))


def _around(low: float, high: float, side: int, generator: torch.Generator) -> int:
    """Start of a crop whose middle lies somewhere between ``low`` and ``high``."""
    middle = low + (high - low) * float(torch.rand(1, generator=generator))
    return int(min(max(0, round(middle - CROP / 2)), side - CROP))


@torch.no_grad()
def encode_scenes(vae: nn.Module, scenes: Scenes, batch: int = 8, progress: bool = True) -> Tensor:
    """Encodes all scenes.

    Returns:
        (N, 2 L, h, w): means and standard deviations, unscaled.
    """
    device = next(vae.parameters()).device
    moments = []
    for start in tqdm(range(0, len(scenes), batch), desc="latents", disable=not progress):
        images = scenes.images[start : start + batch].to(device).float() / 127.5 - 1
        moments.append(encode_moments(vae, images).cpu())
    return torch.cat(moments)


def set_scaling_factor(vae: Any, moments: Tensor) -> float:
    """Sets the factor that makes latents of variance 1, and returns it.

    Args:
        moments: (N, 2 L, h, w) from :func:`encode_scenes`.
    """
    mean, std = moments.chunk(2, dim=1)
    spread = (mean.var() + std.square().mean()).sqrt()
    factor = round(1.0 / float(spread.clamp_min(1e-6)), 5)
    vae.register_to_config(scaling_factor=factor)
    return factor
