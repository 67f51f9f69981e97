# SPDX-License-Identifier: Apache-2.0
"""Data sets built from lists and from other data sets."""

import contextlib
import copy
import itertools
import logging
import pickle
import random
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import torch
import torch.utils.data as data
from detectron2.utils.serialize import PicklableWrapper
from torch.utils.data.sampler import Sampler

logger = logging.getLogger(__name__)


def _shard_iterator_dataloader_worker(iterable: Iterable, chunk_size: int = 1) -> Iterator:
    """Yields the elements of this DataLoader worker, or all elements outside of a worker.

    Chunks of ``chunk_size`` elements are assigned to the workers in turn.
    """
    worker = data.get_worker_info()
    if worker is None or worker.num_workers == 1:
        yield from iterable
        return
    for position, item in enumerate(iterable):
        if (position // chunk_size) % worker.num_workers == worker.id:
            yield item


class _MapIterableDataset(data.IterableDataset):
    """``MapDataset`` of an iterable data set; elements mapped to None are skipped."""

    def __init__(self, dataset, map_func):
        self._dataset = dataset
        self._map_func = PicklableWrapper(map_func)

    def __len__(self) -> int:
        return len(self._dataset)

    def __iter__(self) -> Iterator:
        for element in self._dataset:
            mapped = self._map_func(element)
            if mapped is not None:
                yield mapped


class MapDataset(data.Dataset):
    """Applies a function to the elements of a data set.

    If the function returns None, a random other element is used instead.

    Args:
        dataset: Map-style or iterable data set.
        map_func: Function of an element; may return None.
    """

    def __new__(cls, dataset, map_func):
        """Returns an iterable data set if ``dataset`` is iterable."""
        is_iterable = isinstance(dataset, data.IterableDataset)
        return _MapIterableDataset(dataset, map_func) if is_iterable else super().__new__(cls)

    def __getnewargs__(self):
        # unpickling calls __new__ with arguments
        return (self._dataset, self._map_func)

    def __init__(self, dataset, map_func):
        self._dataset = dataset
        # lambdas and local functions must be sent to loader processes, too
        self._map_func = PicklableWrapper(map_func)
        # indices to fall back on: not known to give None
        self._usable = {*range(len(dataset))}
        self._rng = random.Random(42)

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, idx):
        index = int(idx)
        for attempt in itertools.count(1):
            mapped = self._map_func(self._dataset[index])
            if mapped is not None:
                self._usable.add(index)
                return mapped
            self._usable.discard(index)
            index = self._rng.sample(sorted(self._usable), k=1)[0]
            if attempt >= 3:
                logger.warning(
                    "The map function of a MapDataset returned None %d times in a row "
                    "in place of element %s",
                    attempt,
                    idx,
                )


class _TorchSerializedList:
    """A list stored as one buffer of pickled bytes.

    Worker processes share the memory of the buffer. They would copy a list of Python objects,
    because reading an object changes its reference count.
    """

    def __init__(self, lst: list):
        pickled = [np.frombuffer(pickle.dumps(item, protocol=-1), dtype=np.uint8) for item in lst]
        logger.info("Serializing %d elements to byte tensors and concatenating them all", len(lst))
        sizes = np.asarray([len(item) for item in pickled], dtype=np.int64)
        self._ends = torch.from_numpy(np.cumsum(sizes))
        self._bytes = torch.from_numpy(
            np.concatenate(pickled) if pickled else np.zeros(0, dtype=np.uint8)
        )
        logger.info("The data set takes %.2f MiB, serialized", len(self._bytes) / 2**20)

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, idx):
        begin = 0 if idx == 0 else self._ends[idx - 1].item()
        end = self._ends[idx].item()
        # a memoryview avoids a copy of the bytes
        return pickle.loads(memoryview(self._bytes[begin:end].numpy()))


_DEFAULT_DATASET_FROM_LIST_SERIALIZE_METHOD: Callable[[list], Any] = _TorchSerializedList


@contextlib.contextmanager
def set_default_dataset_from_list_serialize_method(new: Callable[[list], Any]):
    """Context manager that sets the storage of ``DatasetFromList(serialize=True)``."""
    global _DEFAULT_DATASET_FROM_LIST_SERIALIZE_METHOD
    before = _DEFAULT_DATASET_FROM_LIST_SERIALIZE_METHOD
    _DEFAULT_DATASET_FROM_LIST_SERIALIZE_METHOD = new
    try:
        yield
    finally:
        _DEFAULT_DATASET_FROM_LIST_SERIALIZE_METHOD = before


class DatasetFromList(data.Dataset):
    """A list as a data set.

    Args:
        lst: List of elements.
        copy: Whether to return deep copies, so that elements can be changed in place. A serialized
            list always does.
        serialize: True stores the list as pickled bytes, which worker processes share; a callable
            is called with the list and returns the object to store; False stores the list.
    """

    def __init__(self, lst: list, copy: bool = True, serialize: bool | Callable = True):
        self._copy = copy
        self._serialize = serialize
        if callable(serialize):
            self._lst = serialize(lst)
        elif serialize:
            self._lst = _DEFAULT_DATASET_FROM_LIST_SERIALIZE_METHOD(lst)
        else:
            self._lst = lst

    def __len__(self) -> int:
        return len(self._lst)

    def __getitem__(self, idx):
        element = self._lst[idx]
        # unpickling makes a copy
        return copy.deepcopy(element) if self._copy and not self._serialize else element


class ToIterableDataset(data.IterableDataset):
    """Iterates over the elements of a map-style data set in the order of a sampler.

    Args:
        dataset: Map-style data set.
        sampler: Sampler of indices.
        shard_sampler: Whether each worker of a DataLoader yields a different part of the indices.
            False if the sampler is sharded already.
        shard_chunk_size: Number of consecutive indices for the same worker.
    """

    def __init__(
        self,
        dataset: data.Dataset,
        sampler: Sampler,
        shard_sampler: bool = True,
        shard_chunk_size: int = 1,
    ):
        assert not isinstance(dataset, data.IterableDataset), dataset
        assert isinstance(sampler, Sampler), sampler
        self.dataset = dataset
        self.sampler = sampler
        self.shard_sampler = shard_sampler
        self.shard_chunk_size = shard_chunk_size

    def __iter__(self) -> Iterator:
        indices: Iterable = self.sampler
        if self.shard_sampler:
            indices = _shard_iterator_dataloader_worker(self.sampler, self.shard_chunk_size)
        for index in indices:
            yield self.dataset[index]

    def __len__(self) -> int:
        return len(self.sampler)


class AspectRatioGroupedDataset(data.IterableDataset):
    """Batches of images with the same orientation, which need less padding.

    Args:
        dataset: Iterable of dicts with ``width`` and ``height``.
        batch_size: Batch size.
    """

    def __init__(self, dataset, batch_size):
        self.dataset = dataset
        self.batch_size = batch_size
        self._buckets: list[list] = [[], []]

    def __iter__(self) -> Iterator[list]:
        for element in self.dataset:
            bucket = self._buckets[0 if element["width"] > element["height"] else 1]
            bucket.append(element)
            if len(bucket) == self.batch_size:
                batch = bucket[:]
                # cleared before the yield, where a loop may be left
                bucket.clear()
                yield batch
