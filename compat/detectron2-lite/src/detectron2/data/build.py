# SPDX-License-Identifier: Apache-2.0
"""Records of registered data sets, and data loaders for training and testing."""

import itertools
import logging
import operator
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.utils.data as torchdata
from detectron2._lite import NotInLiteError, absence_message, absent
from detectron2.config import configurable
from detectron2.utils.comm import get_world_size
from detectron2.utils.env import seed_all_rng
from detectron2.utils.logger import log_first_n
from tabulate import tabulate
from termcolor import colored

from .catalog import DatasetCatalog, MetadataCatalog
from .common import AspectRatioGroupedDataset, DatasetFromList, MapDataset, ToIterableDataset
from .dataset_mapper import DatasetMapper
from .detection_utils import check_metadata_consistency
from .samplers import (
    InferenceSampler,
    RandomSubsetTrainingSampler,
    RepeatFactorTrainingSampler,
    TrainingSampler,
)

__getattr__ = absent(__name__, "filter_images_with_few_keypoints", "load_proposals_into_dataset")


def filter_images_with_only_crowd_annotations(dataset_dicts):
    """Returns the records with at least one annotation that is not a crowd."""
    kept = [
        record
        for record in dataset_dicts
        if any(annotation.get("iscrowd", 0) == 0 for annotation in record["annotations"])
    ]
    logging.getLogger(__name__).info(
        "Removed %d images with no usable annotations. %d images left.",
        len(dataset_dicts) - len(kept),
        len(kept),
    )
    return kept


def print_instances_class_histogram(dataset_dicts, class_names):
    """Logs the number of instances of each class, without crowds."""
    num_classes = len(class_names)
    counts = np.zeros(num_classes, dtype=int)
    for record in dataset_dicts:
        classes = np.asarray(
            [a["category_id"] for a in record["annotations"] if not a.get("iscrowd", 0)], dtype=int
        )
        outside = classes[(classes < 0) | (classes >= num_classes)]
        assert len(outside) == 0, (
            f"{record.get('file_name')}: category_id {outside[0]} is not in [0, {num_classes})"
        )
        counts += np.bincount(classes, minlength=num_classes)

    cells = []
    for name, count in zip(class_names, counts, strict=True):
        cells += [name[:11] + ".." if len(name) > 13 else name, int(count)]
    columns = min(6, num_classes * 2)
    cells.extend([None] * (-len(cells) % columns))
    if num_classes > 1:
        cells.extend(["total", int(counts.sum())])
    table = tabulate(
        [cells[i : i + columns] for i in range(0, len(cells), columns)],
        headers=["category", "#instances"] * (columns // 2),
        tablefmt="pipe",
        numalign="left",
        stralign="center",
    )
    log_first_n(
        logging.INFO,
        f"Distribution of instances among all {num_classes} categories:\n" + colored(table, "cyan"),
        key="message",
    )


def get_detection_dataset_dicts(
    names,
    filter_empty=True,
    min_keypoints=0,
    proposal_files=None,
    check_consistency=True,
):
    """Loads and concatenates the records of registered data sets.

    Args:
        names: Name or list of names.
        filter_empty: Whether to remove images without annotations or with crowds only.
        min_keypoints: Must be 0; the filter is absent.
        proposal_files: Must be None; precomputed proposals are absent.
        check_consistency: Whether to require that the data sets have the same classes.

    Returns:
        A list of records. If the names stand for PyTorch data sets, a PyTorch data set with their
        elements.
    """
    if min_keypoints > 0 or proposal_files is not None:
        raise NotInLiteError(absence_message("min_keypoints or proposal_files of a data set"))
    names = [names] if isinstance(names, str) else names
    assert len(names), names
    unknown = set(names) - set(DatasetCatalog.keys())
    if unknown:
        raise KeyError(
            f"Dataset {sorted(unknown)} is not registered! "
            f"Available datasets are: {', '.join(DatasetCatalog.keys())}"
        )
    loaded = [DatasetCatalog.get(name) for name in names]

    if isinstance(loaded[0], torchdata.Dataset):
        if len(loaded) == 1:
            return loaded[0]
        if all(isinstance(dataset, torchdata.IterableDataset) for dataset in loaded):
            return torchdata.ChainDataset(loaded)
        return torchdata.ConcatDataset(loaded)

    for name, records in zip(names, loaded, strict=True):
        assert len(records), f"Dataset '{name}' is empty!"
    records = list(itertools.chain.from_iterable(loaded))
    has_instances = "annotations" in records[0]
    if filter_empty and has_instances:
        records = filter_images_with_only_crowd_annotations(records)
    if check_consistency and has_instances:
        class_names = MetadataCatalog.get(names[0]).get("thing_classes")
        if class_names is not None:  # the names of the classes are optional
            check_metadata_consistency("thing_classes", names)
            print_instances_class_histogram(records, class_names)
    assert len(records), f"No valid data found in {','.join(names)}."
    return records


def trivial_batch_collator(batch):
    """Returns a batch unchanged, as a list."""
    return batch


def worker_init_reset_seed(worker_id: int) -> None:
    """Seeds ``random``, NumPy and PyTorch of a worker process, each worker differently."""
    seed_all_rng(torch.initial_seed() % 2**31 + worker_id)


def _is_iterable(dataset, sampler) -> bool:
    """Returns whether a data set is iterable, in which case a sampler is an error."""
    if not isinstance(dataset, torchdata.IterableDataset):
        return False
    assert sampler is None, f"an iterable data set cannot have a sampler, got {sampler!r}"
    return True


def _map_dataset(dataset, mapper) -> torchdata.Dataset:
    if isinstance(dataset, list):
        dataset = DatasetFromList(dataset, copy=False)
    return dataset if mapper is None else MapDataset(dataset, mapper)


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
    """Builds a data loader of batches for this process.

    Args:
        dataset: Map-style or iterable data set.
        sampler: Sampler of indices for this process; None for an iterable data set.
        total_batch_size: Batch size over all processes, a multiple of their number.
        aspect_ratio_grouping: Whether to put images with the same orientation into a batch. The
            elements must be dicts with ``width`` and ``height``.
        num_workers: Number of loader processes.
        collate_fn: Function from a list of elements to a batch; None returns the list.
        drop_last: Whether to drop an incomplete last batch.
        single_gpu_batch_size: Batch size of this process, instead of ``total_batch_size``.
        prefetch_factor: Number of batches that each loader process loads in advance.
        persistent_workers: Whether to keep the loader processes after an epoch.
        pin_memory: Whether to copy batches to page-locked memory.
        seed: Seed of the loader processes.
        **kwargs: Further arguments of ``torch.utils.data.DataLoader``.

    Returns:
        An iterable of batches of this process.
    """
    if single_gpu_batch_size:
        if total_batch_size:
            raise ValueError(
                "total_batch_size and single_gpu_batch_size are mutually exclusive, "
                f"got {total_batch_size} and {single_gpu_batch_size}"
            )
        batch_size = single_gpu_batch_size
    else:
        batch_size, rest = divmod(total_batch_size, get_world_size())
        assert batch_size > 0 and rest == 0, (
            f"total_batch_size {total_batch_size} must be a positive multiple of the number of "
            f"processes, {get_world_size()}"
        )
    if not _is_iterable(dataset, sampler):
        dataset = ToIterableDataset(dataset, sampler, shard_chunk_size=batch_size)
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
            dataset,
            batch_size=batch_size,
            drop_last=drop_last,
            collate_fn=trivial_batch_collator if collate_fn is None else collate_fn,
            **common,
        )
    assert drop_last, "aspect_ratio_grouping yields full batches only; it needs drop_last=True"
    # the worker processes return single elements, which are grouped in this process
    loader = torchdata.DataLoader(dataset, collate_fn=operator.itemgetter(0), **common)
    batches = AspectRatioGroupedDataset(loader, batch_size)
    return batches if collate_fn is None else MapDataset(batches, collate_fn)


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
        f"Unknown training sampler: DATALOADER.SAMPLER_TRAIN is {name!r}; available: "
        "TrainingSampler, RepeatFactorTrainingSampler, RandomSubsetTrainingSampler"
    )


def _refuse_proposals(cfg) -> None:
    if cfg.MODEL.LOAD_PROPOSALS:
        raise NotInLiteError(absence_message("cfg.MODEL.LOAD_PROPOSALS = True"))


def _train_loader_from_config(cfg, mapper=None, *, dataset=None, sampler=None) -> dict[str, Any]:
    if dataset is None:
        _refuse_proposals(cfg)
        dataset = get_detection_dataset_dicts(
            cfg.DATASETS.TRAIN, filter_empty=cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS
        )
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
    """Builds an infinite data loader for training. It can also be called with a config.

    Args:
        dataset: List of records, map-style or iterable data set.
        mapper: Function from a record to the input of a model; None if the data set returns it.
        sampler: Sampler of indices; by default a ``TrainingSampler``, or none for an iterable
            data set.
        total_batch_size: See ``build_batch_data_loader``.
        aspect_ratio_grouping: See ``build_batch_data_loader``.
        num_workers: See ``build_batch_data_loader``.
        collate_fn: See ``build_batch_data_loader``.
        **kwargs: Further arguments of ``build_batch_data_loader``.
    """
    mapped = _map_dataset(dataset, mapper)
    if not _is_iterable(mapped, sampler):
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
    _refuse_proposals(cfg)
    dataset = get_detection_dataset_dicts(dataset_name, filter_empty=False)
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
    """Builds a data loader that returns every element once. It can also be called with a config.

    Args:
        dataset: List of records, map-style or iterable data set.
        mapper: Function from a record to the input of a model; None if the data set returns it.
        sampler: Sampler of indices; by default an ``InferenceSampler``, or none for an iterable
            data set.
        batch_size: Batch size of this process; the last batch may be smaller.
        num_workers: Number of loader processes.
        collate_fn: Function from a list of elements to a batch; None returns the list.
    """
    mapped = _map_dataset(dataset, mapper)
    if not _is_iterable(mapped, sampler) and sampler is None:
        sampler = InferenceSampler(len(mapped))
    return torchdata.DataLoader(
        mapped,
        batch_size=batch_size,
        sampler=sampler,
        drop_last=False,
        num_workers=num_workers,
        collate_fn=trivial_batch_collator if collate_fn is None else collate_fn,
    )
