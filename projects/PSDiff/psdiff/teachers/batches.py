# SPDX-License-Identifier: Apache-2.0
"""Batches of P identities with K crops each, a pure function of seed and step.

Shape shorthand in this file: M crops of the training set.
"""

import itertools
from collections.abc import Iterator

import numpy as np
from torch import Tensor
from torch.utils.data import Sampler

from person_search.data.samplers import Sample
from person_search.schema import UNLABELED_PID
from psdiff.config import check_range


class IdentityBatches(Sampler[list[Sample]]):
    """Infinite batches of P identities with K crops each, and optional unlabeled crops.

    A pass covers each identity once, except for a remainder if P does not divide their number. A
    resumed training sets ``start_step``.

    Args:
        pids: Person ids (M,) of all crops.
        ids_per_batch: Identities per batch P.
        crops_per_id: Crops per identity K; repeated for identities with fewer crops.
        unlabeled_per_batch: Number of additional crops without identity.
        seed: Seed of the order.
    """

    def __init__(
        self,
        pids: Tensor,
        ids_per_batch: int,
        crops_per_id: int,
        unlabeled_per_batch: int = 0,
        seed: int = 0,
    ) -> None:
        check_range("TEACHER.IDS_PER_BATCH", ids_per_batch, 2)  # losses compare within a batch
        check_range("TEACHER.CROPS_PER_ID", crops_per_id, 2)
        ids = np.asarray(pids)
        self.rows = [np.flatnonzero(ids == p) for p in np.unique(ids[ids != UNLABELED_PID])]
        if len(self.rows) < 2:
            raise ValueError(
                "A teacher needs at least two labeled identities with readable images, but the "
                f"training set has {len(self.rows)}. Check DATASETS.TRAIN."
            )
        self.unlabeled = np.flatnonzero(ids == UNLABELED_PID)
        self.ids_per_batch = min(ids_per_batch, len(self.rows))
        self.crops_per_id = crops_per_id
        self.unlabeled_per_batch = unlabeled_per_batch if len(self.unlabeled) else 0
        self.seed, self.start_step = seed, 0

    @property
    def batch_size(self) -> int:
        """Number of crops in a batch."""
        return self.ids_per_batch * self.crops_per_id + self.unlabeled_per_batch

    def steps_per_epoch(self) -> int:
        """Returns the number of batches that cover the labeled crops, rounded up."""
        return -(-sum(map(len, self.rows)) // (self.ids_per_batch * self.crops_per_id))

    def __iter__(self) -> Iterator[list[Sample]]:
        per_pass = len(self.rows) // self.ids_per_batch
        for step in itertools.count(self.start_step):
            number, place = divmod(step, per_pass)
            order = np.random.default_rng((self.seed, 0, number)).permutation(len(self.rows))
            chosen = order[place * self.ids_per_batch : (place + 1) * self.ids_per_batch]
            batch = self._crops(chosen, np.random.default_rng((self.seed, 1, step)))
            first = step * self.batch_size
            yield [(row, first + i) for i, row in enumerate(batch)]

    def _crops(self, identities: np.ndarray, rng: np.random.Generator) -> list[int]:
        batch: list[int] = []
        for identity in identities:
            rows = self.rows[identity]
            few = len(rows) < self.crops_per_id
            batch += rng.choice(rows, self.crops_per_id, replace=few).tolist()
        if self.unlabeled_per_batch:
            batch += rng.choice(self.unlabeled, self.unlabeled_per_batch).tolist()
        return batch
