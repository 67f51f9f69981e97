#!/usr/bin/env python
# SPDX-License-Identifier: Apache-2.0
"""Draws images of a data set with their boxes, identities and queries.

Examples::

    python tools/visualize_data.py synthetic_cuhk_sysu_test --num 8 --output output/data
    python tools/visualize_data.py datasets/mine/train.json

Solid boxes are persons of known identity (one color each), dashed gray ones of unknown identity,
and wide blue ones queries. The images are evenly spaced in the data set, or those of --image-id.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from person_search.cli import program_parser, run_program


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parses the command line."""
    parser = program_parser(__doc__)
    parser.add_argument(
        "dataset", help="registered name, e.g. cuhk_sysu_train or prw_test, or a JSON file"
    )
    parser.add_argument(
        "--image-root",
        type=Path,
        metavar="FOLDER",
        help="folder to which the file names in a JSON file are relative (default: its own folder)",
    )
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("output/data"),
        metavar="FOLDER",
        help="folder of the drawings (default: %(default)s)",
    )
    parser.add_argument(
        "--num", type=int, default=8, help="number of images to draw (default: %(default)s)"
    )
    parser.add_argument(
        "--image-id", type=int, nargs="+", metavar="ID", help="ids of the images to draw instead"
    )
    parser.add_argument(
        "--long-side",
        type=int,
        default=1000,
        metavar="PIXELS",
        help="length of the longer side of a drawing (default: %(default)s)",
    )
    args = parser.parse_args(argv)
    if args.num < 1 or args.long_side < 64:
        parser.error("--num must be at least 1, --long-side at least 64")
    return args


def visualize(args: argparse.Namespace) -> None:
    """Writes one PNG file per selected record."""
    from person_search.data.image_io import RecordImageReader
    from person_search.utils.files import write_atomically
    from person_search.vis import draw_record, encode_image

    records = load_records(args.dataset, args.image_root)
    read_image = RecordImageReader("RGB")
    args.output.mkdir(parents=True, exist_ok=True)
    for record in select(records, args.num, args.image_id):
        pixels = read_image(record)
        assert pixels is not None  # unreadable images are not skipped
        drawing = draw_record(pixels, record, args.long_side)
        path = args.output / f"{Path(args.dataset).stem}_{record['image_id']:06d}.png"
        write_atomically(path, encode_image(drawing, ".png"))
        print(path)


def load_records(dataset: str, image_root: Path | None) -> list[dict]:
    """Loads the records of a registered data set or of a JSON file."""
    from detectron2.data import DatasetCatalog

    from person_search.data import load_person_search_json

    if dataset.endswith(".json"):
        return load_person_search_json(dataset, image_root)
    if dataset not in DatasetCatalog.list():
        ours = [name for name in DatasetCatalog.list() if "cuhk_sysu" in name or "prw" in name]
        raise ValueError(f"unknown data set '{dataset}'; available: {sorted(ours)}")
    return DatasetCatalog.get(dataset)


def select(records: list[dict], num: int, image_ids: list[int] | None) -> list[dict]:
    """Returns the records with the given image ids, or ``num`` evenly spaced ones."""
    if image_ids is None:
        count = min(num, len(records))
        return [records[i * len(records) // count] for i in range(count)]
    by_id = {record["image_id"]: record for record in records}
    unknown = [image_id for image_id in image_ids if image_id not in by_id]
    if unknown:
        raise ValueError(f"--image-id {unknown}: the data set has no such image")
    return [by_id[image_id] for image_id in image_ids]


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the program and returns the exit status."""
    return run_program(visualize, parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
