#!/usr/bin/env python
# SPDX-License-Identifier: Apache-2.0
"""Computes the cache of DiffPS for the data sets of a config, so that no epoch has to.

    python projects/DiffPS/tools/build_cache.py --config-file configs/DiffPS/diffps_sd21_prw.yaml \\
        MODEL.DIFFPS.BACKBONE.CACHE.KIND latent MODEL.DIFFPS.BACKBONE.CACHE.DIR /fast/disk/diffps

It says first how large the cache becomes, from the sizes of the images, and ends with exit
status 2 if the disk has no room for that. MODEL.DIFFPS.BACKBONE.CACHE.MAX_GB (1e9 bytes; 0, the
default: no limit) caches a part; the rest is then computed in every epoch.

An interrupted run goes on where it stopped. On several GPUs: one process each, with --part 0/4,
--part 1/4, ... on the same folder.
"""

import argparse
import re
import sys
from collections.abc import Sequence

from detectron2.config import CfgNode
from detectron2.modeling import build_backbone

from diffps.cache_building import fill_cache, get_cache
from diffps.cache_size import CacheEstimate, check_room, estimate_cache
from person_search.config import build_config
from person_search.data import register_config_datasets
from person_search.engine import friendly_errors


def parse_part(text: str) -> tuple[int, int]:
    """``"1/4"`` -> (1, 4)."""
    match = re.fullmatch(r"(\d+)/(\d+)", text)
    if match is None or not int(match[1]) < int(match[2]):
        raise argparse.ArgumentTypeError(f"{text!r} is not like 0/4, 1/4, 2/4 or 3/4")
    return int(match[1]), int(match[2])


def build_caches(cfg: CfgNode, part: tuple[int, int] = (0, 1)) -> bool:
    """Fills the caches of ``DATASETS.TRAIN`` and ``TEST``; returns whether nothing is missing.

    Raises:
        ValueError: no cache, or images of random size.
        OSError: the disk has no room for it.
    """
    backbone = build_backbone(cfg).to(cfg.MODEL.DEVICE)
    cache, config = get_cache(backbone), cfg.MODEL.DIFFPS.BACKBONE.CACHE
    datasets = [(name, True) for name in cfg.DATASETS.TRAIN]
    datasets += [(name, False) for name in cfg.DATASETS.TEST]
    estimates = [estimate_cache(cfg, backbone, name, is_train) for name, is_train in datasets]
    print("\n".join(check_room(cache, sum(estimates, CacheEstimate()), config.MAX_GB)), flush=True)
    complete = True
    for name, is_train in datasets:
        counts = fill_cache(cfg, backbone, name, is_train, part=part)
        print(
            f"{name}: {counts.added} added, {counts.present} were there, "
            f"{counts.unreadable} unreadable, {counts.missing} missing"
        )
        complete &= counts.missing == 0
    return complete


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config-file", required=True)
    parser.add_argument("--part", type=parse_part, default=(0, 1), help="this process's share")
    parser.add_argument("opts", nargs="*", metavar="KEY VALUE", help="override the config")
    args = parser.parse_args(argv)
    with friendly_errors():
        cfg = build_config(args.config_file, args.opts)
        register_config_datasets(cfg)
        return 0 if build_caches(cfg, args.part) else 1


if __name__ == "__main__":
    sys.exit(main())
