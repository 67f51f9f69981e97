# SPDX-License-Identifier: Apache-2.0
"""Exponential moving average of the weights (SOLVER.EMA), which is what is evaluated."""

import logging
from typing import Any

import torch
from detectron2.engine import HookBase
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from person_search.engine.checkpoint import AtomicCheckpointer
from person_search.interface import SharesFrozenWeights

FINAL_NAME = "model_final_ema"


class AveragedWeights(AveragedModel):
    """A copy of a model in eval mode, whose weights are a moving average of those of the model.

    - Trained weights and floating point buffers (the statistics of batch norm) are averaged.
    - Integer buffers are copied.
    - Frozen weights are shared with the model and take no extra memory, also where they are not
      parameters: see :class:`person_search.interface.SharesFrozenWeights`.

    Update n = 1, 2, … keeps min(decay, (1 + n) / (10 + n)) of the average, so that the average
    follows quickly at the beginning.

    Args:
        model: Model, without the distributed wrapper.
        decay: Share of the average that an update keeps, 0 <= decay < 1.
    """

    def __init__(self, model: nn.Module, decay: float):
        if not 0 <= decay < 1:
            raise ValueError(f"SOLVER.EMA.DECAY is {decay}; it must be at least 0 and below 1.")
        super().__init__(model, multi_avg_fn=self._average, use_buffers=True)
        self.decay = decay
        self.frozen = {k for k, p in model.named_parameters() if not p.requires_grad}
        for mine, theirs in zip(self.module.parameters(), model.parameters(), strict=True):
            if not theirs.requires_grad:
                mine.data = theirs.data
            mine.requires_grad_(False)
        for mine, theirs in zip(self.module.modules(), model.modules(), strict=True):
            if isinstance(mine, SharesFrozenWeights):
                mine.share_frozen(theirs)
        self.eval()

    @property
    def num_updates(self) -> int:
        """Number of updates; the copy that the average starts from is not counted."""
        return max(int(self.n_averaged) - 1, 0)

    @property
    def started(self) -> bool:
        """Whether the average has been initialized."""
        return int(self.n_averaged) > 0

    @torch.no_grad()
    def _average(self, averaged: list[Tensor], current: list[Tensor], _: Tensor) -> None:
        """Updates tensors of one type and device in place."""
        own = [
            (mine, theirs)
            for mine, theirs in zip(averaged, current, strict=True)
            if mine.data_ptr() != theirs.data_ptr()  # frozen weights are shared
        ]
        if not own:
            return
        averaged, current = map(list, zip(*own, strict=True))
        if not averaged[0].is_floating_point():
            torch._foreach_copy_(averaged, current)
            return
        n = self.num_updates + 1
        get_ema_multi_avg_fn(min(self.decay, (1 + n) / (10 + n)))(averaged, current, n)

    def average_state(self) -> dict[str, Any]:
        """Returns the state for a checkpoint: number of updates, all but the frozen weights."""
        weights = self.module.state_dict()
        kept = {k: v for k, v in weights.items() if k not in self.frozen}
        return {"n_averaged": self.n_averaged, "weights": kept}

    def load_average_state(self, state: dict[str, Any]) -> None:
        """Restores what :meth:`average_state` returned."""
        self.module.load_state_dict(state["weights"], strict=False)
        self.n_averaged.copy_(state["n_averaged"])


class EMAHook(HookBase):
    """Updates the average during a training, and saves it with the checkpoints and at the end.

    Must be registered in all processes, before the checkpointer and the evaluation. The average is
    part of each checkpoint, as the state of this hook. At the end it is written as
    ``model_final_ema.pth``, an ordinary weight file.

    Args:
        average: Average of the model.
        model: Model that is trained, without the distributed wrapper.
        checkpointer: Checkpointer of ``average.module``, built with ``tag_last=False``.
    """

    def __init__(
        self, average: AveragedWeights, model: nn.Module, checkpointer: AtomicCheckpointer
    ):
        self.average, self.model, self.checkpointer = average, model, checkpointer

    def state_dict(self) -> dict[str, Any]:
        """Returns the average for a checkpoint."""
        return self.average.average_state() if self.average.started else {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores the average from a checkpoint."""
        self.average.update_parameters(self.model)  # for what a partial checkpoint lacks
        self.average.load_average_state(state_dict)

    def before_train(self) -> None:
        """Initializes the average with the weights, unless it was restored."""
        if self.average.started:
            return
        if self.trainer.start_iter > 0:
            logging.getLogger(__name__).warning(
                "The checkpoint holds no average of the weights (trained with SOLVER.EMA.ENABLED "
                "False?): the average starts at iteration %d.",
                self.trainer.start_iter,
            )
        self.average.update_parameters(self.model)

    def after_step(self) -> None:
        """Updates the average."""
        self.average.update_parameters(self.model)

    def after_train(self) -> None:
        """Writes the average of a finished training."""
        if self.trainer.iter >= self.trainer.max_iter:  # not after an error
            self.checkpointer.save(FINAL_NAME, iteration=self.trainer.max_iter - 1)


def load_average(model: nn.Module, checkpoint: dict[str, Any]) -> bool:
    """Loads the averaged weights of a training checkpoint into a model.

    Args:
        model: Model with the raw weights of the same checkpoint.
        checkpoint: Entries of the checkpoint that its loading has left over.

    Returns:
        Whether the checkpoint holds an average.
    """
    state = checkpoint.get("trainer", {}).get("hooks", {}).get(EMAHook.__qualname__)
    if state:
        model.load_state_dict(state["weights"], strict=False)
    return bool(state)
