# SPDX-License-Identifier: Apache-2.0
"""Batches of elements of the same group."""

from collections import defaultdict
from collections.abc import Iterator

import numpy as np
from torch.utils.data.sampler import BatchSampler, Sampler


class GroupedBatchSampler(BatchSampler):
    """Gathers the indices of another sampler into full batches of one group each.

    Within a group, and for the order in which batches fill up, the sampler's order is kept.
    Elements of groups that never fill a batch are not given out.
    """

    def __init__(self, sampler, group_ids, batch_size):
        """
        Args:
            sampler: a ``Sampler``, in general an endless one.
            group_ids: (size,) the group of each element.
            batch_size: elements in a batch.
        """
        if not isinstance(sampler, Sampler):
            raise ValueError(f"sampler must be a torch.utils.data.Sampler, got {sampler!r}")
        self.sampler = sampler
        self.group_ids = np.asarray(group_ids)
        assert self.group_ids.ndim == 1, f"group_ids must be 1-d, got {self.group_ids.shape}"
        self.batch_size = batch_size
        # Kept from one iteration to the next, so that no index is lost where a loop is left.
        self.buffer_per_group = defaultdict(list)

    def __iter__(self) -> Iterator[list[int]]:
        for index in self.sampler:
            buffer = self.buffer_per_group[self.group_ids[index]]
            buffer.append(index)
            if len(buffer) == self.batch_size:
                yield buffer[:]
                buffer.clear()

    def __len__(self) -> int:
        raise NotImplementedError("how many batches fill up depends on the sampler's order")
