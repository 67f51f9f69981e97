# SPDX-License-Identifier: Apache-2.0
"""Hooks that watch time and memory in detail; users import them from `detectron2.engine.hooks`."""

import logging
import os

import torch
from detectron2.utils import comm
from detectron2.utils.file_io import PathManager

from .train_loop import HookBase


class TorchProfiler(HookBase):
    """Runs `torch.profiler.profile` on the iterations that a predicate picks."""

    def __init__(self, enable_predicate, output_dir, *, activities=None, save_tensorboard=True):
        """
        Args:
            enable_predicate: trainer -> whether to profile the coming iteration.
            output_dir: folder for the traces.
            activities: as in `torch.profiler.profile`.
            save_tensorboard: write TensorBoard's format below `output_dir/log`; otherwise one
                chrome trace file an iteration.
        """
        self._enable_predicate = enable_predicate
        self._activities = activities
        self._output_dir = output_dir
        self._save_tensorboard = save_tensorboard
        self._profiler = None

    def before_step(self):
        if not self._enable_predicate(self.trainer):
            self._profiler = None
            return
        self._profiler = torch.profiler.profile(
            activities=self._activities,
            on_trace_ready=self._tensorboard_handler() if self._save_tensorboard else None,
            record_shapes=True,
            profile_memory=True,
            with_stack=True,
            with_flops=True,
        )
        self._profiler.__enter__()

    def _tensorboard_handler(self):
        folder = f"profiler-tensorboard-iter{self.trainer.iter}"
        path = os.path.join(self._output_dir, "log", folder)
        return torch.profiler.tensorboard_trace_handler(path, f"worker{comm.get_rank()}")

    def after_step(self):
        finished, self._profiler = self._profiler, None
        if finished is None:
            return
        finished.__exit__(None, None, None)
        if self._save_tensorboard:
            return
        PathManager.mkdirs(self._output_dir)
        name = f"profiler-trace-iter{self.trainer.iter}.json"
        finished.export_chrome_trace(os.path.join(self._output_dir, name))


class AutogradProfiler(TorchProfiler):
    """Runs `torch.autograd.profiler.profile` on the iterations that a predicate picks."""

    def __init__(self, enable_predicate, output_dir, *, use_cuda=True):
        """
        Args:
            enable_predicate: trainer -> whether to profile the coming iteration.
            output_dir: folder for the chrome trace files.
            use_cuda: also time CUDA kernels.
        """
        super().__init__(enable_predicate, output_dir, save_tensorboard=False)
        self._use_device = "cuda" if use_cuda and torch.cuda.is_available() else None

    def before_step(self):
        self._profiler = None
        if self._enable_predicate(self.trainer):
            self._profiler = torch.autograd.profiler.profile(use_device=self._use_device)
            self._profiler.__enter__()


class TorchMemoryStats(HookBase):
    """Logs and puts CUDA memory figures, the first few times."""

    def __init__(self, period=20, max_runs=10):
        """
        Args:
            period: iterations between two reports.
            max_runs: number of reports.
        """
        self._logger = logging.getLogger("detectron2.engine.hooks")
        self._period = period
        self._max_runs = max_runs
        self._runs = 0

    def after_step(self):
        if self._runs >= self._max_runs or not torch.cuda.is_available():
            return
        done = self.trainer.iter + 1
        if done % self._period and done != self.trainer.max_iter:
            return
        self._runs += 1
        figures = {
            "max_reserved_mem": torch.cuda.max_memory_reserved(),
            "reserved_mem": torch.cuda.memory_reserved(),
            "max_allocated_mem": torch.cuda.max_memory_allocated(),
            "allocated_mem": torch.cuda.memory_allocated(),
        }
        figures = {name: value / 2**20 for name, value in figures.items()}
        text = ", ".join(f"{name}: {value:.0f}MB" for name, value in figures.items())
        self._logger.info(f"iter: {self.trainer.iter}, {text}")
        for name, value in figures.items():
            self.trainer.storage.put_scalar(f"[metric]{name}", value, smoothing_hint=False)
        torch.cuda.reset_peak_memory_stats()
