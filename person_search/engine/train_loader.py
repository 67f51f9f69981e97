# SPDX-License-Identifier: Apache-2.0
"""Training data loader whose order and augmentation can be continued at any step."""

import logging
import random
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

from person_search.data.samplers import ResumableBatchSampler, Sample, sample_seed
from person_search.engine.rng import isolated_cpu_rng

Mapper = Callable[[dict[str, Any]], dict[str, Any] | None]

MAX_TRIES = 10
"""Records tried in a row before a run of unreadable images ends the training."""


class SeededMapDataset(Dataset):
    """Prepares records; all random choices for a sample depend on its sample number alone.

    The worker process that prepares a sample has no influence on it, nor has the number of
    workers. A mapper that returns None (an image to be skipped) gets another record of the data
    set in its place, drawn with the seed of the same sample.

    Args:
        records: data set dicts.
        mapper: turns one record into the model's input.
        sampler: provides the seed; it may change by resuming before the first sample is drawn.
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

    ``SAMPLER_TRAIN: TrainingSampler`` (the default) gets :class:`ResumableBatchSampler`, found as
    ``loader.batch_sampler``. Every other name is Detectron2's own and starts anew on resuming.

    Args:
        cfg: reads DATASETS.TRAIN, DATALOADER.*, SOLVER.IMS_PER_BATCH and SEED.
        mapper: for training.
    """
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
        for kind in (False, True):  # a kind of image that never fills a batch would never be seen
            count = landscape.count(kind)
            if 0 < count < cfg.SOLVER.IMS_PER_BATCH:
                logger.info(
                    "Only %d images are %s: a batch of them spans several epochs.",
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
        # the loader draws a seed for its workers: from here, so as not to touch the model's stream
        generator=torch.Generator().manual_seed(0),
    )


def _limit_threads(worker_id: int) -> None:
    """One thread per worker: they run side by side already."""
    torch.set_num_threads(1)
