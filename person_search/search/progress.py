# SPDX-License-Identifier: Apache-2.0
"""How far a run of ``index`` is: a bar in a terminal, a line now and then in a log file."""

import logging
import sys
import time

from tqdm import tqdm

logger = logging.getLogger(__name__)

LOG_EVERY = 30.0
"""Seconds between two lines where there is no terminal."""


class Progress:
    """Counts images, and shows the speed and the time that is left.

    Args:
        total: images, about. name: of the work.
        shown: a bar; None: a bar in a terminal, and lines in the log anywhere else. False: nothing.
    """

    def __init__(self, total: int, name: str, shown: bool | None = None) -> None:
        # a bar that is not shown would still take tqdm's lock, which forked processes share
        shows = sys.stderr.isatty() if shown is None else shown
        self._bar = tqdm(total=total, desc=name, unit="picture") if shows else None
        self._logs = shown is None and not shows
        self._total, self._name, self._done = total, name, 0
        self._start = self._last = time.monotonic()

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def update(self, pictures: int = 1) -> None:
        """Some more are done."""
        self._done += pictures
        if self._bar is not None:
            self._bar.update(pictures)
        now = time.monotonic()
        if self._logs and now - self._last >= LOG_EVERY:
            self._last = now
            logger.info("%s", self._line(now - self._start))

    def _line(self, seconds: float) -> str:
        speed = self._done / seconds
        left = max(self._total - self._done, 0) / speed if speed > 0 else 0.0
        return (
            f"{self._name}: {self._done} of {self._total} images, {speed:.1f} per second, about "
            f"{tqdm.format_interval(left)} left"
        )
