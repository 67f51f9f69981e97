# SPDX-License-Identifier: Apache-2.0
"""From nothing to a trained folder: scenes, VAE, latents, denoiser."""

import json
import logging
import math
import os
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from diffps.prior.captions import PRIOR_WORDS
from diffps.prior.denoiser import DenoisingLoss, DenoisingOptions, trained_parts
from diffps.prior.scenes import SceneOptions, Scenes, draw_scenes, load_scenes
from diffps.prior.trainer import Schedule, Stage
from diffps.prior.vae import AutoencoderLoss, encode_scenes, set_scaling_factor
from diffps.tiny import TinySizes, build_pipeline, save_pipeline, write_vocabularies
from person_search.utils.files import write_atomically

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
"""Sizes of the folder that is in the repository: 2.2 million weights."""


@dataclass(frozen=True)
class PriorOptions:
    """All that decides what comes out.

    Args:
        seed: of weights and batches.
        vae_iterations, iterations: of the two stages.
        vae_lr, lr: their learning rates.
        vae_batch: crops of 64 x 64 pixels.
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
    """The training of one folder; can be interrupted and taken up again.

    Args:
        work: folder for scenes, latents and checkpoints.
        resume: go on from the checkpoints in it.
        minutes: wall time after which to stop, 0 for no limit.
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
        """Trains; returns whether all iterations were done before the time was over."""
        draw_scenes(self.work / "scenes", self.options.scenes, self.progress)
        scenes = load_scenes(self.work / "scenes")
        if not self._train_vae(scenes):
            return False
        moments = self._latents(scenes)
        factor = set_scaling_factor(self.pipeline.vae, moments)
        logger.info(f"scaling factor of the latents: {factor}")
        return self._train_denoiser(scenes, moments)

    def save(self, folder: str | os.PathLike, dtype: torch.dtype = torch.float16) -> None:
        """Writes the model as it is, in diffusers format, and how it came about."""
        for part in (self.pipeline.unet, self.pipeline.vae, self.pipeline.text_encoder):
            part.to("cpu").eval()
        save_pipeline(self.pipeline, folder, dtype)
        write_vocabularies(folder, self.options.sizes.words)
        losses = {stage.name: stage.history[-1] for stage in self.stages if stage.history}
        done = {stage.name: stage.iteration for stage in self.stages}
        record = {"iterations": done, "losses": losses, "scenes": vars(self.options.scenes)}
        record |= {"denoising": vars(self.options.denoising), "seed": self.options.seed}
        Path(folder, "training.json").write_text(json.dumps(record, indent=1) + "\n")

    def _train_vae(self, scenes: Scenes) -> bool:
        options = self.options
        vae = self.pipeline.vae.to(self.device)
        schedule = Schedule(options.vae_iterations, options.vae_lr)
        return self._run("vae", vae, AutoencoderLoss(vae, scenes, options.vae_batch), schedule)

    def _train_denoiser(self, scenes: Scenes, moments: torch.Tensor) -> bool:
        model = trained_parts(self.pipeline).to(self.device)
        loss = DenoisingLoss(self.pipeline, scenes, moments, self.options.denoising)
        return self._run(
            "denoiser", model, loss, Schedule(self.options.iterations, self.options.lr)
        )

    def _run(self, name: str, model: Any, loss: Any, schedule: Schedule) -> bool:
        stage = Stage(name, model, loss, schedule, self.work, self.options.seed)
        self.stages.append(stage)
        if self.resume and stage.load():
            logger.info(f"{name}: going on from iteration {stage.iteration}")
        return stage.run(self.deadline, self.progress)

    def _latents(self, scenes: Scenes) -> torch.Tensor:
        """Encodes the scenes, or reads what was encoded with the same VAE."""
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
