# SPDX-License-Identifier: Apache-2.0
"""Batches of elements of the same group."""

from collections import defaultdict
from collections.abc import Iterator

import numpy as np
from torch.utils.data.sampler import BatchSampler, Sampler


class GroupedBatchSampler(BatchSampler):
    """Groups the indices of another sampler into full batches of one group each.

    The order of the sampler is kept within a group. Elements of groups that never fill a batch are
    not returned.

    Args:
        sampler: ``Sampler``, usually an infinite one.
        group_ids: (size,) group of each element.
        batch_size: Batch size.
    """

    def __init__(self, sampler, group_ids, batch_size):
        if not isinstance(sampler, Sampler):
            raise ValueError(f"sampler must be a torch.utils.data.Sampler, got {sampler!r}")
        self.sampler = sampler
        self.group_ids = np.asarray(group_ids)
        assert self.group_ids.ndim == 1, f"group_ids must be 1-d, got {self.group_ids.shape}"
        self.batch_size = batch_size
        # kept between iterations, so that no index is lost if a loop is left
        self.buffer_per_group = defaultdict(list)

    def __iter__(self) -> Iterator[list[int]]:
        for index in self.sampler:
            buffer = self.buffer_per_group[self.group_ids[index]]
            buffer.append(index)
            if len(buffer) == self.batch_size:
                yield buffer[:]
                buffer.clear()

    def __len__(self) -> int:
        raise NotImplementedError("the number of batches depends on the order of the sampler")
