# SPDX-License-Identifier: Apache-2.0
"""Metrics of a training run: an event storage, and writers that read it."""

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

_CURRENT_STORAGE_STACK: list["EventStorage"] = []


def get_event_storage() -> "EventStorage":
    """Returns the storage of the innermost ``with EventStorage(...)`` block.

    Raises:
        AssertionError: The call is outside of such a block.
    """
    assert has_event_storage(), (
        "no event storage is open: call this code inside a `with EventStorage(...)` block"
    )
    return _CURRENT_STORAGE_STACK[-1]


def has_event_storage() -> bool:
    """Returns whether the call is inside a ``with EventStorage(...)`` block."""
    return bool(_CURRENT_STORAGE_STACK)


class EventWriter:
    """Base class of writers that read events from the current storage."""

    def write(self):
        """Writes new events. Subclasses define it."""
        raise NotImplementedError

    def close(self):
        """Closes files."""


class _NewScalars:
    """Reads the scalars of a storage that are newer than those of the previous read."""

    def __init__(self, window_size: int):
        self._window_size = window_size
        self._last_iteration = -1

    def read(self, storage: "EventStorage") -> list[tuple[str, float, int]]:
        """Returns name, value and iteration of the new scalars."""
        latest = storage.latest_with_smoothing_hint(self._window_size)
        new = [
            (name, value, iteration)
            for name, (value, iteration) in latest.items()
            if iteration > self._last_iteration
        ]
        self._last_iteration = max([self._last_iteration, *(item[2] for item in new)])
        return new


class JSONWriter(EventWriter):
    """Appends scalars to a JSON file with one line per iteration.

    Args:
        json_file: Path of the file, which is created if necessary.
        window_size: Number of iterations for the median of smoothed scalars.
    """

    def __init__(self, json_file: str, window_size: int = 20):
        self._new_scalars = _NewScalars(window_size)
        self._file_handle = PathManager.open(json_file, "a")

    def write(self):
        """Appends the new scalars, each to the line of its iteration."""
        lines: dict[int, dict] = defaultdict(dict)
        for name, value, iteration in self._new_scalars.read(get_event_storage()):
            lines[iteration][name] = value
        for iteration, scalars in lines.items():
            scalars["iteration"] = iteration
            self._file_handle.write(json.dumps(scalars, sort_keys=True) + "\n")
        self._file_handle.flush()
        with suppress(AttributeError):  # remote files have no file descriptor
            os.fsync(self._file_handle.fileno())

    def close(self):
        """Closes the file."""
        self._file_handle.close()


class TensorboardXWriter(EventWriter):
    """Writes scalars, images and histograms to a TensorBoard event file.

    Args:
        log_dir: Folder of the event files.
        window_size: Number of iterations for the median of smoothed scalars.
        **kwargs: Further arguments of ``torch.utils.tensorboard.SummaryWriter``.
    """

    def __init__(self, log_dir: str, window_size: int = 20, **kwargs):
        self._new_scalars = _NewScalars(window_size)
        self._writer_args = dict(kwargs, log_dir=log_dir)

    @cached_property
    def _writer(self):
        # imported at the first write, because it is slow, and TensorBoard is optional
        from torch.utils.tensorboard import SummaryWriter

        return SummaryWriter(**self._writer_args)

    def write(self):
        """Writes the new scalars, and all images and histograms, which are then removed."""
        storage = get_event_storage()
        for scalar in self._new_scalars.read(storage):
            self._writer.add_scalar(*scalar)
        for name, image, iteration in storage._vis_data:
            self._writer.add_image(name, image, iteration)
        storage.clear_images()
        for histogram in storage._histograms:
            self._writer.add_histogram_raw(**histogram)
        storage.clear_histograms()

    def close(self):
        """Closes the file."""
        opened = vars(self).get("_writer")  # missing before the first write
        if opened is not None:
            opened.close()


class CommonMetricPrinter(EventWriter):
    """Logs one line with losses, times, learning rate, memory and estimated remaining time.

    Losses are the scalars with "loss" in their name. Other scalars are logged if their name
    contains "[metric]".

    Args:
        max_iter: Total number of iterations, for the remaining time.
        window_size: Number of iterations for the median of losses and the mean of times.
    """

    def __init__(self, max_iter: int | None = None, window_size: int = 20):
        self.logger = logging.getLogger("detectron2.utils.events")
        self._max_iter = max_iter
        self._window_size = window_size
        self._last_write: tuple[int, float] | None = None

    def _get_eta(self, storage: "EventStorage") -> str | None:
        if self._max_iter is None:
            return ""
        iteration = storage.iter
        if "time" in storage.histories():
            # a long window gives a stable estimate
            seconds = storage.history("time").median(1000) * (self._max_iter - iteration - 1)
            storage.put_scalar("eta_seconds", seconds, smoothing_hint=False)
        else:
            # without an IterationTimer: from the time since the previous line
            now = time.perf_counter()
            previous, self._last_write = self._last_write, (iteration, now)
            if previous is None:
                return None
            per_iteration = (now - previous[1]) / (iteration - previous[0])
            seconds = per_iteration * (self._max_iter - iteration - 1)
        return str(datetime.timedelta(seconds=int(seconds)))

    def _format_times(self, storage: "EventStorage") -> str:
        text = ""
        histories = storage.histories()
        for name in ("time", "data_time"):
            # missing in the first iterations and in other trainers
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
        """Logs the line, except after the last iteration."""
        storage = get_event_storage()
        if storage.iter == self._max_iter:
            # called by a hook after training
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
    """Stores the history of scalars, and recent images and histograms, of a training run.

    Code inside of a ``with EventStorage(...)`` block obtains it with ``get_event_storage()``.

    Args:
        start_iter: First iteration.
    """

    def __init__(self, start_iter: int = 0):
        self._history: dict[str, HistoryBuffer] = defaultdict(HistoryBuffer)
        self._smoothing_hints: dict[str, bool] = {}
        self._latest_scalars: dict[str, tuple[float, int]] = {}
        self._iter = start_iter
        self._current_prefix = ""
        self._vis_data: list[tuple] = []
        self._histograms: list[dict] = []

    def put_scalar(self, name, value, smoothing_hint: bool = True, cur_iter: int | None = None):
        """Adds a value to the history of a scalar.

        Args:
            name: Name of the scalar, without the current name scope.
            value: Number or scalar tensor.
            smoothing_hint: Whether writers should show the median over a window, as for noisy
                losses. It must always be the same for a name.
            cur_iter: Iteration of the value, by default the current one.
        """
        name = self._current_prefix + name
        cur_iter = self._iter if cur_iter is None else cur_iter
        value = float(value)
        # the latest value is set last, for writers in other threads
        known_hint = self._smoothing_hints.setdefault(name, smoothing_hint)
        self._history[name].update(value, cur_iter)
        self._latest_scalars[name] = (value, cur_iter)
        assert known_hint == smoothing_hint, (
            f"Scalar {name} was put with a different smoothing_hint!"
        )

    def put_scalars(self, *, smoothing_hint: bool = True, cur_iter: int | None = None, **kwargs):
        """Adds several scalars, given as keyword arguments; see ``put_scalar``."""
        for name, value in kwargs.items():
            self.put_scalar(name, value, smoothing_hint=smoothing_hint, cur_iter=cur_iter)

    def put_image(self, img_name, img_tensor):
        """Adds an image for TensorBoard.

        Args:
            img_name: Name of the image.
            img_tensor: (3, H, W) RGB image, uint8 in [0, 255] or float in [0, 1].
        """
        self._vis_data.append((img_name, img_tensor, self._iter))

    def put_histogram(self, hist_name, hist_tensor, bins: int = 1000):
        """Adds a histogram of the values of a tensor for TensorBoard.

        Args:
            hist_name: Name of the histogram.
            hist_tensor: Tensor of any shape.
            bins: Number of bins between the minimum and the maximum.
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
        """Returns the history of a scalar.

        Raises:
            KeyError: The scalar does not exist.
        """
        found = self._history.get(name)
        if found is None:
            raise KeyError(f"No history metric available for {name}!")
        return found

    def histories(self) -> dict[str, HistoryBuffer]:
        """Returns the histories of all scalars by name."""
        return self._history

    def latest(self) -> dict[str, tuple[float, int]]:
        """Returns the latest value and its iteration of all scalars by name."""
        return self._latest_scalars

    def latest_with_smoothing_hint(self, window_size: int = 20) -> dict:
        """Returns the value to show and the latest iteration of all scalars by name.

        The value is the median over the last ``window_size`` iterations for scalars with a
        smoothing hint, otherwise the latest value.
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
        """Returns the number of values of ``name`` in its last ``window_size`` iterations."""
        values = self._history[name].values()
        first_inside = values[-1][1] - window_size + 1
        count = 0
        for _, iteration in reversed(values):
            if iteration < first_inside:
                break
            count += 1
        return count

    def smoothing_hints(self) -> dict[str, bool]:
        """Returns the smoothing hints of all scalars by name."""
        return self._smoothing_hints

    def step(self):
        """Increments the iteration."""
        self._iter += 1

    @property
    def iter(self) -> int:
        """The current iteration, from 0; the trainer sets it."""
        return self._iter

    @iter.setter
    def iter(self, value):
        self._iter = int(value)

    @property
    def iteration(self) -> int:
        """Alias of ``iter``."""
        return self._iter

    @contextmanager
    def name_scope(self, name):
        """Context manager that adds the prefix ``name/`` to scalars. Scopes cannot be nested."""
        previous = self._current_prefix
        self._current_prefix = name.rstrip("/") + "/"
        yield
        self._current_prefix = previous

    def clear_images(self):
        """Removes all images."""
        self._vis_data = []

    def clear_histograms(self):
        """Removes all histograms."""
        self._histograms = []

    def __enter__(self):
        _CURRENT_STORAGE_STACK.append(self)
        return self

    def __exit__(self, exc_type, exc_val, exc_tb):
        assert _CURRENT_STORAGE_STACK[-1] is self
        _CURRENT_STORAGE_STACK.pop()
