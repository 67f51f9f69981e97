# SPDX-License-Identifier: Apache-2.0
"""Samplers that several processes share.

For training, every process draws the same endless stream of indices from the same seed, and takes
each world_size-th of them. So images are balanced over processes without any exchange.
"""

import itertools
import logging
from collections import defaultdict
from collections.abc import Iterator

import torch
from detectron2.utils import comm
from torch.utils.data.sampler import Sampler

logger = logging.getLogger(__name__)


class _EndlessSampler(Sampler):
    """Epoch after epoch of indices. A subclass says what an epoch is."""

    def __init__(self, shuffle: bool, seed: int | None):
        # All processes must agree on a seed, so they must all come here.
        self._seed = int(comm.shared_random_seed() if seed is None else seed)
        self._shuffle = shuffle
        self._rank, self._world_size = comm.get_rank(), comm.get_world_size()

    def _epoch(self, generator: torch.Generator) -> torch.Tensor:
        """Returns the indices of one epoch, of all processes, in the order not shuffled."""
        raise NotImplementedError

    def _infinite_indices(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self._seed)
        while True:
            indices = self._epoch(generator)
            if self._shuffle:
                indices = indices[torch.randperm(len(indices), generator=generator)]
            yield from indices.tolist()

    def __iter__(self) -> Iterator[int]:
        # This process's share: each world_size-th index.
        yield from itertools.islice(self._infinite_indices(), self._rank, None, self._world_size)


class TrainingSampler(_EndlessSampler):
    """An endless stream of indices: permutation after permutation of ``range(size)``."""

    def __init__(self, size: int, shuffle: bool = True, seed: int | None = None):
        """
        Args:
            size: number of elements to draw from.
            shuffle: draw permutations; False goes through the elements in order.
            seed: of the permutations, the same in every process. None: the processes agree on one.
        """
        if not isinstance(size, int):
            raise TypeError(f"size of a {type(self).__name__} must be an int, got {size!r}")
        if size <= 0:
            raise ValueError(f"size of a {type(self).__name__} must be positive, got {size}")
        super().__init__(shuffle, seed)
        self._size = size

    def _epoch(self, generator: torch.Generator) -> torch.Tensor:
        return torch.arange(self._size)


class RandomSubsetTrainingSampler(TrainingSampler):
    """As ``TrainingSampler``, over a random subset that stays the same for the whole run."""

    def __init__(
        self,
        size: int,
        subset_ratio: float,
        shuffle: bool = True,
        seed_shuffle: int | None = None,
        seed_subset: int | None = None,
    ):
        """
        Args:
            size: number of elements of the whole set.
            subset_ratio: share of it that is used, in (0, 1].
            shuffle: see ``TrainingSampler``.
            seed_shuffle: seed of the permutations.
            seed_subset: seed of the choice of the subset.
        """
        super().__init__(size=size, shuffle=shuffle, seed=seed_shuffle)
        assert 0.0 < subset_ratio <= 1.0, f"subset_ratio must be in (0, 1], got {subset_ratio}"
        subset_size = int(size * subset_ratio)
        assert subset_size > 0, f"subset_ratio {subset_ratio} of {size} elements leaves none"
        if seed_subset is None:
            seed_subset = comm.shared_random_seed()
        chooser = torch.Generator().manual_seed(int(seed_subset))
        self._subset = torch.randperm(size, generator=chooser)[:subset_size]
        logger.info("Training on a random subset of %d of %d elements", subset_size, size)

    def _epoch(self, generator: torch.Generator) -> torch.Tensor:
        return self._subset


class RepeatFactorTrainingSampler(_EndlessSampler):
    """Shows images with rare categories more often (Gupta et al., "LVIS", CVPR 2019)."""

    def __init__(self, repeat_factors, *, shuffle=True, seed=None):
        """
        Args:
            repeat_factors: (size,) tensor; how often to show each image per epoch. The fraction
                is drawn anew for every epoch.
            shuffle: shuffle the images of an epoch.
            seed: as for ``TrainingSampler``.
        """
        super().__init__(shuffle, seed)
        self._repeats = torch.trunc(repeat_factors)
        self._chance_of_another = repeat_factors - self._repeats

    @staticmethod
    def repeat_factors_from_category_frequency(dataset_dicts, repeat_thresh, sqrt=True):
        """Returns the repeat factors of images, by the rarest category in each.

        A category in the share f of the images has r = max(1, sqrt(repeat_thresh / f)), an image
        the largest r of its categories, an image without any 1.

        Args:
            dataset_dicts: records with ``annotations``.
            repeat_thresh: share of the images below which a category counts as rare.
            sqrt: take the square root, or not.
        """
        images_with = defaultdict(int)
        categories = [
            {annotation["category_id"] for annotation in record["annotations"]}
            for record in dataset_dicts
        ]
        for category in itertools.chain.from_iterable(categories):
            images_with[category] += 1
        exponent = 0.5 if sqrt else 1.0
        factors = {
            category: max(1.0, (repeat_thresh * len(dataset_dicts) / count) ** exponent)
            for category, count in images_with.items()
        }
        return torch.tensor(
            [max((factors[c] for c in present), default=1.0) for present in categories],
            dtype=torch.float32,
        )

    def _epoch(self, generator: torch.Generator) -> torch.Tensor:
        draws = torch.rand(len(self._repeats), generator=generator)
        counts = self._repeats.long() + (draws < self._chance_of_another).long()
        return torch.arange(len(counts)).repeat_interleave(counts)


class InferenceSampler(Sampler):
    """Every index once, over all processes; each gets one contiguous stretch.

    The stretches may differ in length by one, and be empty.
    """

    def __init__(self, size: int):
        assert size > 0, f"there must be something to sample from, got size {size}"
        self._local_indices = self._get_local_indices(size, comm.get_world_size(), comm.get_rank())

    @staticmethod
    def _get_local_indices(total_size: int, world_size: int, rank: int) -> range:
        size, remainder = divmod(total_size, world_size)
        begin = rank * size + min(rank, remainder)
        end = begin + size + int(rank < remainder)
        return range(min(begin, total_size), min(end, total_size))

    def __iter__(self) -> Iterator[int]:
        yield from self._local_indices

    def __len__(self) -> int:
        return len(self._local_indices)
