# SPDX-License-Identifier: Apache-2.0
"""Data loaders for training and testing, from a config or from explicit arguments."""

import logging
import operator
from collections.abc import Callable
from typing import Any

import torch
import torch.utils.data as torchdata
from detectron2.config import configurable
from detectron2.utils.comm import get_world_size
from detectron2.utils.env import seed_all_rng

from .common import AspectRatioGroupedDataset, DatasetFromList, MapDataset, ToIterableDataset
from .dataset_dicts import (
    filter_images_with_few_keypoints,
    filter_images_with_only_crowd_annotations,
    get_detection_dataset_dicts,
    load_proposals_into_dataset,
    print_instances_class_histogram,
)
from .dataset_mapper import DatasetMapper
from .samplers import (
    InferenceSampler,
    RandomSubsetTrainingSampler,
    RepeatFactorTrainingSampler,
    TrainingSampler,
)

__all__ = [
    "build_batch_data_loader",
    "build_detection_test_loader",
    "build_detection_train_loader",
    "filter_images_with_few_keypoints",
    "filter_images_with_only_crowd_annotations",
    "get_detection_dataset_dicts",
    "load_proposals_into_dataset",
    "print_instances_class_histogram",
    "trivial_batch_collator",
    "worker_init_reset_seed",
]


def trivial_batch_collator(batch):
    """Leaves a batch the list that it is."""
    return batch


def worker_init_reset_seed(worker_id: int) -> None:
    """Seeds ``random``, NumPy and PyTorch of a worker process, each worker differently."""
    seed_all_rng(torch.initial_seed() % 2**31 + worker_id)


def build_batch_data_loader(
    dataset,
    sampler,
    total_batch_size,
    *,
    aspect_ratio_grouping=False,
    num_workers=0,
    collate_fn=None,
    drop_last: bool = True,
    single_gpu_batch_size=None,
    prefetch_factor=2,
    persistent_workers=False,
    pin_memory=False,
    seed=None,
    **kwargs,
):
    """Makes a loader of batches for this process.

    Args:
        dataset: a data set with indices, or an iterable one.
        sampler: gives the indices of this process; None for an iterable data set.
        total_batch_size: batch size over all processes, a multiple of their number.
        aspect_ratio_grouping: make batches of images that are all wide or all high. Elements
            must be dicts with ``width`` and ``height``.
        num_workers: loader processes beside this one.
        collate_fn: turns a list of elements into a batch; None leaves it a list.
        drop_last: leave out an incomplete last batch.
        single_gpu_batch_size: batch size of this process, instead of ``total_batch_size``.
        prefetch_factor: batches each loader process is ahead by.
        persistent_workers: keep loader processes from one iteration to the next.
        pin_memory: have batches in page-locked memory.
        seed: of the generator that the loader processes are seeded from.
        **kwargs: further arguments of ``torch.utils.data.DataLoader``.

    Returns:
        An iterable of batches of this process's share.
    """
    batch_size = _local_batch_size(total_batch_size, single_gpu_batch_size)
    if _has_own_order(dataset, sampler):
        stream = dataset
    else:
        stream = ToIterableDataset(dataset, sampler, shard_chunk_size=batch_size)
    common = {
        "num_workers": num_workers,
        "worker_init_fn": worker_init_reset_seed,
        "prefetch_factor": prefetch_factor if num_workers > 0 else None,
        "persistent_workers": persistent_workers,
        "pin_memory": pin_memory,
        "generator": None if seed is None else torch.Generator().manual_seed(seed),
        **kwargs,
    }
    if not aspect_ratio_grouping:
        return torchdata.DataLoader(
            stream,
            batch_size=batch_size,
            drop_last=drop_last,
            collate_fn=trivial_batch_collator if collate_fn is None else collate_fn,
            **common,
        )
    assert drop_last, "aspect_ratio_grouping only gives full batches; it needs drop_last=True"
    # single elements from the processes, grouped here
    loader = torchdata.DataLoader(stream, collate_fn=operator.itemgetter(0), **common)
    batches = AspectRatioGroupedDataset(loader, batch_size)
    return batches if collate_fn is None else MapDataset(batches, collate_fn)


def _local_batch_size(total_batch_size: int | None, single_gpu_batch_size: int | None) -> int:
    if single_gpu_batch_size and total_batch_size:
        raise ValueError(
            "total_batch_size and single_gpu_batch_size exclude each other, "
            f"got {total_batch_size} and {single_gpu_batch_size}"
        )
    if single_gpu_batch_size:
        return single_gpu_batch_size
    share, rest = divmod(total_batch_size, get_world_size())
    assert share > 0 and rest == 0, (
        f"total_batch_size {total_batch_size} must be a positive multiple of the number of "
        f"processes, {get_world_size()}"
    )
    return share


def _has_own_order(dataset, sampler) -> bool:
    """Tells whether a data set is iterable. Such a one cannot have a sampler."""
    if not isinstance(dataset, torchdata.IterableDataset):
        return False
    assert sampler is None, f"an iterable data set cannot be sampled, got sampler {sampler!r}"
    return True


def _mapped_dataset(dataset, mapper) -> torchdata.Dataset:
    """Makes a data set of a list, and applies the mapper, if any, to its elements."""
    if isinstance(dataset, list):
        dataset = DatasetFromList(dataset, copy=False)
    return dataset if mapper is None else MapDataset(dataset, mapper)


def _train_sampler_from_config(cfg, dataset) -> torchdata.Sampler | None:
    if isinstance(dataset, torchdata.IterableDataset):
        return None
    name = cfg.DATALOADER.SAMPLER_TRAIN
    logging.getLogger(__name__).info("Using training sampler %s", name)
    if name == "TrainingSampler":
        return TrainingSampler(len(dataset))
    if name == "RepeatFactorTrainingSampler":
        factors = RepeatFactorTrainingSampler.repeat_factors_from_category_frequency(
            dataset, cfg.DATALOADER.REPEAT_THRESHOLD, sqrt=cfg.DATALOADER.REPEAT_SQRT
        )
        return RepeatFactorTrainingSampler(factors, seed=cfg.SEED)
    if name == "RandomSubsetTrainingSampler":
        return RandomSubsetTrainingSampler(len(dataset), cfg.DATALOADER.RANDOM_SUBSET_RATIO)
    raise ValueError(
        f"Unknown training sampler: DATALOADER.SAMPLER_TRAIN is {name!r}, known are "
        "TrainingSampler, RepeatFactorTrainingSampler and RandomSubsetTrainingSampler"
    )


def _train_records_from_config(cfg):
    wanted = {"filter_empty": cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS}
    if cfg.MODEL.KEYPOINT_ON:
        wanted["min_keypoints"] = cfg.MODEL.ROI_KEYPOINT_HEAD.MIN_KEYPOINTS_PER_IMAGE
    if cfg.MODEL.LOAD_PROPOSALS:
        wanted["proposal_files"] = cfg.DATASETS.PROPOSAL_FILES_TRAIN
    return get_detection_dataset_dicts(cfg.DATASETS.TRAIN, **wanted)


def _train_loader_from_config(cfg, mapper=None, *, dataset=None, sampler=None) -> dict[str, Any]:
    if dataset is None:
        dataset = _train_records_from_config(cfg)
    return {
        "dataset": dataset,
        "sampler": _train_sampler_from_config(cfg, dataset) if sampler is None else sampler,
        "mapper": DatasetMapper(cfg, True) if mapper is None else mapper,
        "total_batch_size": cfg.SOLVER.IMS_PER_BATCH,
        "aspect_ratio_grouping": cfg.DATALOADER.ASPECT_RATIO_GROUPING,
        "num_workers": cfg.DATALOADER.NUM_WORKERS,
    }


@configurable(from_config=_train_loader_from_config)
def build_detection_train_loader(
    dataset,
    *,
    mapper,
    sampler=None,
    total_batch_size,
    aspect_ratio_grouping=True,
    num_workers=0,
    collate_fn=None,
    **kwargs,
):
    """Makes an endless loader for training. Can also be called with a config.

    Args:
        dataset: a list of records, a data set with indices, or an iterable one.
        mapper: turns a record into a model's input; None if the data set does so itself.
        sampler: gives the indices; None means ``TrainingSampler``, or nothing for an iterable
            data set.
        total_batch_size: see ``build_batch_data_loader``, as for the arguments below.
        aspect_ratio_grouping: see there.
        num_workers: see there.
        collate_fn: see there.
        **kwargs: see there.
    """
    mapped = _mapped_dataset(dataset, mapper)
    if not _has_own_order(mapped, sampler):
        sampler = TrainingSampler(len(mapped)) if sampler is None else sampler
        assert isinstance(sampler, torchdata.Sampler), (
            f"sampler must be a torch.utils.data.Sampler, got {type(sampler)}"
        )
    return build_batch_data_loader(
        mapped,
        sampler,
        total_batch_size,
        aspect_ratio_grouping=aspect_ratio_grouping,
        num_workers=num_workers,
        collate_fn=collate_fn,
        **kwargs,
    )


def _test_loader_from_config(cfg, dataset_name, mapper=None) -> dict[str, Any]:
    names = [dataset_name] if isinstance(dataset_name, str) else dataset_name
    proposal_files = None
    if cfg.MODEL.LOAD_PROPOSALS:
        tests = list(cfg.DATASETS.TEST)
        proposal_files = [cfg.DATASETS.PROPOSAL_FILES_TEST[tests.index(name)] for name in names]
    dataset = get_detection_dataset_dicts(names, filter_empty=False, proposal_files=proposal_files)
    is_iterable = isinstance(dataset, torchdata.IterableDataset)
    return {
        "dataset": dataset,
        "mapper": DatasetMapper(cfg, False) if mapper is None else mapper,
        "num_workers": cfg.DATALOADER.NUM_WORKERS,
        "sampler": None if is_iterable else InferenceSampler(len(dataset)),
    }


@configurable(from_config=_test_loader_from_config)
def build_detection_test_loader(
    dataset: list[Any] | torchdata.Dataset,
    *,
    mapper: Callable[[dict[str, Any]], Any],
    sampler: torchdata.Sampler | None = None,
    batch_size: int = 1,
    num_workers: int = 0,
    collate_fn: Callable[[list[Any]], Any] | None = None,
) -> torchdata.DataLoader:
    """Makes a loader that gives out every element once. Can also be called with a config.

    Args:
        dataset: a list of records, a data set with indices, or an iterable one.
        mapper: turns a record into a model's input; None if the data set does so itself.
        sampler: gives the indices; None means ``InferenceSampler``, or nothing for an iterable
            data set.
        batch_size: elements in a batch of this process; the last may have fewer.
        num_workers: loader processes beside this one.
        collate_fn: turns a list of elements into a batch; None leaves it a list.
    """
    mapped = _mapped_dataset(dataset, mapper)
    if not _has_own_order(mapped, sampler) and sampler is None:
        sampler = InferenceSampler(len(mapped))
    return torchdata.DataLoader(
        mapped,
        batch_size=batch_size,
        sampler=sampler,
        drop_last=False,
        num_workers=num_workers,
        collate_fn=trivial_batch_collator if collate_fn is None else collate_fn,
    )
