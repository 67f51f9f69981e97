# SPDX-License-Identifier: Apache-2.0
"""Training data loader whose sample order and augmentation can be resumed at any step."""

import logging
import os
import random
import shutil
from collections.abc import Callable
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.data import (
    DatasetFromList,
    build_detection_train_loader,
    get_detection_dataset_dicts,
)
from detectron2.utils import comm
from torch.utils.data import DataLoader, Dataset

from person_search.data.dataset_mapper import PersonSearchMapper
from person_search.data.samplers import ResumableBatchSampler, Sample, sample_seed
from person_search.engine.rng import isolated_cpu_rng

Mapper = Callable[[dict[str, Any]], dict[str, Any] | None]

MAX_TRIES = 10
"""Number of unreadable images in a row that end the training."""
PREFETCH = 2
"""Batches that each worker process holds ready; the default of ``DataLoader``."""


class SeededMapDataset(Dataset):
    """Maps records so that the random choices for a sample depend on its number alone.

    The result does not depend on the worker process or on the number of workers. If the mapper
    returns None (skip this image), another record is drawn with the seed of the same sample.

    Args:
        records: Data set dicts.
        mapper: Maps one record to the input of the model.
        sampler: Provides the seed, which resuming may change before the first sample is drawn.
    """

    def __init__(self, records: list[dict[str, Any]], mapper: Mapper, sampler):
        # packed into one block of memory that the workers share
        self.records = DatasetFromList(records, copy=False)
        self.mapper = mapper
        self.sampler = sampler

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, sample: Sample) -> dict[str, Any]:
        index, number = sample
        with isolated_cpu_rng(sample_seed(self.sampler.seed, number)):
            for _ in range(MAX_TRIES):
                mapped = self.mapper(self.records[index])
                if mapped is not None:
                    return mapped
                index = random.randrange(len(self.records))
        raise RuntimeError(
            f"{MAX_TRIES} records in a row could not be prepared, the last one "
            f"{self.records[index].get('file_name')!r}. Check the data set; with "
            "DATALOADER.ON_BAD_IMAGE 'raise' the run stops at the first unreadable image."
        )


def build_train_loader(cfg: CfgNode, mapper: Mapper) -> DataLoader:
    """Builds the training loader; each element is a list of mapped records, one per image.

    ``SAMPLER_TRAIN: TrainingSampler`` (the default) uses :class:`ResumableBatchSampler`, available
    as ``loader.batch_sampler``. Other names select Detectron2's samplers, which start again on
    resuming.

    Args:
        cfg: Config with DATASETS.TRAIN, DATALOADER, INPUT, SOLVER.IMS_PER_BATCH and SEED.
        mapper: Mapper for training.

    Raises:
        ValueError: If DATALOADER.NUM_WORKERS or TIMEOUT is negative, or the shared memory is too
            small for the workers' batches.
    """
    for key in ("NUM_WORKERS", "TIMEOUT"):
        if cfg.DATALOADER[key] < 0:
            raise ValueError(f"DATALOADER.{key} is {cfg.DATALOADER[key]}; it must be at least 0.")
    sizes = getattr(mapper, "largest_training_image", PersonSearchMapper.largest_training_image)
    check_shared_memory(cfg, sizes(cfg))
    logger = logging.getLogger(__name__)
    name = cfg.DATALOADER.SAMPLER_TRAIN
    if name != "TrainingSampler":
        logger.warning(
            "DATALOADER.SAMPLER_TRAIN is %r: a resumed run will not continue its order of samples. "
            "Only 'TrainingSampler' resumes exactly.",
            name,
        )
        return build_detection_train_loader(cfg, mapper=mapper)

    records = get_detection_dataset_dicts(
        cfg.DATASETS.TRAIN, filter_empty=cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS
    )
    landscape = None
    if cfg.DATALOADER.ASPECT_RATIO_GROUPING:
        landscape = [record["width"] > record["height"] for record in records]
        for kind in (False, True):
            count = landscape.count(kind)
            if 0 < count < cfg.SOLVER.IMS_PER_BATCH:
                logger.info(
                    "Only %d images are %s: a batch of them takes several epochs to fill.",
                    count,
                    "wider than high" if kind else "not wider than high",
                )
    sampler = ResumableBatchSampler(
        len(records),
        cfg.SOLVER.IMS_PER_BATCH,
        seed=cfg.SEED if cfg.SEED >= 0 else comm.shared_random_seed(),
        landscape=landscape,
    )
    return DataLoader(
        SeededMapDataset(records, mapper, sampler),
        batch_sampler=sampler,
        num_workers=cfg.DATALOADER.NUM_WORKERS,
        collate_fn=list,
        worker_init_fn=_limit_threads,
        timeout=cfg.DATALOADER.TIMEOUT if cfg.DATALOADER.NUM_WORKERS > 0 else 0,
        # the loader draws a seed for its workers, which must not change the model's generator
        generator=torch.Generator().manual_seed(0),
    )


def check_shared_memory(
    cfg: CfgNode, largest: tuple[int, int, int], folder: str = "/dev/shm"
) -> None:
    """Checks that the batches which worker processes hold ready fit into the shared memory.

    Workers that find it full wait without end or are killed. Containers often have 64 MB.

    Args:
        cfg: Config with DATALOADER.NUM_WORKERS and SOLVER.IMS_PER_BATCH.
        largest: Height, width and bytes per value of the largest image of the mapper.
        folder: Where the system keeps shared memory. Other systems have no such folder.

    Raises:
        ValueError: If the shared memory is too small, with the remedies.
    """
    workers = cfg.DATALOADER.NUM_WORKERS
    if workers == 0 or not os.path.isdir(folder):
        return
    height, width, value_bytes = largest
    images = cfg.SOLVER.IMS_PER_BATCH * comm.get_local_size() // comm.get_world_size()
    needed = workers * PREFETCH * images * 3 * height * width * value_bytes / 1e6
    usage = shutil.disk_usage(folder)
    if needed < usage.free / 1e6:
        return
    text = (
        f"The shared memory {folder} has {usage.free / 1e6:,.0f} MB free of "
        f"{usage.total / 1e6:,.0f} MB, but the training may need {needed:,.0f} MB: "
        f"DATALOADER.NUM_WORKERS {workers}, times {PREFETCH} batches held ready, times {images} "
        f"images (SOLVER.IMS_PER_BATCH) of up to {height} x {width} pixels. Set a smaller "
        "DATALOADER.NUM_WORKERS (0 loads in the main process), or give a container more shared "
        "memory (docker run --shm-size=8g)."
    )
    if needed > usage.total / 1e6:
        raise ValueError(text)
    logging.getLogger(__name__).warning(text)


def _limit_threads(worker_id: int) -> None:
    """Gives each worker one thread, since the workers run side by side already."""
    torch.set_num_threads(1)
