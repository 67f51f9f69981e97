# SPDX-License-Identifier: Apache-2.0
"""Fills the cache of the frozen model ahead of a training or an evaluation."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog
from detectron2.structures import ImageList
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from diffps.backbone import DiffusionBackbone
from diffps.cache import TensorCache
from diffps.latents import image_digest
from person_search.data import build_mapper


@dataclass
class CacheCounts:
    """What became of the images of one data set; a flipped image counts as one more."""

    added: int = 0
    present: int = 0
    unreadable: int = 0
    missing: int = 0
    """Not cached, because the disk or the limit was reached."""


class _MappedImages(Dataset):
    """The images of some records as the model gets them, each with its mirror image or without."""

    def __init__(self, cfg: CfgNode, records: Sequence[dict], is_train: bool, flips: bool) -> None:
        cfg = cfg.clone()
        cfg.defrost()
        cfg.INPUT.RANDOM_FLIP = "none"
        self.records, self.flips = list(records), flips
        self.mapper = build_mapper(cfg, is_train)

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> list[tuple[torch.Tensor, str]]:
        item = self.mapper(self.records[index])
        if item is None or item.get("bad_image"):
            return []
        images = [item["image"], item["image"].flip(2)] if self.flips else [item["image"]]
        return [(image, image_digest(image)) for image in images]


def fill_cache(
    cfg: CfgNode,
    backbone: DiffusionBackbone,
    dataset_name: str,
    is_train: bool,
    *,
    part: tuple[int, int] = (0, 1),
    progress: bool = True,
) -> CacheCounts:
    """Computes what the cache lacks of one data set.

    In training images are flipped at random, so both versions are cached. Entries that are there
    already are left out, which is how an interrupted run is resumed.

    Args:
        backbone: with a cache. part: (index, count): every ``count``-th image from ``index`` on,
            for several processes. progress: whether to draw a bar.

    Raises:
        ValueError: no cache, or images of random size, of which not all can be cached.
    """
    cache = get_cache(backbone)
    check_repeatable_images(cfg, is_train)
    records = DatasetCatalog.get(dataset_name)[part[0] :: part[1]]
    flips = caches_mirror_images(cfg, is_train)
    images = _MappedImages(cfg, records, is_train, flips)
    loader = DataLoader(
        images, batch_size=None, num_workers=cfg.DATALOADER.NUM_WORKERS, collate_fn=_as_it_is
    )
    counts, per_image = CacheCounts(), 2 if flips else 1
    bar = tqdm(loader, desc=dataset_name, unit="image", disable=not progress)
    for items in bar:
        if not items:
            counts.unreadable += 1
            continue
        new = [(image, key) for image, key in items if key not in cache]
        counts.present += len(items) - len(new)
        if new:
            _compute(backbone, new)
            counts.added += sum(key in cache for _, key in new)
        if not cache.is_writable:
            counts.missing = per_image * (len(records) - counts.unreadable)
            counts.missing -= counts.added + counts.present
            break
        bar.set_postfix(GB=f"{cache.bytes / 1e9:.2f}", refresh=False)
    return counts


def get_cache(backbone: DiffusionBackbone) -> TensorCache:
    """Returns the cache of a backbone; raises ValueError if it has none."""
    if backbone.cache is None:
        raise ValueError(
            "set MODEL.DIFFPS.BACKBONE.CACHE.KIND to 'latent', 'feature' or 'compact'."
        )
    return backbone.cache


def caches_mirror_images(cfg: CfgNode, is_train: bool) -> bool:
    """Whether images are flipped at random, so that both versions are cached."""
    return is_train and cfg.INPUT.RANDOM_FLIP == "horizontal"


def check_repeatable_images(cfg: CfgNode, is_train: bool) -> None:
    """Raises ValueError if the mapper draws sizes or crops, of which no cache can hold all."""
    random_sizes = (
        is_train
        and cfg.MODEL.DIFFPS.INPUT.RESIZE == "shortest_edge"
        and len(set(cfg.INPUT.MIN_SIZE_TRAIN)) > 1
    )
    if random_sizes or (is_train and cfg.INPUT.CROP.ENABLED):
        raise ValueError(
            "a cache needs images that come in one version each: set INPUT.CROP.ENABLED False and "
            "one INPUT.MIN_SIZE_TRAIN, or MODEL.DIFFPS.INPUT.RESIZE to 'fixed' or 'budget'."
        )


def _compute(backbone: DiffusionBackbone, items: Iterable[tuple[torch.Tensor, str]]) -> None:
    device = backbone.device
    images = [(image.to(device).float() - 127.5) / 127.5 for image, _ in items]
    batch = ImageList.from_tensors(images, backbone.size_divisibility)
    backbone.fill_cache(batch.tensor, batch.image_sizes, [key for _, key in items])


def _as_it_is(items: list) -> list:
    return items
