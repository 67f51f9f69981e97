# SPDX-License-Identifier: Apache-2.0
"""Second stage: joint training of the UNet and the text encoder by denoising.

Shape shorthand: N scenes, B crops, (h, w) cells of 8 pixels, L = 4 channels, T tokens.

The loss is that of Stable Diffusion 2.1: v = sqrt(alpha_bar) eps - sqrt(1 - alpha_bar) z, predicted
from the noisy latent, the timestep and the caption. Unlike noise prediction it does not vanish at
high noise levels, where the caption helps. It uses no boxes.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from diffps.prior.captions import write_caption
from diffps.prior.scenes import Scenes, crop_start

_CELL = 8
_GRID = 8  # cells that sides of crops are multiples of, as the UNet halves them three times


@dataclass(frozen=True)
class DenoisingOptions:
    """Composition of the batches.

    Attributes:
        batch: Crops per iteration.
        crop: Side of a crop in cells, a multiple of 8.
        whole_every: Average number of iterations between batches of whole scenes, a quarter as
            many as crops; 0 for none.
        person_share: Share of the crops that are centered on a person.
        drop_share: Share of the captions that are empty.
        low_share: Share of the timesteps that are drawn from the lowest ``low_steps``; the others
            are drawn from all.
        low_steps: Number of low timesteps.
        blind_share: Share of the crops whose timestep is given as 0, whatever it is.
        single_share: Share of captions of one word.
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
    """Mean squared error of the predicted v on captioned crops of latents.

    Args:
        pipeline: ``StableDiffusionPipeline`` whose UNet and text encoder are trained.
        scenes: Persons of each scene; the images are not used.
        moments: (N, 2 L, h, w) from :func:`diffps.prior.vae.encode_scenes`.
        options: Composition of the batches.
    """

    def __init__(
        self,
        pipeline: Any,
        scenes: Scenes,
        moments: Tensor,
        options: DenoisingOptions | None = None,
    ) -> None:
        self.options = options or DenoisingOptions()
        self.unet, self.text = pipeline.unet, pipeline.text_encoder
        self.tokenizer = pipeline.tokenizer
        self.scale = pipeline.vae.config.scaling_factor
        self.alphas = pipeline.scheduler.alphas_cumprod
        self.moments, self.persons = moments, scenes.persons
        self.occupied = [i for i, persons in enumerate(scenes.persons) if persons]
        self.device = next(self.unet.parameters()).device
        height, width = moments.shape[2:]
        if self.options.crop > min(height, width):
            raise ValueError(
                f"crop is {self.options.crop} cells, but the scenes have {height} x {width}."
            )

    def __call__(self, generator: torch.Generator) -> dict[str, Tensor]:
        """Draws a batch and returns its loss."""
        rng = np.random.default_rng(generator.initial_seed())
        latents, captions = self.draw(rng, generator)
        timesteps = self._draw_timesteps(len(latents), generator)
        noise = torch.randn(latents.shape, generator=generator)
        alpha = self.alphas[timesteps].view(-1, 1, 1, 1)
        noisy = alpha.sqrt() * latents + (1 - alpha).sqrt() * noise
        blind = torch.rand(len(latents), generator=generator) < self.options.blind_share
        given = torch.where(blind, torch.zeros_like(timesteps), timesteps)
        predicted = self.unet(
            noisy.to(self.device), given.to(self.device), self.encode(captions)
        ).sample
        target = alpha.sqrt() * noise - (1 - alpha).sqrt() * latents
        return {"v": F.mse_loss(predicted, target.to(self.device))}

    def encode(self, captions: list[str]) -> Tensor:
        """Encodes captions to (B, T, D), the condition of the UNet."""
        ids = self.tokenizer(captions, padding="max_length", truncation=True, return_tensors="pt")
        return self.text(ids.input_ids.to(self.device)).last_hidden_state

    def draw(
        self, rng: np.random.Generator, generator: torch.Generator
    ) -> tuple[Tensor, list[str]]:
        """Draws scaled latents (B, L, h, w) and their captions."""
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
                persons = self.persons[scene]
                caption = write_caption(persons, pixels, rng, room, options.single_share)
            captions.append(caption)
        mean, std = torch.stack(latents).chunk(2, dim=1)
        noise = torch.randn(mean.shape, generator=generator)
        return self.scale * (mean + std * noise), captions

    def _place(self, rng: np.random.Generator, size: tuple[int, int]) -> tuple[int, int, int]:
        """Draws a scene, and the top and left cell of a crop."""
        around = rng.random() < self.options.person_share and self.occupied
        pool = self.occupied if around else range(len(self.persons))
        scene = pool[int(rng.integers(len(pool)))]
        starts = []
        persons = self.persons[scene]
        box = persons[int(rng.integers(len(persons)))].box if around else None
        for axis, side, crop in zip((1, 0), self.moments.shape[2:], size, strict=True):
            start = int(rng.integers(side - crop + 1))
            if box is not None:
                start = crop_start(rng.uniform(box[axis], box[axis + 2]) / _CELL, crop, side)
            starts.append(start)
        top, left = starts
        return scene, top, left

    def _draw_timesteps(self, count: int, generator: torch.Generator) -> Tensor:
        low = torch.rand(count, generator=generator) < self.options.low_share
        timesteps = torch.rand(count, generator=generator)
        limits = torch.where(low, self.options.low_steps, len(self.alphas))
        return (timesteps * limits).long()


def trained_parts(pipeline: Any) -> nn.ModuleDict:
    """Returns UNet and text encoder as one module."""
    return nn.ModuleDict({"unet": pipeline.unet, "text_encoder": pipeline.text_encoder})
