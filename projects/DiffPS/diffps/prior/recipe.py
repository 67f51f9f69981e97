# SPDX-License-Identifier: Apache-2.0
"""The complete training of a tiny diffusion model: scenes, VAE, latents, denoiser."""

import datetime
import json
import logging
import math
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from diffps.loading import no_progress_bars
from diffps.prior.captions import PRIOR_WORDS
from diffps.prior.denoiser import DenoisingLoss, DenoisingOptions, trained_parts
from diffps.prior.scenes import SceneOptions, Scenes, draw_scenes, load_scenes
from diffps.prior.trainer import Schedule, Stage
from diffps.prior.vae import AutoencoderLoss, encode_scenes, set_scaling_factor
from diffps.tiny import TinySizes, build_pipeline, save_pipeline, write_vocabulary
from person_search.utils.files import write_atomically
from person_search.utils.model_card import DRAWN, ModelCard
from person_search.utils.weight_files import write_card

logger = logging.getLogger(__name__)

PRIOR_SIZES = TinySizes(
    unet_channels=(32, 40, 48, 48),
    unet_heads=(2, 2, 3, 3),
    vae_channels=(16, 16, 32, 32),
    text_width=48,
    text_layers=2,
    text_heads=3,
    norm_groups=4,
    max_tokens=32,
    words=PRIOR_WORDS,
)
"""Sizes of the model in the repository, which has 2.2 million weights."""


@dataclass(frozen=True)
class PriorOptions:
    """Options of the training.

    Attributes:
        seed: Seed of weights and batches.
        vae_iterations: Iterations of the VAE.
        iterations: Iterations of UNet and text encoder.
        vae_lr: Learning rate of the VAE.
        lr: Learning rate of UNet and text encoder.
        vae_batch: Crops of 64 x 64 pixels per iteration of the VAE.
        scenes: Options of the scenes.
        denoising: Composition of the batches of UNet and text encoder.
        sizes: Sizes of the model.
    """

    seed: int = 0
    vae_iterations: int = 3000
    iterations: int = 4500
    vae_lr: float = 2e-3
    lr: float = 1e-3
    vae_batch: int = 8
    scenes: SceneOptions = field(default_factory=SceneOptions)
    denoising: DenoisingOptions = field(default_factory=DenoisingOptions)
    sizes: TinySizes = PRIOR_SIZES


class PriorTraining:
    """The training of one model, which can be interrupted and resumed.

    Args:
        options: Options of the training.
        work: Folder of scenes, latents and checkpoints.
        device: Torch device.
        resume: Whether to resume from the checkpoints in ``work``.
        minutes: Wall time after which to stop; 0 for no limit.
        progress: Whether to show progress bars.
    """

    def __init__(
        self,
        options: PriorOptions,
        work: str | os.PathLike,
        device: str = "cpu",
        resume: bool = False,
        minutes: float = 0.0,
        progress: bool = True,
    ) -> None:
        self.options, self.work, self.resume = options, Path(work), resume
        self.device, self.progress = torch.device(device), progress
        self.deadline = time.monotonic() + 60 * minutes if minutes else math.inf
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(options.seed)
            self.pipeline = build_pipeline(options.sizes, "sd21", "v_prediction")
        self.stages: list[Stage] = []

    def run(self) -> bool:
        """Trains; returns whether all iterations were completed within the time limit."""
        options = self.options
        draw_scenes(self.work / "scenes", options.scenes, self.progress)
        scenes = load_scenes(self.work / "scenes")
        vae = self.pipeline.vae.to(self.device)
        schedule = Schedule(options.vae_iterations, options.vae_lr)
        if not self._run("vae", vae, AutoencoderLoss(vae, scenes, options.vae_batch), schedule):
            return False
        moments = self._latents(scenes)
        factor = set_scaling_factor(self.pipeline.vae, moments)
        logger.info(f"scaling factor of the latents: {factor}")
        model = trained_parts(self.pipeline).to(self.device)
        loss = DenoisingLoss(self.pipeline, scenes, moments, options.denoising)
        return self._run("denoiser", model, loss, Schedule(options.iterations, options.lr))

    def save(self, folder: str | os.PathLike, dtype: torch.dtype = torch.float16) -> None:
        """Writes the model in its current state, in diffusers format, and a record of the run."""
        for part in (self.pipeline.unet, self.pipeline.vae, self.pipeline.text_encoder):
            part.to("cpu").eval()
        save_pipeline(self.pipeline, folder, dtype)
        write_vocabulary(Path(folder, "tokenizer"), self.options.sizes.words)
        card = ModelCard(
            "tiny Stable Diffusion",
            data=("synthetic scenes",),
            kind=DRAWN,
            images=self.options.scenes.count,
            date=datetime.date.today().isoformat(),
        )
        for file in Path(folder).rglob("*.safetensors"):
            write_card(file, card)
        losses = {stage.name: stage.history[-1] for stage in self.stages if stage.history}
        done = {stage.name: stage.iteration for stage in self.stages}
        record = {"iterations": done, "losses": losses, "scenes": vars(self.options.scenes)}
        record |= {"denoising": vars(self.options.denoising), "seed": self.options.seed}
        Path(folder, "training.json").write_text(json.dumps(record, indent=1) + "\n", "utf-8")

    def _run(self, name: str, model: Any, loss: Any, schedule: Schedule) -> bool:
        stage = Stage(name, model, loss, schedule, self.work, self.options.seed)
        self.stages.append(stage)
        if self.resume and stage.load():
            logger.info(f"{name}: resuming from iteration {stage.iteration}")
        return stage.run(self.deadline, self.progress)

    def _latents(self, scenes: Scenes) -> torch.Tensor:
        """Encodes the scenes, or reads latents of the same VAE."""
        path = self.work / "latents.pt"
        vae = self.pipeline.vae
        identity = {
            "scenes": json.dumps(vars(self.options.scenes)),
            "weights": float(sum(w.double().abs().sum() for w in vae.parameters())),
        }
        if path.is_file():
            state = torch.load(path, weights_only=True)
            if all(state[key] == value for key, value in identity.items()):
                return state["moments"]
        moments = encode_scenes(vae, scenes, progress=self.progress)
        state = {**identity, "moments": moments}
        write_atomically(path, lambda file: torch.save(state, file))
        return moments


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
    """Generates images from captions with the pipeline of diffusers, one row per caption."""
    from diffusers import StableDiffusionPipeline

    with no_progress_bars():
        pipeline = StableDiffusionPipeline.from_pretrained(
            model, local_files_only=True, low_cpu_mem_usage=False
        )
    pipeline.set_progress_bar_config(disable=True)
    sheet = Image.new("RGB", (each * size[1], len(captions) * size[0]))
    for row, caption in enumerate(captions):
        images = pipeline(
            [caption] * each,
            height=size[0],
            width=size[1],
            num_inference_steps=steps,
            guidance_scale=guidance,
            generator=torch.Generator().manual_seed(row),
        ).images
        for column, image in enumerate(images):
            sheet.paste(image, (column * size[1], row * size[0]))
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path)
