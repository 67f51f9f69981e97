# SPDX-License-Identifier: Apache-2.0
"""From a time budget to a number of denoising steps.

The time of an image is a fixed part (backbone, selection of detections) plus the same again for
every step, so two measurements on this machine tell how many steps a budget allows.
"""

import logging
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import torch
from detectron2.structures import Instances
from detectron2.utils import comm
from torch import Tensor

from psdiff.inference_settings import InferenceSettings

logger = logging.getLogger(__name__)

_MIN_RUNS, _MAX_RUNS = 3, 20
_ENOUGH_MS = 200.0
"""Short runs are repeated until they took this long together."""


@dataclass(frozen=True)
class Calibration:
    """Time of one image of a given size on this machine: ``fixed_ms + steps * step_ms``."""

    image_size: tuple[int, int]
    fixed_ms: float
    step_ms: float

    def latency_ms(self, steps: int) -> float:
        """Expected time of an image."""
        return self.fixed_ms + steps * self.step_ms


def steps_within(budget_ms: float, calibration: Calibration, max_steps: int) -> int:
    """The greatest number of steps within a budget, from 1 (even if that takes longer) to
    ``max_steps``."""
    for steps in range(max_steps, 1, -1):
        if calibration.latency_ms(steps) <= budget_ms:
            return steps
    return 1


def calibrate(
    encode: Callable[[], object],
    denoise: Callable[[int], object],
    image_size: tuple[int, int],
    device: torch.device,
) -> Calibration:
    """Measures one image.

    Args:
        encode: computes the features of an image of that size.
        denoise: goes from given features to detections in the given number of steps.
        image_size: (h, w). device: on which both run; a CUDA device is waited for.
    """
    encode_ms = median_ms(encode, device)
    one, three = (median_ms(partial(denoise, k), device) for k in (1, 3))
    step_ms = max((three - one) / 2, 0.0)
    return Calibration(image_size, encode_ms + max(one - step_ms, 0.0), step_ms)


def median_ms(function: Callable[[], object], device: torch.device) -> float:
    """Median time of a call in milliseconds, after one call to warm up."""
    times: list[float] = []
    function()
    while len(times) < _MIN_RUNS or (sum(times) < _ENOUGH_MS and len(times) < _MAX_RUNS):
        _wait_for(device)
        start = time.perf_counter()
        function()
        _wait_for(device)
        times.append((time.perf_counter() - start) * 1e3)
    return statistics.median(times)


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


class TimedModel(Protocol):
    """What is needed of a PSDiff."""

    backbone: Callable[[Tensor], dict[str, Tensor]]

    @property
    def device(self) -> torch.device:
        """Where it runs."""

    def preprocess_image(self, batched_inputs: list[dict]) -> Any:
        """An ``ImageList``."""

    def reverse_process(self, settings: InferenceSettings) -> Any:
        """A ``psdiff.inference.ReverseProcess``."""


class LatencyMeter:
    """Measures a model once for each image size and setting, and remembers the figures.

    Args:
        test_size: (h, w) of the largest image that the config's resizing makes, for which a budget
            holds; None: not known, the first image stands for it.
    """

    def __init__(self, test_size: tuple[int, int] | None = None) -> None:
        self.test_size = test_size
        self._calibrations: dict[tuple[tuple[int, int], InferenceSettings, str], Calibration] = {}
        self._agreed: dict[InferenceSettings, int] = {}

    @torch.no_grad()
    def calibrate(
        self, model: TimedModel, settings: InferenceSettings, image_size: tuple[int, int]
    ) -> Calibration:
        """The time of one image (h, w) with these settings; measured the first time."""
        plain = settings.changed(steps=1, latency_budget_ms=0.0, embed_detections=False)
        height, width = image_size
        size = (height, width)
        key = (size, plain, str(model.device))
        if key not in self._calibrations:
            generator = torch.Generator().manual_seed(0)  # the global one must not notice
            image = torch.randint(256, (3, *size), generator=generator, dtype=torch.uint8)

            def encode() -> dict[str, Tensor]:
                return model.backbone(model.preprocess_image([{"image": image}]).tensor)

            features = encode()

            def denoise(steps: int) -> list[Instances]:
                process = model.reverse_process(plain.changed(steps=steps))
                return process.detect(features, [size], [0])

            self._calibrations[key] = calibrate(encode, denoise, size, model.device)
        return self._calibrations[key]

    def agreed_steps(
        self, model: TimedModel, settings: InferenceSettings, image_size: tuple[int, int]
    ) -> int:
        """The number of steps for ``settings.latency_budget_ms``: the same for every image and,
        in a distributed run, for every process.

        It is found at the first call, in which all processes have to take part.
        """
        if settings not in self._agreed:
            calibration = self.calibrate(model, settings, self.test_size or image_size)
            ours = steps_within(settings.latency_budget_ms, calibration, settings.steps)
            steps = min(comm.all_gather(ours))
            _report(settings, calibration, steps)
            self._agreed[settings] = steps
        return self._agreed[settings]


def _report(settings: InferenceSettings, calibration: Calibration, steps: int) -> None:
    """Logs what was measured and chosen, and warns of a budget that cannot be kept."""
    budget, (h, w) = settings.latency_budget_ms, calibration.image_size
    logger.info(
        "Latency budget %.4g ms: %d of at most %d steps, about %.4g ms (measured for an image of "
        "%d x %d pixels: %.4g ms + %.4g ms per step).",
        budget, steps, settings.steps, calibration.latency_ms(steps), w, h,
        calibration.fixed_ms, calibration.step_ms,
    )  # fmt: skip
    if calibration.latency_ms(1) > budget:
        logger.warning(
            "MODEL.PSDIFF.LATENCY_BUDGET_MS %.4g is too short: one step, the least there is, takes "
            "about %.4g ms for an image of %d x %d pixels.",
            budget, calibration.latency_ms(1), w, h,
        )  # fmt: skip
