# SPDX-License-Identifier: Apache-2.0
"""Everything about PSDiff's inference that may change without training again."""

import dataclasses
import difflib
import math
from dataclasses import dataclass

import torch

from psdiff.sampler import SamplerSettings


@dataclass(frozen=True)
class InferenceSettings:
    """How predictions are made from trained weights; every wrong value is refused at once.

    A field is the key of ``MODEL.PSDIFF`` with the same name in capitals, which explains it.
    ``max_detections`` is ``TEST.DETECTIONS_PER_IMAGE``.
    """

    steps: int = 8
    sampler: str = "ddim"
    solver_order: int = 2
    eta: float = 0.0
    latency_budget_ms: float = 0.0
    renewal: bool = False
    renewal_thresh: float = 0.5
    ensemble: bool = False
    score_thresh: float = 0.05
    nms_thresh: float = 0.5
    max_detections: int = 100
    embed_detections: bool = False
    query_draws: int = 1
    query_steps: int = 0
    reid_feedback: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        _ = self.sampler_settings, self.query_sampler_settings  # validates the sampler's fields
        if not (math.isfinite(self.latency_budget_ms) and self.latency_budget_ms >= 0):
            raise ValueError(
                f"MODEL.PSDIFF.LATENCY_BUDGET_MS is {self.latency_budget_ms}; it must be a time in "
                "milliseconds, or 0 for no budget."
            )
        if not 0 <= self.renewal_thresh <= 1:
            raise ValueError(
                f"MODEL.PSDIFF.RENEWAL_THRESH is {self.renewal_thresh}; it must be a score, "
                "between 0 and 1."
            )
        if self.query_steps < 0:
            raise ValueError(
                f"MODEL.PSDIFF.QUERY_STEPS is {self.query_steps}; it must be a number of steps, or 0 "
                "for that of the detections (STEPS)."
            )
        if not 0 <= self.reid_feedback <= 1:
            raise ValueError(
                f"MODEL.PSDIFF.REID_FEEDBACK is {self.reid_feedback}; it must be between 0 (the "
                "embedding is not fed back) and 1 (as in the paper)."
            )
        if self.query_draws < 1:
            raise ValueError(
                f"MODEL.PSDIFF.QUERY_DRAWS is {self.query_draws}; it must be at least 1."
            )

    @classmethod
    def from_config(cls, cfg) -> "InferenceSettings":
        """The settings that a config asks for."""
        names = [field.name for field in dataclasses.fields(cls)]
        values = {n: cfg.MODEL.PSDIFF[n.upper()] for n in names if n != "max_detections"}
        return cls(**values, max_detections=cfg.TEST.DETECTIONS_PER_IMAGE)

    def changed(self, **changes) -> "InferenceSettings":
        """The same settings except for some.

        Raises:
            ValueError: there is no such setting, or it cannot have this value.
        """
        names = [field.name for field in dataclasses.fields(self)]
        for name in changes:
            if name not in names:
                near = difflib.get_close_matches(name, names, n=1)
                hint = f"did you mean '{near[0]}'?" if near else f"there are {names}."
                raise ValueError(f"'{name}' is no setting of PSDiff's inference; {hint}")
        return dataclasses.replace(self, **changes)

    @property
    def sampler_settings(self) -> SamplerSettings:
        """Settings of the sampler for detections."""
        return SamplerSettings(self.sampler, self.steps, self.solver_order, self.eta)

    @property
    def query_sampler_settings(self) -> SamplerSettings:
        """Settings of the sampler for given boxes."""
        steps = self.query_steps or self.steps
        return SamplerSettings(self.sampler, steps, self.solver_order, self.eta)


def image_seed(seed: int, image_id: int) -> int:
    """Seed of an image's noise: depends on the two alone, not on the batch or the order."""
    return (seed * 1_000_003 + int(image_id)) % 2**63


def image_seeds(
    image_ids: list[int], seed: int, generator: torch.Generator | int | None = None
) -> list[int]:
    """Seeds of the noise of a batch.

    Args:
        image_ids: of the images.
        seed: MODEL.PSDIFF.SEED, used without a generator.
        generator: an int stands for another SEED. From a ``torch.Generator`` one number is drawn
            for each image, so that the same generator gives other noise the next time.
    """
    if isinstance(generator, torch.Generator):
        shape = (len(image_ids),)
        draws = torch.randint(2**62, shape, generator=generator, device=generator.device)
        return draws.tolist()
    seed = seed if generator is None else generator
    return [image_seed(seed, image_id) for image_id in image_ids]
