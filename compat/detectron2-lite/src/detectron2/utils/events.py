# SPDX-License-Identifier: Apache-2.0
"""Metrics of a training run: a storage that code anywhere can put values into, and writers."""

import datetime
import json
import logging
import os
import time
from collections import defaultdict
from contextlib import contextmanager, suppress
from functools import cached_property

import torch
from detectron2.utils.file_io import PathManager
from fvcore.common.history_buffer import HistoryBuffer

__all__ = [
    "get_event_storage",
    "has_event_storage",
    "JSONWriter",
    "TensorboardXWriter",
    "CommonMetricPrinter",
    "EventStorage",
]

_CURRENT_STORAGE_STACK: list["EventStorage"] = []


def get_event_storage() -> "EventStorage":
    """The storage of the innermost `with EventStorage(...)` block.

    Raises:
        AssertionError: no such block is open.
    """
    assert has_event_storage(), (
        "there is no event storage: this code needs an open `with EventStorage(...)` block"
    )
    return _CURRENT_STORAGE_STACK[-1]


def has_event_storage() -> bool:
    """Whether a `with EventStorage(...)` block is open."""
    return bool(_CURRENT_STORAGE_STACK)


class EventWriter:
    """Base class of what reads a storage from time to time and puts its content somewhere."""

    def write(self):
        raise NotImplementedError

    def close(self):
        pass


class _News:
    """Picks from a storage the scalars that came after the last time it was read."""

    def __init__(self, window_size: int):
        self._window_size = window_size
        self._last_iteration = -1

    def read(self, storage: "EventStorage") -> list[tuple[str, float, int]]:
        """(name, value, iteration) of scalars put at iterations after all those read before."""
        latest = storage.latest_with_smoothing_hint(self._window_size)
        news = [
            (name, value, iteration)
            for name, (value, iteration) in latest.items()
            if iteration > self._last_iteration
        ]
        self._last_iteration = max([self._last_iteration, *(item[2] for item in news)])
        return news


class JSONWriter(EventWriter):
    """Appends scalars to a file, one JSON object a line and one line an iteration."""

    def __init__(self, json_file: str, window_size: int = 20):
        """
        Args:
            json_file: file to append to; it is created when missing.
            window_size: iterations over which smoothed scalars take the median.
        """
        self._news = _News(window_size)
        self._file_handle = PathManager.open(json_file, "a")

    def write(self):
        # Scalars may have been put at different iterations; each goes to the line of its own.
        lines: dict[int, dict] = defaultdict(dict)
        for name, value, iteration in self._news.read(get_event_storage()):
            lines[iteration][name] = value
        for iteration, scalars in lines.items():
            scalars["iteration"] = iteration
            self._file_handle.write(json.dumps(scalars, sort_keys=True) + "\n")
        self._file_handle.flush()
        with suppress(AttributeError):  # remote file objects have no descriptor
            os.fsync(self._file_handle.fileno())

    def close(self):
        self._file_handle.close()


class TensorboardXWriter(EventWriter):
    """Writes scalars, images and histograms to a TensorBoard event file."""

    def __init__(self, log_dir: str, window_size: int = 20, **kwargs):
        """
        Args:
            log_dir: folder of the event files.
            window_size: iterations over which smoothed scalars take the median.
            kwargs: further arguments of `torch.utils.tensorboard.SummaryWriter`.
        """
        self._news = _News(window_size)
        self._writer_args = dict(kwargs, log_dir=log_dir)

    @cached_property
    def _writer(self):
        # Opened at the first write: the import is slow, and TensorBoard an optional package.
        from torch.utils.tensorboard import SummaryWriter

        return SummaryWriter(**self._writer_args)

    def write(self):
        storage = get_event_storage()
        for scalar in self._news.read(storage):
            self._writer.add_scalar(*scalar)

        # Images and histograms are heavy: written once, then dropped from the storage.
        for name, image, iteration in storage._vis_data:
            self._writer.add_image(name, image, iteration)
        storage.clear_images()
        for histogram in storage._histograms:
            self._writer.add_histogram_raw(**histogram)
        storage.clear_histograms()

    def close(self):
        opened = vars(self).get("_writer")  # no attribute before the first write
        if opened is not None:
            opened.close()


def _clock(seconds: float) -> str:
    """Whole seconds as "1 day, 2:03:04"."""
    return str(datetime.timedelta(seconds=int(seconds)))


class CommonMetricPrinter(EventWriter):
    """Logs one line with the losses, times, learning rate, memory and remaining time.

    Losses are the scalars with "loss" in their name; other scalars appear if their name contains
    "[metric]".
    """

    def __init__(self, max_iter: int | None = None, window_size: int = 20):
        """
        Args:
            max_iter: iterations of the whole training; without it no remaining time is given.
            window_size: iterations over which losses take the median and times the mean.
        """
        self.logger = logging.getLogger("detectron2.utils.events")
        self._max_iter = max_iter
        self._window_size = window_size
        self._last_write: tuple[int, float] | None = None

    def _get_eta(self, storage: "EventStorage") -> str | None:
        if self._max_iter is None:
            return ""
        iteration = storage.iter
        remaining = self._max_iter - iteration - 1
        if "time" in storage.histories():
            # Long window: the estimate should not jump.
            seconds = storage.history("time").median(1000) * remaining
            storage.put_scalar("eta_seconds", seconds, smoothing_hint=False)
            return _clock(seconds)
        # Nobody measures iterations: take the time since the previous line instead.
        now = time.perf_counter()
        previous, self._last_write = self._last_write, (iteration, now)
        if previous is None:
            return None
        per_iteration = (now - previous[1]) / (iteration - previous[0])
        return _clock(per_iteration * remaining)

    def _format_times(self, storage: "EventStorage") -> str:
        text = ""
        histories = storage.histories()
        for name in ("time", "data_time"):
            # Missing in the first iterations (the timer warms up) and in other trainers.
            if name in histories:
                mean = (
                    histories[name].global_avg()
                    if name == "time"
                    else histories[name].avg(storage.count_samples(name, self._window_size))
                )
                text += f"{name}: {mean:.4f}  last_{name}: {histories[name].latest():.4f}  "
        return text

    def _format_medians(self, storage: "EventStorage", part: str) -> str:
        return "  ".join(
            f"{name}: {history.median(storage.count_samples(name, self._window_size)):.4g}"
            for name, history in list(storage.histories().items())
            if part in name
        )

    def write(self):
        storage = get_event_storage()
        if storage.iter == self._max_iter:
            # The hooks that run after training also trigger writers; progress is over by then.
            return
        eta = self._get_eta(storage)
        lr = "N/A"
        if "lr" in storage.histories():
            lr = f"{storage.history('lr').latest():.5g}"
        memory = ""
        if torch.cuda.is_available():
            memory = f"max_mem: {torch.cuda.max_memory_allocated() / 2**20:.0f}M"
        fields = [
            f"eta: {eta}  " if eta else "",
            f"iter: {storage.iter}  ",
            self._format_medians(storage, "loss") + "  ",
            self._format_medians(storage, "[metric]") + "  ",
            self._format_times(storage),
            f" lr: {lr}  ",
            memory,
        ]
        self.logger.info(" " + "".join(fields))


class EventStorage:
    """Keeps the history of scalars, and recent images and histograms, of a training run.

    Opened as a context manager; code called inside finds it with `get_event_storage()`.
    """

    def __init__(self, start_iter: int = 0):
        """
        Args:
            start_iter: iteration at which the run starts.
        """
        self._history: dict[str, HistoryBuffer] = defaultdict(HistoryBuffer)
        self._smoothing_hints: dict[str, bool] = {}
        self._latest_scalars: dict[str, tuple[float, int]] = {}
        self._iter = start_iter
        self._current_prefix = ""
        self._vis_data: list[tuple] = []
        self._histograms: list[dict] = []

    def put_scalar(self, name, value, smoothing_hint: bool = True, cur_iter: int | None = None):
        """Add a value to the history of `name`.

        Args:
            name: name, completed by the current name scope.
            value: number or scalar tensor.
            smoothing_hint: writers should show a median over a window, as for noisy losses. One
                name always takes the same hint.
            cur_iter: iteration of the value; the current one by default.
        """
        name = self._current_prefix + name
        cur_iter = self._iter if cur_iter is None else cur_iter
        value = float(value)
        # The latest value goes in last: a writer in another thread then finds the rest in place.
        known_hint = self._smoothing_hints.setdefault(name, smoothing_hint)
        self._history[name].update(value, cur_iter)
        self._latest_scalars[name] = (value, cur_iter)
        assert known_hint == smoothing_hint, (
            f"Scalar {name} was put with a different smoothing_hint!"
        )

    def put_scalars(self, *, smoothing_hint: bool = True, cur_iter: int | None = None, **kwargs):
        """Add several scalars, given as keyword arguments; see `put_scalar`."""
        for name, value in kwargs.items():
            self.put_scalar(name, value, smoothing_hint=smoothing_hint, cur_iter=cur_iter)

    def put_image(self, img_name, img_tensor):
        """Add an image for TensorBoard.

        Args:
            img_name: its name.
            img_tensor: (3, H, W) RGB, uint8 in [0, 255] or float in [0, 1].
        """
        self._vis_data.append((img_name, img_tensor, self._iter))

    def put_histogram(self, hist_name, hist_tensor, bins: int = 1000):
        """Add the histogram of a tensor's values for TensorBoard.

        Args:
            hist_name: its name.
            hist_tensor: tensor of any shape.
            bins: number of equal bins between the smallest and the largest value.
        """
        low, high = hist_tensor.min().item(), hist_tensor.max().item()
        counts = torch.histc(hist_tensor, bins=bins)
        edges = torch.linspace(start=low, end=high, steps=bins + 1, dtype=torch.float32)
        self._histograms.append(
            {
                "tag": hist_name,
                "min": low,
                "max": high,
                "num": len(hist_tensor),
                "sum": float(hist_tensor.sum()),
                "sum_squares": float((hist_tensor**2).sum()),
                "bucket_limits": edges[1:].tolist(),
                "bucket_counts": counts.tolist(),
                "global_step": self._iter,
            }
        )

    def history(self, name) -> HistoryBuffer:
        """All values of one scalar.

        Raises:
            KeyError: it was never put.
        """
        found = self._history.get(name)
        if found is None:
            raise KeyError(f"No history metric available for {name}!")
        return found

    def histories(self) -> dict[str, HistoryBuffer]:
        """name -> history of every scalar."""
        return self._history

    def latest(self) -> dict[str, tuple[float, int]]:
        """name -> (latest value, its iteration)."""
        return self._latest_scalars

    def latest_with_smoothing_hint(self, window_size: int = 20) -> dict:
        """name -> (value to show, iteration of the latest value).

        The value is the median over the last `window_size` iterations for scalars put with a
        smoothing hint, the latest one for the others.
        """
        return {
            name: (
                self._history[name].median(self.count_samples(name, window_size))
                if self._smoothing_hints[name]
                else value,
                iteration,
            )
            for name, (value, iteration) in list(self._latest_scalars.items())
        }

    def count_samples(self, name, window_size: int = 20) -> int:
        """How many values of `name` fall into the `window_size` iterations before its latest."""
        values = self._history[name].values()
        first_inside = values[-1][1] - window_size + 1
        count = 0
        for _, iteration in reversed(values):
            if iteration < first_inside:
                break
            count += 1
        return count

    def smoothing_hints(self) -> dict[str, bool]:
        """name -> the hint it was put with."""
        return self._smoothing_hints

    def step(self):
        """Go on to the next iteration."""
        self._iter += 1

    @property
    def iter(self) -> int:
        """The current iteration. Set by the trainer, from 0."""
        return self._iter

    @iter.setter
    def iter(self, value):
        self._iter = int(value)

    @property
    def iteration(self) -> int:
        """The older name of `iter`."""
        return self._iter

    @contextmanager
    def name_scope(self, name):
        """Inside this block, scalars are put as `name/...`. Scopes do not nest."""
        previous = self._current_prefix
        self._current_prefix = name.rstrip("/") + "/"
        yield
        self._current_prefix = previous

    def clear_images(self):
        """Drop the images; called after they were written."""
        self._vis_data = []

    def clear_histograms(self):
        """Drop the histograms; called after they were written."""
        self._histograms = []

    def __enter__(self):
        _CURRENT_STORAGE_STACK.append(self)
        return self

    def __exit__(self, exc_type, exc_val, exc_tb):
        assert _CURRENT_STORAGE_STACK[-1] is self
        _CURRENT_STORAGE_STACK.pop()
