# SPDX-License-Identifier: Apache-2.0
"""Second stage: the UNet and the text encoder, trained together to take noise away.

Shape shorthand: N scenes, B crops, (h, w) cells of 8 pixels, L = 4 channels, T tokens.

The loss is that of Stable Diffusion 2.1: v = sqrt(alpha_bar) eps - sqrt(1 - alpha_bar) z, predicted
from the noisy latent, the timestep and the caption. Unlike that of predicted noise it does not
vanish where there is much noise, which is where the caption helps. No box enters it.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from diffps.prior.captions import write_caption
from diffps.prior.scenes import Scenes

_CELL = 8
_GRID = 8
"""Sides of crops are multiples of so many cells, as the UNet halves them three times."""


@dataclass(frozen=True)
class DenoisingOptions:
    """How batches are made up.

    Args:
        batch: crops per iteration, of ``crop`` x ``crop`` cells.
        crop: side in cells, a multiple of 8.
        whole_every: every so many iterations the batch is of whole scenes, a quarter as many.
        person_share: share of the crops that are chosen to have a person in the middle.
        drop_share: share of the captions that are left empty.
        low_share: share of the timesteps that are drawn from the lowest ``low_steps``; the others
            are drawn from all.
        blind_share: share of the crops whose timestep is told as 0 whatever it is.
        single_share: share of captions of one word.
    """

    batch: int = 8
    crop: int = 16
    whole_every: int = 4
    person_share: float = 0.5
    drop_share: float = 0.1
    low_share: float = 0.15
    low_steps: int = 50
    blind_share: float = 0.25
    single_share: float = 0.4

    def __post_init__(self) -> None:
        if self.crop < _GRID or self.crop % _GRID:
            raise ValueError(f"crop is {self.crop} cells; it must be a multiple of {_GRID}")
        for name in ("person_share", "drop_share", "low_share", "blind_share", "single_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be in [0, 1]")


class DenoisingLoss:
    """Mean square error of the predicted v on captioned crops of latents."""

    def __init__(
        self,
        pipeline: Any,
        scenes: Scenes,
        moments: Tensor,
        options: DenoisingOptions | None = None,
    ) -> None:
        """
        Args:
            pipeline: ``StableDiffusionPipeline``; its UNet and text encoder are trained.
            scenes: who is where; the images are not looked at.
            moments: (N, 2 L, h, w) from :func:`diffps.prior.vae.encode_scenes`.
        """
        self.options = options or DenoisingOptions()
        self.unet, self.text = pipeline.unet, pipeline.text_encoder
        self.tokenizer = pipeline.tokenizer
        self.scale = pipeline.vae.config.scaling_factor
        self.alphas = pipeline.scheduler.alphas_cumprod
        self.moments, self.figures = moments, scenes.figures
        self.peopled = [i for i, figures in enumerate(scenes.figures) if figures]
        self.device = next(self.unet.parameters()).device
        height, width = moments.shape[2:]
        if self.options.crop > min(height, width):
            raise ValueError(
                f"crop is {self.options.crop} cells, but the scenes have {height} x {width}."
            )

    def __call__(self, generator: torch.Generator) -> dict[str, Tensor]:
        rng = np.random.default_rng(generator.initial_seed())
        latents, captions = self.draw(rng, generator)
        timesteps = self._draw_timesteps(len(latents), generator)
        noise = torch.randn(latents.shape, generator=generator)
        alpha = self.alphas[timesteps].view(-1, 1, 1, 1)
        noisy = alpha.sqrt() * latents + (1 - alpha).sqrt() * noise
        blind = torch.rand(len(latents), generator=generator) < self.options.blind_share
        told = torch.where(blind, torch.zeros_like(timesteps), timesteps)
        predicted = self.unet(
            noisy.to(self.device), told.to(self.device), self.encode(captions)
        ).sample
        target = alpha.sqrt() * noise - (1 - alpha).sqrt() * latents
        return {"v": F.mse_loss(predicted, target.to(self.device))}

    def encode(self, captions: list[str]) -> Tensor:
        """(B, T, D): the condition of the UNet."""
        ids = self.tokenizer(captions, padding="max_length", truncation=True, return_tensors="pt")
        return self.text(ids.input_ids.to(self.device)).last_hidden_state

    def draw(
        self, rng: np.random.Generator, generator: torch.Generator
    ) -> tuple[Tensor, list[str]]:
        """Returns scaled latents (B, L, h, w) and their captions."""
        options = self.options
        whole = bool(options.whole_every) and rng.random() * options.whole_every < 1
        count = max(1, options.batch // 4) if whole else options.batch
        height, width = self.moments.shape[2:]
        size = (height, width) if whole else (options.crop, options.crop)
        latents, captions = [], []
        for _ in range(count):
            scene, top, left = self._place(rng, size)
            latents.append(self.moments[scene, :, top : top + size[0], left : left + size[1]])
            x1, y1 = float(_CELL * left), float(_CELL * top)
            pixels = (x1, y1, x1 + _CELL * size[1], y1 + _CELL * size[0])
            caption = ""
            if rng.random() >= options.drop_share:
                room = self.tokenizer.model_max_length - 2
                figures = self.figures[scene]
                caption = write_caption(figures, pixels, rng, room, options.single_share)
            captions.append(caption)
        mean, std = torch.stack(latents).chunk(2, dim=1)
        noise = torch.randn(mean.shape, generator=generator)
        return self.scale * (mean + std * noise), captions

    def _place(self, rng: np.random.Generator, size: tuple[int, int]) -> tuple[int, int, int]:
        """Scene, and top and left cell of a crop."""
        around = rng.random() < self.options.person_share and self.peopled
        pool = self.peopled if around else range(len(self.figures))
        scene = pool[int(rng.integers(len(pool)))]
        starts = []
        figures = self.figures[scene]
        box = figures[int(rng.integers(len(figures)))].box if around else None
        for axis, side, crop in zip((1, 0), self.moments.shape[2:], size, strict=True):
            start = int(rng.integers(side - crop + 1))
            if box is not None:
                middle = rng.uniform(box[axis], box[axis + 2]) / _CELL
                start = int(np.clip(round(middle - crop / 2), 0, side - crop))
            starts.append(start)
        top, left = starts
        return scene, top, left

    def _draw_timesteps(self, count: int, generator: torch.Generator) -> Tensor:
        low = torch.rand(count, generator=generator) < self.options.low_share
        timesteps = torch.rand(count, generator=generator)
        limits = torch.where(low, self.options.low_steps, len(self.alphas))
        return (timesteps * limits).long()


def trained_parts(pipeline: Any) -> nn.ModuleDict:
    """UNet and text encoder as one module, for the trainer."""
    return nn.ModuleDict({"unet": pipeline.unet, "text_encoder": pipeline.text_encoder})
