# SPDX-License-Identifier: Apache-2.0
"""Reverse process of PSDiff (Algorithm 2): times, and one step of the sampler.

The steps themselves are those of diffusers' schedulers in sample-prediction mode; this file only
gives them PSDiff's schedule and treats boxes and embeddings as their ranges demand.
"""

from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from psdiff.box_diffusion import (
    NUM_TRAIN_TIMESTEPS,
    SignalCodec,
    cosine_alphas_cumprod,
    cosine_betas,
)

if TYPE_CHECKING:
    from diffusers import DDIMScheduler

SAMPLERS = ("ddim",)


def sampling_times(steps: int, num_train_timesteps: int = NUM_TRAIN_TIMESTEPS) -> list[int]:
    """Times of ``steps`` denoising steps from the noisiest on, e.g. 4: 999, 749, 499, 249."""
    if not 1 <= steps <= num_train_timesteps:
        raise ValueError(
            f"MODEL.PSDIFF.STEPS is {steps}; it must be between 1 and {num_train_timesteps}."
        )
    grid = np.linspace(-1, num_train_timesteps - 1, steps + 1).astype(int)
    return grid[:0:-1].tolist()


def build_scheduler(name: str, steps: int) -> "DDIMScheduler":
    """Builds diffusers' scheduler with PSDiff's cosine schedule, set to ``steps`` steps."""
    if name not in SAMPLERS:
        raise ValueError(f"MODEL.PSDIFF.SAMPLER is '{name}'; it must be one of {SAMPLERS}.")
    # Imported here: diffusers takes a second to load and training does not need it.
    from diffusers import DDIMScheduler

    sampling_times(steps)  # refuses a wrong number with our message
    scheduler = DDIMScheduler(
        num_train_timesteps=NUM_TRAIN_TIMESTEPS,
        trained_betas=cosine_betas().numpy(),
        prediction_type="sample",
        clip_sample=False,
        set_alpha_to_one=True,
        timestep_spacing="trailing",
    )
    # diffusers multiplies the schedule up in float32; the noisy end needs more (alpha-bar 2e-9).
    scheduler.alphas_cumprod = cosine_alphas_cumprod()
    scheduler.set_timesteps(steps)
    return scheduler


class DualSampler:
    """Takes both signals of a batch from one time to the next.

    Args:
        codec: ranges of the two signals.
        name: sampler, one of ``SAMPLERS``. steps: number of steps.
        eta: share of fresh noise of a DDIM step, 0 to 1.
    """

    def __init__(self, codec: SignalCodec, name: str, steps: int, eta: float = 0.0) -> None:
        if not 0 <= eta <= 1:
            raise ValueError(f"MODEL.PSDIFF.ETA is {eta}; it must be between 0 and 1.")
        self.codec, self.eta = codec, eta
        self.scheduler = build_scheduler(name, steps)
        self.times: list[int] = self.scheduler.timesteps.tolist()

    def step(
        self,
        boxes_start: Tensor,
        reid_start: Tensor,
        boxes_signal: Tensor,
        reid_signal: Tensor,
        t: int,
        noise: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """One step from time t to the next time of the list.

        Args:
            boxes_start: (B, N, 4) predicted clean box signal; clamped to +-s1 here.
            reid_start: (B, N, D) predicted embeddings of any length; brought to the signal's here.
            boxes_signal, reid_signal: the signals at time t.
            noise: (B, N, 4 + D) standard normal, needed if eta > 0.

        Returns:
            The two signals at the next time.
        """
        x_start = torch.cat(
            [self.codec.clamp_boxes(boxes_start), self.codec.encode_reid(reid_start)], dim=-1
        )
        x_t = torch.cat([boxes_signal, reid_signal], dim=-1)
        result = self.scheduler.step(x_start, t, x_t, eta=self.eta, variance_noise=noise)
        return result.prev_sample[..., :4], result.prev_sample[..., 4:]


def unit_reid(reid_feats: Tensor) -> Tensor:
    """L2-normalised embeddings, the form in which a model gives them away."""
    return F.normalize(reid_feats, dim=-1)
