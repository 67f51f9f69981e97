# SPDX-License-Identifier: Apache-2.0
"""How large a cache of the frozen model becomes, from shapes alone: no image is read."""

import math
import shutil
from collections import Counter
from dataclasses import dataclass

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog

from diffps.backbone import DiffusionBackbone
from diffps.cache import TensorCache
from diffps.cache_building import caches_mirror_images
from diffps.data import budget_size

_HEADER_BYTES = 200  # of a small entry: name, shape and checksum, about
_KEY = "MODEL.DIFFPS.BACKBONE.CACHE"


@dataclass(frozen=True)
class CacheEstimate:
    """Entries of one data set and their bytes; a mirror image is an entry of its own."""

    entries: int = 0
    bytes: int = 0

    def __add__(self, other: "CacheEstimate") -> "CacheEstimate":
        return CacheEstimate(self.entries + other.entries, self.bytes + other.bytes)


def estimate_cache(
    cfg: CfgNode, backbone: DiffusionBackbone, dataset_name: str, is_train: bool
) -> CacheEstimate:
    """What :func:`diffps.cache_building.fill_cache` writes for a data set, if nothing is there.

    Args:
        backbone: with a cache.
    """
    sizes = Counter((r["height"], r["width"]) for r in DatasetCatalog.get(dataset_name))
    versions = 2 if caches_mirror_images(cfg, is_train) else 1
    entry_bytes = {
        size: backbone.cache_entry_bytes(resized(cfg, size, is_train)) + _HEADER_BYTES
        for size in sizes
    }
    total = sum(entry_bytes[size] * count for size, count in sizes.items())
    return CacheEstimate(versions * sum(sizes.values()), versions * total)


def resized(cfg: CfgNode, size: tuple[int, int], is_train: bool) -> tuple[int, int]:
    """(height, width) that the mapper of DiffPS makes of an image; one of the sizes, if random."""
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


def check_room(cache: TensorCache, wanted: CacheEstimate, max_gb: float) -> list[str]:
    """Compares an estimate with the disk and with ``CACHE.MAX_GB``.

    Returns:
        Lines for the user: what the cache takes, what is there and free; a warning where the limit
        ends it early.

    Raises:
        OSError: it cannot fit: even if all that is in the cache already is of these images, the
            rest exceeds what is free.
    """
    free = shutil.disk_usage(cache.folder).free
    lines = [
        f"estimate: {wanted.entries:,} entries of kind {cache.kind}, {_gb(wanted.bytes)} in all; "
        f"{_gb(cache.bytes)} are there, {_gb(free)} free in {cache.folder}"
    ]
    goal, limit = wanted.bytes, int(max_gb * 1e9)
    if limit and wanted.bytes > limit:
        share = limit / wanted.bytes
        lines.append(
            f"warning: {_KEY}.MAX_GB {max_gb:g} is enough for about {share:.0%} of the entries; "
            "every epoch computes the others anew"
        )
        goal = limit
    if goal - cache.bytes > free:
        kinds = "" if cache.kind == "latent" else f"{_KEY}.KIND latent is much smaller; "
        raise OSError(
            f"the {cache.kind} cache does not fit: {_gb(goal - cache.bytes)} more are needed "
            f"(estimate), {_gb(free)} are free in {cache.folder}. {kinds}{_KEY}.DIR can be a "
            f"folder on another disk, {_KEY}.MAX_GB a limit below what is free: then part is "
            "cached and the rest computed in every epoch."
        )
    return lines


def _gb(count: int) -> str:
    """Bytes as ``0.42 GB`` or ``983 GB`` (1e9 bytes)."""
    value = count / 1e9
    return f"{value:,.0f} GB" if value >= 10 else f"{value:.2f} GB"
