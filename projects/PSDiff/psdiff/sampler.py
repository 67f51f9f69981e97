# SPDX-License-Identifier: Apache-2.0
"""Sampler of PSDiff (Algorithm 2): times and steps of the reverse process.

The steps are those of diffusers' schedulers in sample-prediction mode. This file provides PSDiff's
schedule, and clamps boxes and normalizes embeddings.

Shape shorthand in this file:
    B: images (or boxes that are embedded). N: proposals of each. D: embedding dimension.
    T: steps of the diffusion process (1000). k: steps of the sampler.

diffusers receives the schedule at the k times only, as if the process had k steps (``times[0]`` is
its step k - 1). Its DDIM otherwise assumes equally spaced times, which is wrong where k does not
divide T, for example for 3 and 6 steps.
"""

import copy
import functools
import threading
import warnings
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from psdiff.box_diffusion import NUM_TRAIN_TIMESTEPS, SignalCodec, cosine_alphas_cumprod
from psdiff.config import check_choice, check_range

if TYPE_CHECKING:
    from diffusers import DDIMScheduler, DPMSolverMultistepScheduler

SAMPLERS = ("ddim", "dpmsolver", "dpmsolver++")

LAMBDA_MIN, LAMBDA_SLOPE = -5.1, 0.1
"""Bound below which lambda = log sqrt(ab / (1 - ab)) is compressed for ``dpmsolver``, and slope.

The noise form divides by sqrt(ab), 4.9e-5 at the last time (lambda = -9.9): a float32 step from
there has an error of 1e-3. The authors of DPM-Solver start at -5.1 for that reason. The times here
are the same for all samplers, so the few smaller values are compressed (-9.9 becomes -5.6) instead
of clamped: two equal values would be a step of zero length.
"""


def sampling_times(steps: int, num_train_timesteps: int = NUM_TRAIN_TIMESTEPS) -> list[int]:
    """Returns the times of the denoising steps in order, for 4 steps: 999, 749, 499, 249."""
    if steps not in range(1, num_train_timesteps + 1):
        raise ValueError(
            f"MODEL.PSDIFF.STEPS is {steps}; it must be between 1 and {num_train_timesteps}."
        )
    grid = np.linspace(-1, num_train_timesteps - 1, steps + 1).astype(int)
    return grid[:0:-1].tolist()


@dataclass(frozen=True)
class SamplerSettings:
    """Settings of a sampler; invalid values raise ValueError on construction.

    Attributes:
        name: One of ``SAMPLERS``.
        steps: Number of predictions, 1 to T.
        order: Order of the DPM-Solvers, 1 to 3; ignored by DDIM.
        eta: Share of fresh noise in a DDIM step, 0 to 1; 0 for the DPM-Solvers.
    """

    name: str = "ddim"
    steps: int = 8
    order: int = 2
    eta: float = 0.0

    def __post_init__(self) -> None:
        check_choice("SAMPLER", self.name, SAMPLERS)
        sampling_times(self.steps)  # validates the number
        check_choice("SOLVER_ORDER", self.order, (1, 2, 3))
        check_range("ETA", self.eta, 0, 1)
        if self.eta > 0 and self.name != "ddim":
            raise ValueError(
                f"MODEL.PSDIFF.ETA is {self.eta}, but the sampler '{self.name}' adds no noise: set "
                "MODEL.PSDIFF.ETA 0, or MODEL.PSDIFF.SAMPLER ddim."
            )


def build_scheduler(settings: SamplerSettings) -> "DDIMScheduler | DPMSolverMultistepScheduler":
    """Returns a new diffusers scheduler; its timesteps k - 1, ..., 0 are the sampling times."""
    # Each trajectory needs its own scheduler, and copying is faster than building.
    return copy.deepcopy(_cached_scheduler(settings))


_LOADING_DIFFUSERS = threading.Lock()


@functools.lru_cache(maxsize=64)
def _cached_scheduler(settings: SamplerSettings) -> "DDIMScheduler | DPMSolverMultistepScheduler":
    # Imported here: diffusers takes a second to load, and training does not need it. Its module
    # replaces itself at its end, so a second thread would be left with an empty one.
    with _LOADING_DIFFUSERS:
        from diffusers import DDIMScheduler, DPMSolverMultistepScheduler

    alphas_cumprod = cosine_alphas_cumprod()[sampling_times(settings.steps)[::-1]]
    if settings.name == "dpmsolver":
        alphas_cumprod = compress_noisy_end(alphas_cumprod)
    before = torch.cat([alphas_cumprod.new_ones(1), alphas_cumprod[:-1]])
    schedule = {
        "num_train_timesteps": settings.steps,
        "trained_betas": (1 - alphas_cumprod / before).numpy(),
        "prediction_type": "sample",
    }
    if settings.name == "ddim":
        scheduler = DDIMScheduler(
            **schedule, clip_sample=False, set_alpha_to_one=True, timestep_spacing="trailing"
        )
        # diffusers multiplies the betas in float32, too coarse for the noisy end (ab = 2e-9).
        scheduler.alphas_cumprod = alphas_cumprod
        scheduler.set_timesteps(settings.steps)
        return scheduler
    with warnings.catch_warnings():
        # diffusers deprecates the noise form, which Table V contains, and uses an array creation
        # that NumPy 2 deprecates.
        warnings.simplefilter("ignore", FutureWarning)
        warnings.simplefilter("ignore", DeprecationWarning)
        scheduler = DPMSolverMultistepScheduler(
            **schedule,
            algorithm_type=settings.name,
            solver_order=settings.order,
            final_sigmas_type="zero" if settings.name == "dpmsolver++" else "sigma_min",
        )
        scheduler.alphas_cumprod = alphas_cumprod
        scheduler.set_timesteps(timesteps=list(range(settings.steps))[::-1])
    return scheduler


def compress_noisy_end(alphas_cumprod: Tensor) -> Tensor:
    """Returns the schedule (k,) with lambda compressed below ``LAMBDA_MIN``."""
    excess = alphas_cumprod.logit() / 2 - LAMBDA_MIN
    compressed = torch.sigmoid(2 * (LAMBDA_MIN + LAMBDA_SLOPE * excess))
    return torch.where(excess < 0, compressed, alphas_cumprod)


class Trajectory:
    """Sampler state of one batch; multistep solvers remember previous predictions.

    Args:
        codec: Scales of the two signals.
        settings: Settings of the sampler.
        renewable: Supports :meth:`renew`.
    """

    def __init__(self, codec: SignalCodec, settings: SamplerSettings, renewable: bool) -> None:
        self.codec, self.settings = codec, settings
        self.times = sampling_times(settings.steps)
        orders = [settings.order]
        if renewable and settings.name != "ddim":
            orders = list(range(1, settings.order + 1))
        self._schedulers = [build_scheduler(replace(settings, order=order)) for order in orders]
        self._taken = 0
        self._age: Tensor | None = None

    def step(
        self,
        boxes_start: Tensor,
        reid_start: Tensor,
        boxes_signal: Tensor,
        reid_signal: Tensor,
        noise: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Steps from the current time to the next one.

        No step follows the last prediction: there are k predictions and k - 1 steps.

        Args:
            boxes_start: Predicted clean box signal (B, N, 4); clamped to +-s1 here.
            reid_start: Predicted embeddings (B, N, D) of any norm; normalized here.
            boxes_signal: Box signal at the current time.
            reid_signal: Embedding signal at the current time.
            noise: Standard normal noise (B, N, 4 + D); required if eta > 0.

        Returns:
            Box signal and embedding signal at the next time.
        """
        x_start = torch.cat(
            [self.codec.clamp_boxes(boxes_start), self.codec.encode_reid(reid_start)], dim=-1
        )
        x_t = torch.cat([boxes_signal, reid_signal], dim=-1)
        t = self.settings.steps - 1 - self._taken
        ddim_only = {}
        if self.settings.name == "ddim":
            ddim_only = {"eta": self.settings.eta, "variance_noise": noise}
        results = [s.step(x_start, t, x_t, **ddim_only).prev_sample for s in self._schedulers]
        x_next = results[-1]
        if self._age is not None:
            for age, result in enumerate(results[:-1]):
                x_next = torch.where((self._age == age)[..., None], result, x_next)
            self._age += 1
        self._taken += 1
        return x_next[..., :4], x_next[..., 4:]

    def renew(self, rows: Tensor) -> None:
        """Restarts the solver for proposals that were replaced after the last step.

        Past predictions of such a row belong to another proposal, and a multistep solver would
        extrapolate from them. The next step of the row has order 1, the one after it order 2, and
        so on. Solvers of the lower orders run alongside on the same predictions.

        Args:
            rows: Mask (B, N) of the replaced proposals.
        """
        if self._age is None:
            self._age = torch.full(rows.shape, len(self.times), device=rows.device)
        self._age = self._age.masked_fill(rows, 0)


def unit_reid(reid_feats: Tensor) -> Tensor:
    """Returns L2-normalized embeddings, the output format of a model."""
    return F.normalize(reid_feats, dim=-1)
