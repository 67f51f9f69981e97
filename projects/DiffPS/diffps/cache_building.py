# SPDX-License-Identifier: Apache-2.0
"""Estimates the size of a cache of the frozen model, and fills it before training."""

import math
import shutil
from collections import Counter
from collections.abc import Sequence
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
from person_search.utils.sizes import budget_size

_HEADER_BYTES = 200  # of a small entry: name, shape and checksum, about
_KEY = "MODEL.DIFFPS.BACKBONE.CACHE"


@dataclass
class CacheCounts:
    """Images of one dataset by outcome; a flipped image counts as one more.

    Attributes:
        added: Images that were added.
        present: Images that were cached already.
        unreadable: Image files that could not be read.
        missing: Images that are not cached because the disk is full or the limit was reached.
    """

    added: int = 0
    present: int = 0
    unreadable: int = 0
    missing: int = 0


class _MappedImages(Dataset):
    """Images as the model receives them, each with its mirror image if ``flips``."""

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
    """Computes the entries of one dataset that the cache lacks.

    Training flips images at random, so both versions are cached. Existing entries are skipped, so
    an interrupted run resumes.

    Args:
        cfg: Config of the mapper and the loader.
        backbone: Backbone with a cache.
        dataset_name: Name of a registered dataset.
        is_train: Whether images are mapped as in training.
        part: (index, count); every ``count``-th image from ``index`` on, for several processes.
        progress: Whether to show a progress bar.

    Raises:
        ValueError: If there is no cache, or images have random sizes, which cannot all be cached.
    """
    cache = get_cache(backbone)
    random_sizes = (
        cfg.MODEL.DIFFPS.INPUT.RESIZE == "shortest_edge" and len(set(cfg.INPUT.MIN_SIZE_TRAIN)) > 1
    )
    if is_train and (random_sizes or cfg.INPUT.CROP.ENABLED):
        raise ValueError(
            "a cache needs one version of each image: set INPUT.CROP.ENABLED False and one "
            "INPUT.MIN_SIZE_TRAIN, or MODEL.DIFFPS.INPUT.RESIZE to 'fixed' or 'budget'."
        )
    records = DatasetCatalog.get(dataset_name)[part[0] :: part[1]]
    flips = caches_mirror_images(cfg, is_train)
    loader = DataLoader(
        _MappedImages(cfg, records, is_train, flips),
        batch_size=None,
        num_workers=cfg.DATALOADER.NUM_WORKERS,
        collate_fn=_identity,
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
            images = [(image.to(backbone.device).float() - 127.5) / 127.5 for image, _ in new]
            batch = ImageList.from_tensors(images, backbone.size_divisibility)
            backbone.fill_cache(batch.tensor, batch.image_sizes, [key for _, key in new])
            counts.added += sum(key in cache for _, key in new)
        if not cache.is_writable:
            counts.missing = per_image * (len(records) - counts.unreadable)
            counts.missing -= counts.added + counts.present
            break
        bar.set_postfix(GB=f"{cache.bytes / 1e9:.2f}", refresh=False)
    return counts


def _identity(items: list) -> list:
    return items


def get_cache(backbone: DiffusionBackbone) -> TensorCache:
    """Returns the cache of a backbone; raises ValueError if it has none."""
    if backbone.cache is None:
        raise ValueError(f"there is no cache: set {_KEY}.KIND to 'latent', 'feature' or 'compact'.")
    return backbone.cache


def caches_mirror_images(cfg: CfgNode, is_train: bool) -> bool:
    """Returns whether images are flipped at random, so that both versions are cached."""
    return is_train and cfg.INPUT.RANDOM_FLIP == "horizontal"


# ---- size ---------------------------------------------------------------------------------------
def estimate_cache(
    cfg: CfgNode, backbone: DiffusionBackbone, dataset_name: str, is_train: bool
) -> tuple[int, int]:
    """Estimates the cache of one dataset from shapes alone, without reading images.

    Returns:
        Number of entries and their bytes; a mirror image is an entry of its own.
    """
    sizes = Counter((r["height"], r["width"]) for r in DatasetCatalog.get(dataset_name))
    total = sum(
        count * (backbone.cache_entry_bytes(resized(cfg, size, is_train)) + _HEADER_BYTES)
        for size, count in sizes.items()
    )
    versions = 2 if caches_mirror_images(cfg, is_train) else 1
    return versions * sum(sizes.values()), versions * total


def resized(cfg: CfgNode, size: tuple[int, int], is_train: bool) -> tuple[int, int]:
    """Returns the (height, width) after resizing by the mapper; of random sizes the first."""
    config = cfg.MODEL.DIFFPS.INPUT
    if config.RESIZE == "fixed":
        return tuple(config.SIZE)
    if config.RESIZE == "budget":
        return budget_size(size, math.prod(config.SIZE))
    shorter, longest = (
        (cfg.INPUT.MIN_SIZE_TRAIN[0], cfg.INPUT.MAX_SIZE_TRAIN)
        if is_train
        else (cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST)
    )
    scale = min(shorter / min(size), longest / max(size)) if shorter else 1
    return round(size[0] * scale), round(size[1] * scale)


def check_room(cache: TensorCache, entries: int, size: int, max_gb: float) -> list[str]:
    """Compares an estimate with the free disk space and with ``CACHE.MAX_GB``.

    Returns:
        Lines for the user: the estimate, what is present and free, and a warning if the limit is
        below the estimate.

    Raises:
        OSError: If it cannot fit, even if all entries in the cache belong to these images.
    """
    free = shutil.disk_usage(cache.folder).free
    lines = [
        f"estimate: {entries:,} entries of kind {cache.kind}, {_gb(size)} in total; "
        f"{_gb(cache.bytes)} present, {_gb(free)} free in {cache.folder}"
    ]
    goal, limit = size, int(max_gb * 1e9)
    if limit and size > limit:
        lines.append(
            f"warning: {_KEY}.MAX_GB {max_gb:g} is enough for about {limit / size:.0%} of the "
            "entries; every epoch recomputes the others"
        )
        goal = limit
    if goal - cache.bytes > free:
        kinds = "" if cache.kind == "latent" else f"{_KEY}.KIND latent is much smaller; "
        raise OSError(
            f"the {cache.kind} cache does not fit: {_gb(goal - cache.bytes)} more are needed "
            f"(estimate), {_gb(free)} are free in {cache.folder}. {kinds}{_KEY}.DIR can be a "
            f"folder on another disk, {_KEY}.MAX_GB a limit below the free space: part is then "
            "cached and the rest computed in every epoch."
        )
    return lines


def _gb(count: int) -> str:
    """Formats bytes as ``0.42 GB`` or ``983 GB`` (1e9 bytes)."""
    value = count / 1e9
    return f"{value:,.0f} GB" if value >= 10 else f"{value:.2f} GB"
