# SPDX-License-Identifier: Apache-2.0
"""The training loop of both stages, with averaged weights and exactly resumable checkpoints.

Iteration i draws all random numbers from a generator seeded by (seed, i), so a checkpoint needs no
random state, and a resumed training equals an uninterrupted one.
"""

import copy
import logging
import math
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from tqdm import tqdm

from person_search.utils.files import write_atomically

logger = logging.getLogger(__name__)

Loss = Callable[[torch.Generator], dict[str, Tensor]]
"""Draws a batch and returns its losses; their sum is minimized."""


@dataclass(frozen=True)
class Schedule:
    """Length and learning rate of a training.

    The rate rises over ``warmup`` iterations, stays constant, and falls linearly to a twentieth
    over the last ``decay_share`` of all iterations.

    Attributes:
        iterations: Number of iterations.
        lr: Highest learning rate.
        weight_decay: Weight decay.
        warmup: Iterations of the warm-up.
        decay_share: Share of the iterations with a falling rate.
        ema: Decay of the averaged weights.
        clip: Maximum norm of the gradient.
        log_every: Iterations between log lines.
        checkpoint_every: Iterations between checkpoints.
    """

    iterations: int
    lr: float
    weight_decay: float = 0.01
    warmup: int = 100
    decay_share: float = 0.4
    ema: float = 0.999
    clip: float = 1.0
    log_every: int = 100
    checkpoint_every: int = 500

    def __post_init__(self) -> None:
        if self.iterations < 1:
            raise ValueError(f"iterations is {self.iterations}; it must be at least 1")

    def rate(self, iteration: int) -> float:
        """Returns the learning rate of an iteration, counted from 0."""
        rise = min(1.0, (iteration + 1) / max(1, self.warmup))
        left = (self.iterations - iteration) / max(1.0, self.decay_share * self.iterations)
        return self.lr * rise * max(0.05, min(1.0, left))


class Averager:
    """Exponential moving average of all weights, with a lower decay at the beginning."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.model = copy.deepcopy(model).requires_grad_(False)

    @torch.no_grad()
    def update(self, model: nn.Module, iteration: int) -> None:
        """Adds the weights of one iteration, counted from 0."""
        decay = min(self.decay, (1 + iteration) / (10 + iteration))
        averages, weights = list(self.model.parameters()), list(model.parameters())
        torch._foreach_lerp_(averages, weights, 1 - decay)


class Stage:
    """One training, from the first iteration to the last or to a deadline.

    Args:
        name: Name in messages and of the checkpoint.
        model: Model to train in place; after :meth:`run` it holds the averaged weights.
        loss: See :data:`Loss`.
        schedule: Length and learning rate.
        folder: Folder of the checkpoint ``<name>.pt``; None to write none.
        seed: Seed of the training.

    Attributes:
        history: Mean losses of every ``log_every`` iterations.
    """

    def __init__(
        self,
        name: str,
        model: nn.Module,
        loss: Loss,
        schedule: Schedule,
        folder: str | os.PathLike | None = None,
        seed: int = 0,
    ) -> None:
        self.name, self.model, self.loss = name, model, loss
        self.schedule, self.seed = schedule, seed
        self.path = None if folder is None else Path(folder) / f"{name}.pt"
        self.average = Averager(model, schedule.ema)
        self.optimizer = torch.optim.AdamW(
            model.parameters(), lr=schedule.lr, weight_decay=schedule.weight_decay, foreach=True
        )
        self.iteration = 0
        self.history: list[dict[str, float]] = []

    @property
    def finished(self) -> bool:
        """Whether all iterations are completed."""
        return self.iteration >= self.schedule.iterations

    def run(self, deadline: float = math.inf, progress: bool = True) -> bool:
        """Trains from the current iteration on.

        A checkpoint is written at the end, and the model then holds the averaged weights; call
        :meth:`load` before continuing.

        Args:
            deadline: Value of ``time.monotonic()`` at which to stop.
            progress: Whether to show a progress bar.

        Returns:
            Whether the training is finished.
        """
        self.model.train()
        sums: dict[str, float] = {}
        started, first = time.monotonic(), self.iteration
        total, off = self.schedule.iterations, not progress
        with tqdm(initial=first, total=total, desc=self.name, mininterval=2.0, disable=off) as bar:
            while not self.finished and time.monotonic() < deadline:
                losses = self._step()
                bar.update()
                for key, value in losses.items():
                    sums[key] = sums.get(key, 0.0) + float(value)
                if self.iteration % self.schedule.log_every == 0:
                    self._log(sums, (time.monotonic() - started) / (self.iteration - first))
                    sums = {}
                if self.iteration % self.schedule.checkpoint_every == 0:
                    self.save()
        self.save()
        self.model.load_state_dict(self.average.model.state_dict())
        self.model.eval()
        return self.finished

    def _step(self) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(self.seed * 10_000_019 + self.iteration)
        for group in self.optimizer.param_groups:
            group["lr"] = self.schedule.rate(self.iteration)
        losses = self.loss(generator)
        total = sum(losses.values())
        if not torch.isfinite(total):
            raise FloatingPointError(
                f"the loss of {self.name} is {float(total.detach())} at iteration "
                f"{self.iteration}; lower the learning rate."
            )
        self.optimizer.zero_grad()
        total.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), self.schedule.clip)
        self.optimizer.step()
        self.average.update(self.model, self.iteration)
        self.iteration += 1
        return {key: value.detach() for key, value in losses.items()}

    def _log(self, sums: dict[str, float], seconds: float) -> None:
        """Stores and logs mean losses; ``seconds`` is the time of one iteration."""
        means = {key: value / self.schedule.log_every for key, value in sums.items()}
        self.history.append(means)
        text = "  ".join(f"{key} {value:.4f}" for key, value in means.items())
        left = seconds * (self.schedule.iterations - self.iteration)
        logger.info(
            f"{self.name} {self.iteration}/{self.schedule.iterations}  {text}  "
            f"eta {left / 60:.1f} min"
        )

    # ---- checkpoint ---------------------------------------------------------------------------
    def save(self) -> None:
        """Writes the checkpoint, replacing an existing one atomically."""
        if self.path is None:
            return
        state = {
            "iteration": self.iteration,
            "model": self.model.state_dict(),
            "average": self.average.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "history": self.history,
            "schedule": asdict(self.schedule),
            "seed": self.seed,
        }
        write_atomically(self.path, lambda file: torch.save(state, file))

    def load(self) -> bool:
        """Loads the checkpoint; returns False if there is none.

        Raises:
            ValueError: If it is damaged, or of a training with other options.
        """
        if self.path is None or not self.path.is_file():
            return False
        try:
            state = torch.load(self.path, map_location="cpu", weights_only=True)
            mine = {"seed": self.seed, **asdict(self.schedule)}
            theirs = {"seed": state["seed"], **state["schedule"]}
            different = [k for k in mine if mine[k] != theirs.get(k)]
            if different:
                raise ValueError(
                    ", ".join(f"{k} was {theirs.get(k)}, is {mine[k]}" for k in different)
                )
            self.model.load_state_dict(state["model"])
            self.average.model.load_state_dict(state["average"])
            self.optimizer.load_state_dict(state["optimizer"])
        except (RuntimeError, KeyError, ValueError, EOFError) as e:
            raise ValueError(
                f"cannot resume from {self.path}: {e}. Start again without --resume."
            ) from e
        self.iteration, self.history = state["iteration"], state["history"]
        return True
