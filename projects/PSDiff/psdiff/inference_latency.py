# SPDX-License-Identifier: Apache-2.0
"""Chooses the number of denoising steps that fits a time budget.

The time of an image is a constant part (backbone, selection of detections) plus an equal part for
each step, so two measurements on a machine determine how many steps a budget allows.
"""

import logging
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import torch
from detectron2.structures import Instances
from detectron2.utils import comm
from torch import Tensor

from psdiff.inference_settings import InferenceSettings

if TYPE_CHECKING:
    from psdiff.meta_arch import PSDiff

logger = logging.getLogger(__name__)

_MIN_RUNS, _MAX_RUNS = 3, 20
# Short runs are repeated up to this total time.
_ENOUGH_MS = 200.0


@dataclass(frozen=True)
class Calibration:
    """Time of an image on this machine: ``fixed_ms + steps * step_ms``.

    Attributes:
        image_size: Size (h, w) of the measured image.
        fixed_ms: Time independent of the number of steps, in milliseconds.
        step_ms: Time per step, in milliseconds.
    """

    image_size: tuple[int, int]
    fixed_ms: float
    step_ms: float

    def latency_ms(self, steps: int) -> float:
        """Returns the expected time of an image."""
        return self.fixed_ms + steps * self.step_ms


def steps_within(budget_ms: float, calibration: Calibration, max_steps: int) -> int:
    """Returns the largest number of steps within a budget, at least 1 and at most ``max_steps``."""
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
    """Measures the time of one image.

    Args:
        encode: Computes the features of an image of that size.
        denoise: Computes detections from the features in the given number of steps.
        image_size: Size (h, w) of the image.
        device: Device of both functions; CUDA devices are synchronized.
    """
    encode_ms = median_ms(encode, device)
    one, three = (median_ms(partial(denoise, k), device) for k in (1, 3))
    step_ms = max((three - one) / 2, 0.0)
    return Calibration(image_size, encode_ms + max(one - step_ms, 0.0), step_ms)


def median_ms(function: Callable[[], object], device: torch.device) -> float:
    """Returns the median time of a call in milliseconds, after one warm-up call."""
    wait = partial(torch.cuda.synchronize, device) if device.type == "cuda" else lambda: None
    times: list[float] = []
    function()
    while len(times) < _MIN_RUNS or (sum(times) < _ENOUGH_MS and len(times) < _MAX_RUNS):
        wait()
        start = time.perf_counter()
        function()
        wait()
        times.append((time.perf_counter() - start) * 1e3)
    return statistics.median(times)


class LatencyMeter:
    """Measures a model once for each image size and setting.

    Args:
        test_size: Largest image size (h, w) that the config's resizing produces; budgets apply to
            it. None: unknown, the first image is measured instead.
    """

    def __init__(self, test_size: tuple[int, int] | None = None) -> None:
        self.test_size = test_size
        self._calibrations: dict[tuple[tuple[int, int], InferenceSettings, str], Calibration] = {}
        self._agreed: dict[InferenceSettings, int] = {}

    @torch.no_grad()
    def calibrate(
        self, model: "PSDiff", settings: InferenceSettings, image_size: tuple[int, int]
    ) -> Calibration:
        """Returns the time of one image (h, w) with these settings; cached after the first call."""
        plain = settings.changed(steps=1, latency_budget_ms=0.0, embed_detections=False)
        height, width = image_size
        size = (height, width)
        key = (size, plain, str(model.device))
        if key not in self._calibrations:
            generator = torch.Generator().manual_seed(0)  # leaves the global generator untouched
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
        self, model: "PSDiff", settings: InferenceSettings, image_size: tuple[int, int]
    ) -> int:
        """Returns the number of steps for ``settings.latency_budget_ms``.

        It is the same for all images and processes. All processes must take part in the first call,
        which measures and logs it.
        """
        if settings in self._agreed:
            return self._agreed[settings]
        calibration = self.calibrate(model, settings, self.test_size or image_size)
        budget, (h, w) = settings.latency_budget_ms, calibration.image_size
        steps = min(comm.all_gather(steps_within(budget, calibration, settings.steps)))
        self._agreed[settings] = steps
        logger.info(
            "Latency budget %.4g ms: %d of at most %d steps, about %.4g ms (measured for an image "
            "of %d x %d pixels: %.4g ms + %.4g ms per step).",
            budget, steps, settings.steps, calibration.latency_ms(steps), w, h,
            calibration.fixed_ms, calibration.step_ms,
        )  # fmt: skip
        if calibration.latency_ms(1) > budget:
            logger.warning(
                "MODEL.PSDIFF.LATENCY_BUDGET_MS %.4g is too short: one step, the minimum, takes "
                "about %.4g ms for an image of %d x %d pixels.",
                budget, calibration.latency_ms(1), w, h,
            )  # fmt: skip
        return steps
