# SPDX-License-Identifier: Apache-2.0
"""Progress of ``index``: a bar in a terminal, and an occasional line in a log file."""

import logging
import sys
import time
from collections import Counter
from collections.abc import Mapping

from tqdm import tqdm

logger = logging.getLogger(__name__)

LOG_EVERY = 30.0
"""Seconds between two lines where there is no terminal."""


class Progress:
    """Counts images and shows the speed and the remaining time; a context manager.

    Args:
        total: Estimated number of images.
        name: Name of the work.
        shown: True shows a bar, False nothing; None a bar in a terminal and log lines elsewhere.
    """

    def __init__(self, total: int, name: str, shown: bool | None = None) -> None:
        # a disabled bar would still take the lock of tqdm, which forked processes share
        has_bar = sys.stderr.isatty() if shown is None else shown
        self._bar = tqdm(total=total, desc=name, unit="image") if has_bar else None
        self._logs = shown is None and not has_bar
        self._total, self._name, self._done = total, name, 0
        self._seconds: Counter[str] = Counter()
        self._start = self._last = time.monotonic()

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def update(self, images: int = 1, seconds: Mapping[str, float] | None = None) -> None:
        """Counts finished images.

        Args:
            images: Number of images.
            seconds: Time of each stage of the work, in one thread.
        """
        self._done += images
        self._seconds.update(seconds or {})
        if self._bar is not None:
            self._bar.set_postfix_str(self.stages(), refresh=False)
            self._bar.update(images)
        now = time.monotonic()
        if self._logs and now - self._last >= LOG_EVERY:
            self._last = now
            speed = self._done / (now - self._start)
            left = max(self._total - self._done, 0) / speed if speed > 0 else 0.0
            logger.info(
                f"{self._name}: {self._done} of {self._total} images, {speed:.1f} per second, "
                f"about {tqdm.format_interval(left)} left"
                + (f" ({self.stages()} per second)" if self._seconds else "")
            )

    def stages(self) -> str:
        """Describes how many images a second one thread finishes in each stage."""
        spent = self._seconds.items()
        return ", ".join(f"{name} {self._done / time:.3g}" for name, time in spent if time > 0)
