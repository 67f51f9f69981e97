# SPDX-License-Identifier: Apache-2.0
"""Compares how long several ways to the same result take, also on a machine that is not idle."""

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

CLOCKS = ("wall", "cpu")


@dataclass
class Timing:
    """Milliseconds of one variant and of that which it is compared with, one per repeat."""

    name: str
    times: list[float]
    against: list[float]

    @property
    def median(self) -> float:
        return statistics.median(self.times)

    @property
    def ratios(self) -> tuple[float, float, float]:
        """How many times as fast: median, lowest and highest of the repeats."""
        ratios = [a / b for a, b in zip(self.against, self.times, strict=True)]
        return statistics.median(ratios), min(ratios), max(ratios)


def check_clock(clock: str, device: str | torch.device) -> None:
    """Raises ValueError where the time of the process is not that of the work."""
    if clock == "cpu" and (torch.device(device).type != "cpu" or torch.get_num_threads() > 1):
        raise ValueError(
            f"--clock cpu with {torch.get_num_threads()} threads on {device}: the time of the "
            "process is that of an image with one thread on a CPU only. Set OMP_NUM_THREADS=1."
        )


def time_interleaved(
    variants: Mapping[str, Callable[[], object]],
    repeats: int,
    device: str | torch.device = "cpu",
    clock: str = "wall",
    warm_up: bool = True,
) -> dict[str, list[float]]:
    """Calls every variant once per repeat, in changing order.

    Work of others then slows all alike, so that ratios within a repeat mean something. A GPU is
    waited for before and after each call.

    Args:
        clock: ``wall``, or ``cpu`` for the time of this process alone.
        warm_up: call each once before; not needed where they have run already.

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
