# SPDX-License-Identifier: Apache-2.0
"""Inference settings of PSDiff, which can be changed without retraining, and seeds of the noise."""

import dataclasses
import difflib
import math
from dataclasses import dataclass

import torch
from detectron2.config import CfgNode

from psdiff.config import check_range
from psdiff.sampler import SamplerSettings


@dataclass(frozen=True)
class InferenceSettings:
    """Settings of the inference; invalid values raise ValueError on construction.

    Each field is documented at the key of the same name in ``MODEL.PSDIFF``. ``max_detections`` is
    ``TEST.DETECTIONS_PER_IMAGE``.
    """

    steps: int = 8
    num_proposals_test: int = 0
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
        check_range("NUM_PROPOSALS_TEST", self.num_proposals_test, 0)
        check_range("RENEWAL_THRESH", self.renewal_thresh, 0, 1)
        check_range("QUERY_STEPS", self.query_steps, 0)
        check_range("REID_FEEDBACK", self.reid_feedback, 0, 1)
        check_range("QUERY_DRAWS", self.query_draws, 1)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> "InferenceSettings":
        """Reads the settings of a config."""
        names = [field.name for field in dataclasses.fields(cls)]
        values = {n: cfg.MODEL.PSDIFF[n.upper()] for n in names if n != "max_detections"}
        return cls(**values, max_detections=cfg.TEST.DETECTIONS_PER_IMAGE)

    def changed(self, **changes) -> "InferenceSettings":
        """Returns a copy with some settings changed.

        Raises:
            ValueError: If a setting is unknown or its value invalid.
        """
        names = [field.name for field in dataclasses.fields(self)]
        for name in changes:
            if name not in names:
                near = difflib.get_close_matches(name, names, n=1)
                hint = f"did you mean '{near[0]}'?" if near else f"available: {names}."
                raise ValueError(f"unknown inference setting '{name}' of PSDiff; {hint}")
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
    """Returns the seed of an image's noise, which depends on neither batch nor order."""
    return (seed * 1_000_003 + int(image_id)) % 2**63


def image_seeds(
    image_ids: list[int], seed: int, generator: torch.Generator | int | None = None
) -> list[int]:
    """Returns the seeds of the noise of a batch.

    Args:
        image_ids: Ids of the images.
        seed: ``MODEL.PSDIFF.SEED``, used if ``generator`` is None.
        generator: An int replaces ``seed``. From a ``torch.Generator``, one number per image is
            drawn, so that its next use gives different noise.
    """
    if isinstance(generator, torch.Generator):
        shape = (len(image_ids),)
        draws = torch.randint(2**62, shape, generator=generator, device=generator.device)
        return draws.tolist()
    seed = seed if generator is None else generator
    return [image_seed(seed, image_id) for image_id in image_ids]
