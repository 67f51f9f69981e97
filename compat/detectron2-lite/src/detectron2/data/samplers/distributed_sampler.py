# SPDX-License-Identifier: Apache-2.0
"""Samplers for distributed training and inference.

In training, all processes draw the same infinite stream of indices from the same seed, and each
takes every world_size-th of them.
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
    """Yields epochs of indices without end. Subclasses define ``_epoch``."""

    def __init__(self, shuffle: bool, seed: int | None):
        # collective: all processes must construct the sampler
        self._seed = int(comm.shared_random_seed() if seed is None else seed)
        self._shuffle = shuffle
        self._rank, self._world_size = comm.get_rank(), comm.get_world_size()

    def _epoch(self, generator: torch.Generator) -> torch.Tensor:
        """Returns the unshuffled indices of one epoch, of all processes."""
        raise NotImplementedError

    def _infinite_indices(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self._seed)
        while True:
            indices = self._epoch(generator)
            if self._shuffle:
                indices = indices[torch.randperm(len(indices), generator=generator)]
            yield from indices.tolist()

    def __iter__(self) -> Iterator[int]:
        yield from itertools.islice(self._infinite_indices(), self._rank, None, self._world_size)


class TrainingSampler(_EndlessSampler):
    """Yields permutations of ``range(size)`` without end.

    Args:
        size: Number of elements to sample from.
        shuffle: Whether to shuffle the indices.
        seed: Seed of the permutations, equal in all processes; by default a random seed, shared by
            all processes.
    """

    def __init__(self, size: int, shuffle: bool = True, seed: int | None = None):
        if not isinstance(size, int):
            raise TypeError(f"size of a {type(self).__name__} must be an int, got {size!r}")
        if size <= 0:
            raise ValueError(f"size of a {type(self).__name__} must be positive, got {size}")
        super().__init__(shuffle, seed)
        self._size = size

    def _epoch(self, generator: torch.Generator) -> torch.Tensor:
        return torch.arange(self._size)


class RandomSubsetTrainingSampler(TrainingSampler):
    """``TrainingSampler`` over a fixed random subset.

    Args:
        size: Number of elements of the whole set.
        subset_ratio: Fraction of the elements in the subset, in (0, 1].
        shuffle: Whether to shuffle the indices.
        seed_shuffle: Seed of the permutations.
        seed_subset: Seed of the subset.
    """

    def __init__(
        self,
        size: int,
        subset_ratio: float,
        shuffle: bool = True,
        seed_shuffle: int | None = None,
        seed_subset: int | None = None,
    ):
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
    """Repeats images with rare categories (Gupta et al., "LVIS", CVPR 2019).

    Args:
        repeat_factors: (size,) tensor of repetitions of each image per epoch. The fractional part
            is rounded at random in each epoch.
        shuffle: Whether to shuffle the images of an epoch.
        seed: See ``TrainingSampler``.
    """

    def __init__(self, repeat_factors, *, shuffle=True, seed=None):
        super().__init__(shuffle, seed)
        self._repeats = torch.trunc(repeat_factors)
        self._chance_of_another = repeat_factors - self._repeats

    @staticmethod
    def repeat_factors_from_category_frequency(dataset_dicts, repeat_thresh, sqrt=True):
        """Computes the repeat factors of images from the frequencies of their categories.

        A category in a fraction f of the images has the factor max(1, sqrt(repeat_thresh / f)). The
        factor of an image is the largest one of its categories, at least 1.

        Args:
            dataset_dicts: Records with ``annotations``.
            repeat_thresh: Fraction of the images below which a category is rare.
            sqrt: Whether to take the square root.
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
    """Yields every index once over all processes, in contiguous parts of about equal length.

    Args:
        size: Number of elements.
    """

    def __init__(self, size: int):
        assert size > 0, f"size must be positive, got {size}"
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
