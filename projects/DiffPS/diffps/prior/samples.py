# SPDX-License-Identifier: Apache-2.0
"""Images that a trained model draws from captions: what it has understood, to look at."""

import os
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image

from diffps.loading import no_progress_bars

CAPTIONS = (
    "street",
    "person",
    "red shirts blue pants person",
    "yellow shirts black pants white shoes person",
)


def draw_samples(
    model: str | os.PathLike,
    path: str | os.PathLike,
    captions: Sequence[str] = CAPTIONS,
    each: int = 4,
    size: tuple[int, int] = (128, 128),
    steps: int = 30,
    guidance: float = 3.0,
) -> None:
    """Draws images with the plain pipeline of diffusers, one row per caption.

    Args:
        model: folder in diffusers format.
        path: of the image to write.
        each: images per caption.
        size: (height, width) of each in pixels.
    """
    from diffusers import StableDiffusionPipeline

    with no_progress_bars():
        pipeline = StableDiffusionPipeline.from_pretrained(
            model, local_files_only=True, low_cpu_mem_usage=False
        )
    pipeline.set_progress_bar_config(disable=True)
    sheet = Image.new("RGB", (each * size[1], len(captions) * size[0]))
    for row, caption in enumerate(captions):
        pictures = pipeline(
            [caption] * each, height=size[0], width=size[1], num_inference_steps=steps,
            guidance_scale=guidance, generator=torch.Generator().manual_seed(row),
        ).images  # fmt: skip
        for column, picture in enumerate(pictures):
            sheet.paste(picture, (column * size[1], row * size[0]))
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path)
