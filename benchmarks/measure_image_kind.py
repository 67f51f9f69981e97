#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Measures how well drawn images and photographs are told apart; see docs/model_card.md.

    python benchmarks/measure_image_kind.py --drawn datasets/synthetic/CUHK-SYSU/Image/SSM \
        --photographs real/PETS09-S2L1/img1 real/TUD-Campus/img1 --jpeg 30

One row per folder: mean and standard deviation of the color detail, share of single images on the
wrong side of the threshold, and for galleries of 1 to 32 random images of the folder the share of
wrong decisions and of none.
"""

import argparse
import math
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from person_search.cli import program_parser, run_program

SIZES = (1, 4, 8, 16, 32)
GALLERIES = 1000


def measure(folder: Path, jpeg: int, maximum: int) -> list[float]:
    """Returns the color detail of up to ``maximum`` images, evenly spread over the folder."""
    import cv2

    from person_search.data import color_detail
    from person_search.data.image_io import read_image_file
    from person_search.search.images import image_suffixes

    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in image_suffixes())
    details = []
    for file in files[:: max(len(files) // maximum, 1)][:maximum]:
        image = read_image_file(str(file), "BGR")
        if jpeg:
            content = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, jpeg])[1]
            image = np.asarray(cv2.imdecode(content, cv2.IMREAD_COLOR))
        details.append(color_detail(image))
    return [value for value in details if not math.isnan(value)]


def describe(details: list[float], kind: str) -> list[str]:
    """Returns the cells of a row."""
    from person_search.data.model_cards import THRESHOLD, kind_of_images
    from person_search.utils.model_card import PHOTOGRAPHS, UNKNOWN

    values, rng = np.array(details), np.random.default_rng(0)
    wrong = (values > THRESHOLD) != (kind == PHOTOGRAPHS)
    cells = [
        f"{len(values)}",
        f"{values.mean():.2f} ± {values.std():.2f}",
        f"{100 * wrong.mean():.1f} %",
    ]
    for size in SIZES:
        kinds = [kind_of_images(rng.choice(values, size).tolist()) for _ in range(GALLERIES)]
        bad = sum(found not in (kind, UNKNOWN) for found in kinds) / GALLERIES
        none = kinds.count(UNKNOWN) / GALLERIES
        cells.append(f"{100 * bad:.1f} / {100 * none:.1f} %")
    return cells


def work(args: argparse.Namespace) -> None:
    """Prints the table."""
    from tabulate import tabulate

    rows = [
        [kind, str(folder), *describe(measure(folder, args.jpeg, args.images), kind)]
        for kind, folders in (("drawn", args.drawn), ("photographs", args.photographs))
        for folder in folders
    ]
    header = ["kind", "folder", "images", "color detail", "single image wrong"]
    print(tabulate(rows, [*header, *(f"gallery of {size}: wrong / none" for size in SIZES)],
                   tablefmt="github"))  # fmt: skip


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parses the command line."""
    parser = program_parser(__doc__)
    for kind in ("drawn", "photographs"):
        parser.add_argument(
            f"--{kind}", type=Path, nargs="+", default=[], metavar="DIR", help=f"folders of {kind}"
        )
    parser.add_argument("--images", type=int, default=200, metavar="N",
                        help="maximum number of images of a folder (default: 200)")  # fmt: skip
    parser.add_argument("--jpeg", type=int, default=0, metavar="QUALITY",
                        help="compress the images first (default: 0, no)")  # fmt: skip
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the program and returns the exit status."""
    return run_program(work, parse_args(argv), log=False)


if __name__ == "__main__":
    sys.exit(main())
