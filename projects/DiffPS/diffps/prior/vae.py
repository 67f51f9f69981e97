# SPDX-License-Identifier: Apache-2.0
"""First stage: training of the VAE.

Shape shorthand: N scenes, B crops, (H, W) pixels, (h, w) = (H / 8, W / 8) cells, L = 4 channels.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from diffps.latents import encode_moments
from diffps.prior.scenes import Scenes, crop_start

CROP = 64
"""Side of training crops in pixels."""
_KL_WEIGHT = 1e-4
_COLOR_WEIGHT = 16.0
_COARSE_WEIGHT = 4.0
_COARSE = 4  # pixels


class AutoencoderLoss:
    """Reconstruction loss of crops, and a weak KL divergence of the latents.

    Means over squares of 4 x 4 pixels have an additional loss, with the largest weight on their
    colors: with the mean pixel error alone, all four channels learn edges and brightness first, and
    persons stay gray.

    Args:
        vae: ``AutoencoderKL``.
        scenes: Training images.
        batch: B; half of the crops are around persons.
    """

    def __init__(self, vae: nn.Module, scenes: Scenes, batch: int = 8) -> None:
        self.vae, self.scenes, self.batch = vae, scenes, batch
        self.occupied = [i for i, persons in enumerate(scenes.persons) if persons]
        self.device = next(vae.parameters()).device

    def __call__(self, generator: torch.Generator) -> dict[str, Tensor]:
        """Draws a batch and returns its losses."""
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
        """Draws crops, (B, 3, CROP, CROP) in [-1, 1]."""
        height, width = self.scenes.images.shape[2:]
        crops = []
        for index in range(self.batch):
            around_person = index % 2 == 1 and self.occupied
            pool = self.occupied if around_person else range(len(self.scenes))
            scene = pool[_draw_int(len(pool), generator)]
            x, y = _draw_int(width - CROP + 1, generator), _draw_int(height - CROP + 1, generator)
            if around_person:
                persons = self.scenes.persons[scene]
                x1, y1, x2, y2 = persons[_draw_int(len(persons), generator)].box
                x = crop_start(x1 + (x2 - x1) * _draw_unit(generator), CROP, width)
                y = crop_start(y1 + (y2 - y1) * _draw_unit(generator), CROP, height)
            crop = self.scenes.images[scene, :, y : y + CROP, x : x + CROP]
            crops.append(crop.flip(2) if _draw_int(2, generator) else crop)
        return torch.stack(crops).float() / 127.5 - 1


def _draw_int(count: int, generator: torch.Generator) -> int:
    return int(torch.randint(count, (1,), generator=generator))


def _draw_unit(generator: torch.Generator) -> float:
    return float(torch.rand(1, generator=generator))


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
    """Sets and returns the factor that scales latents, given as ``moments``, to variance 1."""
    mean, std = moments.chunk(2, dim=1)
    spread = (mean.var() + std.square().mean()).sqrt()
    factor = round(1.0 / float(spread.clamp_min(1e-6)), 5)
    vae.register_to_config(scaling_factor=factor)
    return factor
