# SPDX-License-Identifier: Apache-2.0
"""The training loop of both stages: averaged weights, a bar, checkpoints that resume bit for bit.

All chance of iteration i comes from a generator seeded by (seed, i), so that a checkpoint need not
hold a random state, and an interrupted training goes on with the numbers it would have had.
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
    """How long and how fast to train.

    The rate rises over ``warmup`` iterations, stays, and falls linearly to a twentieth over the
    last ``decay_share`` of all.
    """

    iterations: int
    lr: float
    weight_decay: float = 0.01
    warmup: int = 100
    decay_share: float = 0.4
    ema: float = 0.999
    clip: float = 1.0
    """Greatest norm of the gradient."""
    log_every: int = 100
    checkpoint_every: int = 500

    def __post_init__(self) -> None:
        if self.iterations < 1:
            raise ValueError(f"iterations is {self.iterations}; it must be at least 1")

    def rate(self, iteration: int) -> float:
        """Learning rate of an iteration, counted from 0."""
        rise = min(1.0, (iteration + 1) / max(1, self.warmup))
        left = (self.iterations - iteration) / max(1.0, self.decay_share * self.iterations)
        return self.lr * rise * max(0.05, min(1.0, left))


class Averager:
    """Exponential moving average of all weights; follows faster in the beginning."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.model = copy.deepcopy(model).requires_grad_(False)

    @torch.no_grad()
    def update(self, model: nn.Module, iteration: int) -> None:
        decay = min(self.decay, (1 + iteration) / (10 + iteration))
        averages, weights = list(self.model.parameters()), list(model.parameters())
        torch._foreach_lerp_(averages, weights, 1 - decay)


class Stage:
    """One training, from the first iteration to the last or to a deadline.

    Args:
        name: for messages and the file of the checkpoint.
        model: trained in place; after :meth:`run` it holds the averaged weights.
        loss: see :data:`Loss`.
        schedule: lengths and rates.
        folder: of the checkpoint ``<name>.pt``; None: none is written.
        seed: of all chance in the training.
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
        self.name, self.model, self.loss, self.schedule, self.seed = (
            name, model, loss, schedule, seed)  # fmt: skip
        self.path = None if folder is None else Path(folder) / f"{name}.pt"
        self.average = Averager(model, schedule.ema)
        self.optimizer = torch.optim.AdamW(
            model.parameters(), lr=schedule.lr, weight_decay=schedule.weight_decay, foreach=True
        )
        self.iteration = 0
        self.history: list[dict[str, float]] = []
        """Mean losses of every ``log_every`` iterations."""

    @property
    def finished(self) -> bool:
        return self.iteration >= self.schedule.iterations

    def run(self, deadline: float = math.inf, progress: bool = True) -> bool:
        """Trains on from where it is.

        Args:
            deadline: of ``time.monotonic()``, at which to stop.
            progress: whether to show a bar.

        Returns:
            Whether the training is finished. Either way a checkpoint is written, and the model
            holds the averaged weights: :meth:`load` before going on.
        """
        self.model.train()
        sums: dict[str, float] = {}
        started, first = time.monotonic(), self.iteration
        bar = tqdm(initial=self.iteration, total=self.schedule.iterations, desc=self.name,
                   unit="it", mininterval=2.0, disable=not progress)  # fmt: skip
        with bar:
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
        """Keeps and prints mean losses; ``seconds`` is the time of one iteration."""
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
        """Writes the checkpoint; one that is there is replaced in one go."""
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
        """Takes up the checkpoint; returns False if there is none.

        Raises:
            ValueError: it is damaged, or of a training with other options.
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
                f"cannot go on from {self.path}: {e}. Start anew without --resume."
            ) from e
        self.iteration, self.history = state["iteration"], state["history"]
        return True
