#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Measures whether the cross-attention of a diffusion model finds persons, compared with chance.

    python benchmarks/measure_pointing.py projects/DiffPS/weights/tiny_diffusion output/random_sd

Layer and head are chosen on the training images and evaluated on the test images; --table prints
all of them. pointing.py defines the metrics.
"""

import argparse
import sys

from person_search.cli import program_parser, run_program

DOWN = [f"d{level}r{repeat}" for level in (0, 1, 2) for repeat in (0, 1)]
UP = [f"u{level}r{repeat}" for level in (1, 2, 3) for repeat in (0, 1, 2)]
WORDS = ["person", "head", "shirts", "pants", "shoes"]


def parse_args() -> argparse.Namespace:
    """Parses the command line."""
    parser = program_parser(__doc__)
    add = parser.add_argument
    add("folders", nargs="+", metavar="FOLDER", help="models in diffusers format")
    add("--dataset", default="synthetic_cuhk_sysu", metavar="NAME",
        help="NAME_train selects layer and head, NAME_test is evaluated "
        "(default: synthetic_cuhk_sysu)")  # fmt: skip
    add("--images", type=int, default=150, help="maximum number of images of each (default: 150)")
    add("--layers", nargs="+", default=[*DOWN, "m0r0", *UP],
        help="attention layers to compare, for example u3r0 (default: all)")  # fmt: skip
    add("--words", nargs="+", default=WORDS, help=f"prompts (default: {' '.join(WORDS)})")
    add("--timestep", type=int, default=0, help="timestep given to the UNet (default: 0)")
    add("--max-pixels", type=int, default=256 * 320,
        help="area of the resized images in pixels (default: 81920)")  # fmt: skip
    add("--table", action="store_true", help="print all layers and heads, not only the best")
    return parser.parse_args()


def work(args: argparse.Namespace) -> None:
    """Measures all models and prints one table."""
    from detectron2.data import DatasetCatalog
    from pointing import AttentionMaps, measure, read_annotated_image
    from tabulate import tabulate

    from person_search import data  # noqa: F401  registers the datasets

    splits = {}
    for split in ("test",) if args.table else ("train", "test"):
        records = DatasetCatalog.get(f"{args.dataset}_{split}")[: args.images]
        splits[split] = [read_annotated_image(record, args.max_pixels) for record in records]
    rows = []
    for folder in args.folders:
        maps = AttentionMaps(folder, args.layers, args.words, args.timestep)
        test = measure(maps, splits["test"])
        chosen = list(test)
        if not args.table:
            # by energy, not by peaks: the one peak of a nearly flat map may hit a box by its color
            train = measure(maps, splits["train"])
            chosen = [
                max((key for key in train if key[0] == word), key=lambda key: train[key].energy)
                for word in args.words
            ]
        for key in chosen:
            x = test[key]
            rows.append([folder, *key, x.accuracy, x.chance, x.energy, x.images])
    header = ["model", "word", "layer", "head", "peak in box %", "chance %", "in / out", "images"]
    print(tabulate(rows, header, floatfmt=(*[""] * 4, ".1f", ".1f", ".2f", "d")))


def main() -> int:
    """Runs the program."""
    return run_program(work, parse_args())


if __name__ == "__main__":
    sys.exit(main())
