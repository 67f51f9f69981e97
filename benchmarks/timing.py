# SPDX-License-Identifier: Apache-2.0
"""Times functions and compares variants of one computation, also on a busy machine."""

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

CLOCKS = ("wall", "cpu")


@dataclass
class Timing:
    """Times of one variant and of its reference.

    Attributes:
        name: Name of the variant.
        times: Milliseconds of the variant in each repeat.
        against: Milliseconds of the reference in each repeat.
    """

    name: str
    times: list[float]
    against: list[float]

    @property
    def median(self) -> float:
        """Median time of the variant in milliseconds."""
        return statistics.median(self.times)

    @property
    def ratios(self) -> tuple[float, float, float]:
        """Speed-up over the reference: median, minimum and maximum of the repeats."""
        ratios = [a / b for a, b in zip(self.against, self.times, strict=True)]
        return statistics.median(ratios), min(ratios), max(ratios)


def check_clock(clock: str, device: str | torch.device) -> None:
    """Checks that the clock measures the work.

    Raises:
        ValueError: If CPU time is asked for with several threads or on another device.
    """
    if clock == "cpu" and (torch.device(device).type != "cpu" or torch.get_num_threads() > 1):
        raise ValueError(
            f"--clock cpu with {torch.get_num_threads()} threads on {device}: CPU time is "
            "meaningful for one thread on a CPU only. Set OMP_NUM_THREADS=1."
        )


def time_interleaved(
    variants: Mapping[str, Callable[[], object]],
    repeats: int,
    device: str | torch.device = "cpu",
    clock: str = "wall",
    warm_up: bool = True,
) -> dict[str, list[float]]:
    """Calls every variant once per repeat, in changing order.

    Other load of the machine then slows down all variants alike, so that the ratios within a
    repeat are meaningful. A GPU is synchronized before and after each call.

    Args:
        variants: Functions by name.
        repeats: Number of timed calls of each variant.
        device: Device on which the functions run.
        clock: ``wall``, or ``cpu`` for the time of this process alone.
        warm_up: Calls each variant once before.

    Returns:
        Milliseconds of each variant in each repeat.
    """
    check_clock(clock, device)
    read = time.process_time if clock == "cpu" else time.perf_counter
    on_gpu = torch.device(device).type == "cuda"
    wait = torch.cuda.synchronize if on_gpu else (lambda: None)
    names = list(variants)
    times: dict[str, list[float]] = {name: [] for name in names}
    for repeat in range(-1 if warm_up else 0, repeats):
        turn = repeat % len(names)
        for name in names[turn:] + names[:turn]:
            wait()
            start = read()
            variants[name]()
            wait()
            if repeat >= 0:
                times[name].append(1e3 * (read() - start))
    return times


def timed(function: Callable, *args: Any, **kwargs: Any) -> tuple[tuple[float, float], Any]:
    """Calls a function; returns its wall-clock and CPU seconds, and its result."""
    wall, cpu = time.perf_counter(), time.process_time()
    result = function(*args, **kwargs)
    return (time.perf_counter() - wall, time.process_time() - cpu), result
