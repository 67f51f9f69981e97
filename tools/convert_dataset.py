#!/usr/bin/env python
# SPDX-License-Identifier: Apache-2.0
"""Converts a data set to the project's COCO-style JSON, see docs/adding_a_dataset.md.

Examples::

    python tools/convert_dataset.py cuhk_sysu
    python tools/convert_dataset.py prw --root /data/PRW --output datasets/prw_json
    python tools/convert_dataset.py mot /data/MOT17/train --name street --every 25
    python tools/convert_dataset.py mot /data/MOT17/train --split identity --test-share 0.4

Images are not copied. Writes <output>/<name>_train.json and <name>_test.json, and prints the lines
of a config that trains and tests on them. A track of a MOT sequence becomes an identity, a sequence
a camera.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from person_search.cli import add_common_options, run_program

FORMATS = {"cuhk_sysu": "CUHK-SYSU", "prw": "PRW"}


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parses the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    formats = parser.add_subparsers(dest="format", required=True, metavar="FORMAT")
    for name, title in FORMATS.items():
        one = formats.add_parser(name, help=f"{title} in its original files")
        one.add_argument(
            "--root",
            type=Path,
            metavar="FOLDER",
            help="folder of the data set (default: below $DETECTRON2_DATASETS)",
        )
        _add_output(one)
    mot = formats.add_parser("mot", help="MOT-challenge sequences with ground truth")
    mot.add_argument("root", type=Path, help="folder of the sequences, or one sequence")
    _add_output(mot)
    mot.add_argument(
        "--every",
        type=int,
        default=0,
        metavar="N",
        help="take every N-th frame (default: one per second)",
    )
    mot.add_argument(
        "--split",
        choices=("sequence", "identity"),
        help="split into whole sequences, or by identity within them (default: sequence if there "
        "are several)",
    )
    mot.add_argument(
        "--test-sequences",
        nargs="+",
        default=(),
        metavar="NAME",
        help="sequences to test on (default: the last ones)",
    )
    mot.add_argument(
        "--test-share",
        type=float,
        default=0.5,
        help="share of sequences or identities to test on, between 0 and 1 (default: %(default)s)",
    )
    mot.add_argument(
        "--min-visibility",
        type=float,
        default=0.25,
        help="minimum visible part of a person, 0 to 1 (default: %(default)s)",
    )
    mot.add_argument(
        "--classes",
        type=int,
        nargs="+",
        default=(1,),
        help="classes whose tracks are identities (default: 1, pedestrian)",
    )
    mot.add_argument(
        "--unlabeled-classes",
        type=int,
        nargs="*",
        default=(2, 7),
        help="classes of persons without identity (default: 2 7)",
    )
    mot.add_argument(
        "--global-ids",
        action="store_true",
        help="a track number means the same person in all sequences",
    )
    return parser.parse_args(argv)


def _add_output(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--output",
        type=Path,
        metavar="FOLDER",
        help="folder of the JSON files (default: that of the data set)",
    )
    parser.add_argument(
        "--name", help="name of the new data set (default: by format, or that of the folder)"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace existing files")
    add_common_options(parser)


def convert(args: argparse.Namespace) -> None:
    """Converts a data set and prints a summary."""
    from person_search.data.datasets import builtin
    from person_search.data.datasets.convert import convert_known_format, convert_mot
    from person_search.data.datasets.mot import MotOptions

    def report(text: str) -> None:
        print(f"{text} ...", file=sys.stderr)

    root = args.root or getattr(builtin, f"{args.format}_root")()
    output = args.output or root
    name = args.name or (f"{args.format}_json" if args.format in FORMATS else root.resolve().name)
    there = [p for p in (output / f"{name}_{x}.json" for x in ("train", "test")) if p.exists()]
    if there and not args.overwrite:
        raise ValueError(f"{there[0]} exists: choose another --name, or add --overwrite")
    if args.format in FORMATS:
        splits = convert_known_format(args.format, root, output, name, report)
    else:
        options = MotOptions(
            every=args.every,
            classes=tuple(args.classes),
            unlabeled_classes=tuple(args.unlabeled_classes),
            min_visibility=args.min_visibility,
            split=args.split or "",
            test_sequences=tuple(args.test_sequences),
            test_share=args.test_share,
            global_ids=args.global_ids,
        )
        splits = convert_mot(root, output, name, options, report)
    show_summary(splits)


def show_summary(splits) -> None:
    """Prints the counts, and the config that uses the files."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console()
    table = Table(title="written", title_justify="left")
    for title in ("file", "images", "boxes", "with identity", "identities", "queries", "protocols"):
        table.add_column(title, justify="left" if title in ("file", "protocols") else "right")
    lines = ["DATASETS:", "  PERSON_SEARCH_JSON:"]
    for one in splits:
        content = one.table
        queries = 0 if content.query_ids is None else len(content.query_ids)
        counts = (len(content.names), len(content.boxes), len(content.labeled_rows))
        shown = [f"{number:,}" for number in (*counts, content.num_pids, queries)]
        table.add_row(escape(one.path.name), *shown, ", ".join(one.protocols))
        entry = [one.path.stem, config_path(one.path)]
        if one.image_root.resolve() != one.path.parent.resolve():
            entry.append(config_path(one.image_root))
        lines.append(f"  - [{', '.join(entry)}]")
    for key, one in zip(("TRAIN", "TEST"), splits, strict=True):
        lines.append(f'  {key}: ("{one.path.stem}",)')
    console.print(table)
    console.print("\nIn a config:\n")
    console.print(escape("\n".join(lines)), soft_wrap=True, highlight=False)


def config_path(path: Path) -> str:
    """Returns a path for DATASETS.PERSON_SEARCH_JSON: relative to the data folder, or absolute."""
    folder = Path(os.environ.get("DETECTRON2_DATASETS") or "datasets").resolve()
    path = path.resolve()
    return path.relative_to(folder).as_posix() if path.is_relative_to(folder) else str(path)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the program and returns the exit status."""
    return run_program(convert, parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
