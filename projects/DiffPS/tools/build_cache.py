#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
r"""Computes the cache of DiffPS for the datasets of a config before training.

    python projects/DiffPS/tools/build_cache.py --config-file configs/DiffPS/diffps_sd21_prw.yaml \
        MODEL.DIFFPS.BACKBONE.CACHE.KIND latent MODEL.DIFFPS.BACKBONE.CACHE.DIR /fast/disk/diffps

Prints the estimated size of the cache first, and ends with exit status 2 if the disk has too little
space. MODEL.DIFFPS.BACKBONE.CACHE.MAX_GB (1e9 bytes; 0, the default: no limit) caches a part; the
rest is computed in every epoch.

An interrupted run resumes. On several GPUs, run one process each with --part 0/4, --part 1/4, ...
on the same folder.
"""

import argparse
import re
import sys
from collections.abc import Sequence

from person_search.cli import program_parser, run_program


def parse_part(text: str) -> tuple[int, int]:
    """Parses ``"1/4"`` to (1, 4)."""
    match = re.fullmatch(r"(\d+)/(\d+)", text)
    if match is None or not int(match[1]) < int(match[2]):
        raise argparse.ArgumentTypeError(f"{text!r} is not like 0/4, 1/4, 2/4 or 3/4")
    return int(match[1]), int(match[2])


def build_caches(args: argparse.Namespace) -> int:
    """Fills the caches of ``DATASETS.TRAIN`` and ``TEST``; returns 1 if entries are missing."""
    from detectron2.modeling import build_backbone

    from diffps.cache_building import check_room, estimate_cache, fill_cache, get_cache
    from person_search.config import build_config
    from person_search.data import register_config_datasets

    cfg = build_config(args.config_file, args.opts)
    register_config_datasets(cfg)
    backbone = build_backbone(cfg).to(cfg.MODEL.DEVICE)
    cache, config = get_cache(backbone), cfg.MODEL.DIFFPS.BACKBONE.CACHE
    datasets = [(name, True) for name in cfg.DATASETS.TRAIN]
    datasets += [(name, False) for name in cfg.DATASETS.TEST]
    estimates = [estimate_cache(cfg, backbone, name, is_train) for name, is_train in datasets]
    entries, size = sum(e[0] for e in estimates), sum(e[1] for e in estimates)
    print("\n".join(check_room(cache, entries, size, config.MAX_GB)), flush=True)
    missing = 0
    for name, is_train in datasets:
        counts = fill_cache(cfg, backbone, name, is_train, part=args.part)
        print(
            f"{name}: {counts.added} added, {counts.present} present, "
            f"{counts.unreadable} unreadable, {counts.missing} missing"
        )
        missing += counts.missing
    return 1 if missing else 0


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the program."""
    parser = program_parser(__doc__, config=True)
    parser.add_argument(
        "--part",
        type=parse_part,
        default=(0, 1),
        metavar="I/N",
        help="share of the images that this process computes, for example 0/4 (default: all)",
    )
    return run_program(build_caches, parser.parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
