#!/usr/bin/env python
# SPDX-License-Identifier: Apache-2.0
"""Computes the cache of DiffPS for the data sets of a config, so that no epoch has to.

    python tools/build_diffps_cache.py --config-file configs/DiffPS/diffps_sd21_prw.yaml \\
        MODEL.DIFFPS.BACKBONE.CACHE.KIND latent MODEL.DIFFPS.BACKBONE.CACHE.DIR /fast/disk/diffps

An interrupted run goes on where it stopped. On several GPUs: one process each, with --part 0/4,
--part 1/4, ... on the same folder.
"""

import argparse
import re
import sys
from collections.abc import Sequence

from detectron2.config import CfgNode
from detectron2.modeling import build_backbone

from diffps.cache_building import fill_cache
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
    """Fills the caches of ``DATASETS.TRAIN`` and ``TEST``; returns whether nothing is missing."""
    backbone = build_backbone(cfg).to(cfg.MODEL.DEVICE)
    complete = True
    for is_train, names in ((True, cfg.DATASETS.TRAIN), (False, cfg.DATASETS.TEST)):
        for name in names:
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
