#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Draws images of a data set with their boxes, identities and queries.

    python tools/visualize_data.py synthetic_cuhk_sysu_test --num 8 --output output/data
    python tools/visualize_data.py datasets/mine/train.json

Solid boxes are people of known identity (one color each), dashed gray ones of unknown identity, and
wide blue ones queries. The images are spread evenly over the set, or chosen by --image-id.
"""

import argparse
import sys
from pathlib import Path

from person_search.cli import run_program


def parse_args() -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "dataset", help="registered name, e.g. cuhk_sysu_train or prw_test, or a JSON file"
    )
    parser.add_argument(
        "--image-root", type=Path, help="of a JSON file: where its file names start (its folder)"
    )
    parser.add_argument("--output", type=Path, default=Path("output/data"))
    parser.add_argument("--num", type=int, default=8, help="how many images")
    parser.add_argument("--image-id", type=int, nargs="+", help="these images instead")
    parser.add_argument("--long-side", type=int, default=1000, help="scale scenes to this length")
    parser.add_argument("--traceback", action="store_true", help="show where an error was raised")
    args = parser.parse_args()
    if args.num < 1 or args.long_side < 64:
        parser.error("--num must be at least 1, --long-side at least 64")
    return args


def choose(records: list[dict], num: int, image_ids: list[int] | None) -> list[dict]:
    """The records named by ``image_ids``, or ``num`` spread evenly over the set."""
    if image_ids is None:
        count = min(num, len(records))
        return [records[i * len(records) // count] for i in range(count)]
    by_id = {record["image_id"]: record for record in records}
    unknown = [image_id for image_id in image_ids if image_id not in by_id]
    if unknown:
        raise ValueError(f"--image-id {unknown}: the data set has no such image.")
    return [by_id[image_id] for image_id in image_ids]


def load_records(dataset: str, image_root: Path | None) -> list[dict]:
    """The records of a registered data set, or of a JSON file."""
    from detectron2.data import DatasetCatalog

    from person_search.data import load_person_search_json

    if dataset.endswith(".json"):
        return load_person_search_json(dataset, image_root)
    if dataset not in DatasetCatalog.list():
        ours = [name for name in DatasetCatalog.list() if "cuhk_sysu" in name or "prw" in name]
        raise ValueError(f"there is no data set '{dataset}'; there are {sorted(ours)}.")
    return DatasetCatalog.get(dataset)


def visualize(args: argparse.Namespace) -> None:
    """Writes one PNG per chosen record."""
    from person_search.search import read_image
    from person_search.utils.files import write_atomically
    from person_search.vis import draw_record, encode_image

    records = load_records(args.dataset, args.image_root)
    name = Path(args.dataset).stem
    args.output.mkdir(parents=True, exist_ok=True)
    for record in choose(records, args.num, args.image_id):
        picture = draw_record(read_image(record["file_name"]), record, args.long_side)
        content = encode_image(picture, ".png")
        path = args.output / f"{name}_{record['image_id']:06d}.png"
        write_atomically(path, content)
        print(path)


def main() -> int:
    return run_program(visualize, parse_args())


if __name__ == "__main__":
    sys.exit(main())
