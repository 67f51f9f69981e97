# SPDX-License-Identifier: Apache-2.0
"""Reverse process of PSDiff (Algorithm 2): times, and the steps of the sampler.

The steps themselves are those of diffusers' schedulers in sample-prediction mode; this file only
gives them PSDiff's schedule and treats boxes and embeddings as their ranges demand.

Shape shorthand in this file:
    B: images (or boxes that are embedded). N: proposals of each. D: length of an embedding.
    T: steps of the diffusion process (1000). k: steps of the sampler.

What diffusers gets is the schedule at the k times of the list alone, as if the process had k steps
(``times[0]`` is its step k - 1). Its DDIM otherwise takes the distance between two times to be the
same everywhere, which is wrong wherever k does not divide T, e.g. for 3 and 6 steps.
"""

import copy
import functools
import warnings
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from psdiff.box_diffusion import NUM_TRAIN_TIMESTEPS, SignalCodec, cosine_alphas_cumprod

if TYPE_CHECKING:
    from diffusers import DDIMScheduler, DPMSolverMultistepScheduler

SAMPLERS = ("ddim", "dpmsolver", "dpmsolver++")
SOLVER_ORDERS = (1, 2, 3)

LAMBDA_MIN, LAMBDA_SLOPE = -5.1, 0.1
"""Where lambda = log sqrt(ab / (1 - ab)) is compressed for ``dpmsolver``, and to what share.

Its noise form divides by sqrt(ab), which is 4.9e-5 at the last time (lambda = -9.9): in float32 a
step from there is off by 1e-3. The authors of DPM-Solver start at -5.1 for that reason. Here the
times are the same for all samplers, so the few values below are drawn up to it (-9.9 to -5.6), not
cut off: two equal ones would be a step of no length.
"""


def sampling_times(steps: int, num_train_timesteps: int = NUM_TRAIN_TIMESTEPS) -> list[int]:
    """Times of ``steps`` denoising steps from the noisiest on, e.g. 4: 999, 749, 499, 249."""
    if steps not in range(1, num_train_timesteps + 1):
        raise ValueError(
            f"MODEL.PSDIFF.STEPS is {steps}; it must be between 1 and {num_train_timesteps}."
        )
    grid = np.linspace(-1, num_train_timesteps - 1, steps + 1).astype(int)
    return grid[:0:-1].tolist()


@dataclass(frozen=True)
class SamplerSettings:
    """Which sampler takes which steps; refuses what no sampler can do.

    Args:
        name: one of ``SAMPLERS``. steps: number of predictions, 1 to T.
        order: of the two DPM-Solvers, 1 to 3; DDIM has none.
        eta: share of fresh noise in a DDIM step, 0 to 1; 0 for the DPM-Solvers.
    """

    name: str = "ddim"
    steps: int = 8
    order: int = 2
    eta: float = 0.0

    def __post_init__(self) -> None:
        if self.name not in SAMPLERS:
            raise ValueError(
                f"MODEL.PSDIFF.SAMPLER is '{self.name}'; it must be one of {SAMPLERS}."
            )
        sampling_times(self.steps)  # refuses a wrong number
        if self.order not in SOLVER_ORDERS:
            raise ValueError(
                f"MODEL.PSDIFF.SOLVER_ORDER is {self.order}; it must be one of {SOLVER_ORDERS}."
            )
        if not 0 <= self.eta <= 1:
            raise ValueError(f"MODEL.PSDIFF.ETA is {self.eta}; it must be between 0 and 1.")
        if self.eta > 0 and self.name != "ddim":
            raise ValueError(
                f"MODEL.PSDIFF.ETA is {self.eta}, but the sampler '{self.name}' adds no noise: set "
                "MODEL.PSDIFF.ETA 0, or MODEL.PSDIFF.SAMPLER ddim."
            )


def build_scheduler(settings: SamplerSettings) -> "DDIMScheduler | DPMSolverMultistepScheduler":
    """A new scheduler of diffusers for the times of the settings, which it counts k - 1 .. 0."""
    # Building takes longer than copying, and every trajectory needs its own.
    return copy.deepcopy(_pristine_scheduler(settings))


@functools.lru_cache(maxsize=64)
def _pristine_scheduler(
    settings: SamplerSettings,
) -> "DDIMScheduler | DPMSolverMultistepScheduler":
    # Imported here: diffusers takes a second to load and training does not need it.
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
        # diffusers multiplies the betas up in float32; the noisy end needs more (ab = 2e-9).
        scheduler.alphas_cumprod = alphas_cumprod
        scheduler.set_timesteps(settings.steps)
        return scheduler
    with warnings.catch_warnings():
        # diffusers advises against the noise form, but Table V of the paper has it; and its arrays
        # are made in a way that NumPy 2 has deprecated.
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
    """The schedule (k,) with lambda compressed below ``LAMBDA_MIN``."""
    excess = alphas_cumprod.logit() / 2 - LAMBDA_MIN
    compressed = torch.sigmoid(2 * (LAMBDA_MIN + LAMBDA_SLOPE * excess))
    return torch.where(excess < 0, compressed, alphas_cumprod)


class Trajectory:
    """One way from noise to the prediction, for one batch.

    Every batch needs its own, because multistep solvers remember the predictions before.

    Args:
        codec: ranges of the two signals.
        settings: which steps.
        renewable: whether proposals may be drawn anew on the way, see :meth:`renew`.
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
        """One step from the present time of the list to the next.

        The last prediction is the answer, so no step follows it: k predictions, k - 1 steps.

        Args:
            boxes_start: (B, N, 4) predicted clean box signal; clamped to +-s1 here.
            reid_start: (B, N, D) predicted embeddings of any length; brought to the signal's here.
            boxes_signal, reid_signal: the signals at the present time.
            noise: (B, N, 4 + D) standard normal, needed if eta > 0.

        Returns:
            The two signals at the next time.
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
        """Notes which proposals, (B, N) bool, were drawn anew after the last step.

        Past predictions of such a row are about another proposal, and a multistep solver would
        extrapolate from them. So it starts over: its next step has order 1, the one after it order
        2, and so on. The lower orders run alongside, all on the same predictions.
        """
        if self._age is None:
            self._age = torch.full(rows.shape, len(self.times), device=rows.device)
        self._age = self._age.masked_fill(rows, 0)


def unit_reid(reid_feats: Tensor) -> Tensor:
    """L2-normalised embeddings, the form in which a model gives them away."""
    return F.normalize(reid_feats, dim=-1)
