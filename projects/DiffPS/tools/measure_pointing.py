#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Measures whether the cross-attention of a diffusion model finds people, against chance.

    python projects/DiffPS/tools/measure_pointing.py projects/DiffPS/weights/tiny_diffusion output/random_sd

Layer and head are chosen on the training images and reported on the test images; --table prints
all of them. Peaks and energy: diffps/prior/pointing.py.
"""

import argparse
import sys
from typing import TYPE_CHECKING

from person_search.cli import run_program

if TYPE_CHECKING:
    from diffps.prior.pointing import Pointing

    Results = dict[tuple[str, str, str], Pointing]

DOWN = [f"d{level}r{repeat}" for level in (0, 1, 2) for repeat in (0, 1)]
UP = [f"u{level}r{repeat}" for level in (1, 2, 3) for repeat in (0, 1, 2)]
WORDS = ["person", "head", "shirts", "pants", "shoes"]


def parse_args() -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folders", nargs="+", help="models in diffusers format")
    parser.add_argument("--dataset", default="synthetic_cuhk_sysu",
                        help="<dataset>_train chooses, <dataset>_test is measured")  # fmt: skip
    parser.add_argument("--images", type=int, default=150, help="at most so many of each")
    parser.add_argument("--layers", nargs="+", default=[*DOWN, "m0r0", *UP])
    parser.add_argument("--words", nargs="+", default=WORDS)
    parser.add_argument("--timestep", type=int, default=0)
    parser.add_argument("--max-pixels", type=int, default=256 * 320, help="size of the images")
    parser.add_argument("--table", action="store_true", help="all layers and heads, not the best")
    parser.add_argument("--traceback", action="store_true", help="show where an error was raised")
    return parser.parse_args()


def rows_of(folder: str, args: argparse.Namespace, splits: dict[str, list]) -> list[list]:
    """Rows of the printed table for one model."""
    from diffps.prior.pointing import AttentionMaps, measure

    maps = AttentionMaps(folder, args.layers, args.words, args.timestep)
    test = measure(maps, splits["test"])
    chosen = list(test)
    if not args.table:
        train = measure(maps, splits["train"])
        chosen = [best_place(train, word) for word in args.words]
    return [
        [folder, *key, test[key].accuracy, test[key].chance, test[key].energy, test[key].images]
        for key in chosen
    ]


def best_place(results: "Results", word: str) -> tuple[str, str, str]:
    """The layer and head whose attention lies inside the boxes most.

    Not the one with the best peaks: a nearly flat map may have its one peak in a box by its color.
    """
    mine = {key: value for key, value in results.items() if key[0] == word}
    return max(mine, key=lambda key: mine[key].energy)


def work(args: argparse.Namespace) -> None:
    """Measures all folders and prints one table."""
    from detectron2.data import DatasetCatalog
    from tabulate import tabulate

    from diffps.prior.pointing import read_image
    from person_search import data  # noqa: F401  registers the data sets

    splits = {}
    for split in ("test",) if args.table else ("train", "test"):
        records = DatasetCatalog.get(f"{args.dataset}_{split}")[: args.images]
        splits[split] = [read_image(record, args.max_pixels) for record in records]
    rows = [row for folder in args.folders for row in rows_of(folder, args, splits)]
    header = ["model", "word", "layer", "head", "peak in box %", "chance %", "in / out", "images"]
    print(tabulate(rows, header, floatfmt=(*[""] * 4, ".1f", ".1f", ".2f", "d")))


def main() -> int:
    return run_program(work, parse_args())


if __name__ == "__main__":
    sys.exit(main())
