# SPDX-License-Identifier: Apache-2.0
"""The order of training samples as a pure function of a seed.

Shape shorthand: N records, W processes, T images of one step over all processes.

The training stream is endless: epoch 0 in a random order, then epoch 1 in another, and so on. Its
``n``-th element has the *sample number* ``n`` and does not depend on the number of processes or
loader workers. A run that stops after ``k`` steps therefore continues with step ``k`` by computing
its position, and an augmentation seeded by the sample number (:func:`sample_seed`) is repeated
exactly.
"""

from collections.abc import Iterator, Sequence

import numpy as np
from detectron2.utils import comm
from torch.utils.data import Sampler

Sample = tuple[int, int]
"""(index of the record, sample number)."""


def sample_seed(seed: int, sample_number: int) -> int:
    """Returns the 63-bit seed of all random choices made in preparing a sample.

    Args:
        seed: Seed of the run, >= 0.
        sample_number: Position in the training stream, >= 0.
    """
    state = np.random.SeedSequence((seed, sample_number)).generate_state(1, np.uint64)
    return int(state[0] >> np.uint64(1))


class ResumableBatchSampler(Sampler[list[Sample]]):
    """Yields the samples of each training step of this process, endlessly.

    Each epoch is a permutation of the records, drawn from (seed, epoch). With ``landscape``, the T
    images of a step are either all wider than high or all not, which saves padding; all processes
    see the same kind of image in the same step.

    Args:
        size: Number of records (N), > 0.
        batch_size: Images of one step over all processes (T).
        seed: Seed of the order, >= 0, equal in all processes.
        shuffle: Whether to shuffle each epoch; False keeps the order of the data set.
        landscape: For each record, whether it is wider than high; None does not group.
        rank: Rank of this process. Default: that of the process group.
        world_size: Number of processes. Default: that of the process group.
    """

    def __init__(
        self,
        size: int,
        batch_size: int,
        *,
        seed: int,
        shuffle: bool = True,
        landscape: Sequence[bool] | None = None,
        rank: int | None = None,
        world_size: int | None = None,
    ):
        self.rank = comm.get_rank() if rank is None else rank
        self.world_size = comm.get_world_size() if world_size is None else world_size
        if size <= 0:
            raise ValueError(f"The training set has {size} records; at least 1 is needed.")
        if batch_size <= 0 or batch_size % self.world_size:
            raise ValueError(
                f"SOLVER.IMS_PER_BATCH is {batch_size}, but it must be a positive multiple of the "
                f"number of processes ({self.world_size}). Learning rate and iterations depend on "
                "the batch size: change SOLVER.BASE_LR, MAX_ITER, STEPS and WARMUP_ITERS with it, "
                "or let SOLVER.REFERENCE_WORLD_SIZE do so (README.md)."
            )
        if landscape is not None and len(landscape) != size:
            raise ValueError(f"landscape has {len(landscape)} entries for {size} records.")
        self.size, self.batch_size, self.seed = size, batch_size, seed
        self.shuffle, self.landscape = shuffle, landscape
        self.start_step = 0

    def __iter__(self) -> Iterator[list[Sample]]:
        step = 0
        if self.landscape is None:  # the place in the stream follows from the step alone
            stream, step = self._stream(self.start_step * self.batch_size), self.start_step
        else:  # grouping depends on all that came before; integers only, so replaying is cheap
            stream = self._stream(0)
        buckets: tuple[list[Sample], list[Sample]] = ([], [])
        for sample in stream:
            bucket = buckets[0 if self.landscape is None else int(self.landscape[sample[0]])]
            bucket.append(sample)
            if len(bucket) == self.batch_size:
                if step >= self.start_step:
                    yield bucket[self.rank :: self.world_size]
                step += 1
                bucket.clear()

    def _stream(self, start: int) -> Iterator[Sample]:
        epoch, offset = divmod(start, self.size)
        while True:
            order = np.arange(self.size)
            if self.shuffle:
                order = np.random.default_rng((self.seed, epoch)).permutation(self.size)
            for position in range(offset, self.size):
                yield int(order[position]), epoch * self.size + position
            epoch, offset = epoch + 1, 0

    def state_dict(self) -> dict[str, int | bool]:
        """Returns the state of the stream; with the step, it determines the position."""
        return {
            "seed": self.seed,
            "size": self.size,
            "batch_size": self.batch_size,
            "shuffle": self.shuffle,
            "grouped": self.landscape is not None,
        }

    def resume(self, state: dict[str, int | bool], step: int) -> list[str]:
        """Continues a stream at a step, with its seed.

        Args:
            state: Result of :meth:`state_dict` in the run to continue.
            step: Number of completed steps of that run.

        Returns:
            Names of settings that differ. If empty, the stream continues exactly; otherwise after
            the same number of images, in a different order.
        """
        mine = self.state_dict()
        differing = [k for k in mine if k != "seed" and mine[k] != state.get(k, mine[k])]
        self.seed = int(state.get("seed", self.seed))
        self.start_step = step * int(state.get("batch_size", self.batch_size)) // self.batch_size
        return differing
