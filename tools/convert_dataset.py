#!/usr/bin/env python
# SPDX-License-Identifier: Apache-2.0
"""Converts a data set to the project's COCO-style JSON, see docs/adding_a_dataset.md.

Examples::

    python tools/convert_dataset.py cuhk_sysu
    python tools/convert_dataset.py prw --root /data/PRW --output datasets/prw_json
    python tools/convert_dataset.py mot /data/MOT17/train --name street --every 25
    python tools/convert_dataset.py mot /data/MOT17/train --split identity --test-share 0.4

Images stay where they are. Writes <output>/<name>_train.json and <name>_test.json, and prints the
lines of a config that trains and tests on them. A track of a MOT sequence becomes an identity, a
sequence a camera.
"""

import argparse
import logging
import os
import sys
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from person_search.data.datasets import builtin
from person_search.data.datasets.convert import ConvertedSplit, convert_known_format, convert_mot
from person_search.data.datasets.mot import SPLIT_RULES, MotOptions

ROOTS = {"cuhk_sysu": builtin.cuhk_sysu_root, "prw": builtin.prw_root}


def make_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    formats = parser.add_subparsers(dest="format", required=True, metavar="FORMAT")
    for name, title in (("cuhk_sysu", "CUHK-SYSU"), ("prw", "PRW")):
        one = formats.add_parser(name, help=f"{title} in its original files")
        one.add_argument(
            "--root", type=Path, help="its folder (default: below $DETECTRON2_DATASETS)"
        )
        _add_output(one)
    mot = formats.add_parser("mot", help="MOT-challenge sequences with ground truth")
    mot.add_argument("root", type=Path, help="folder of the sequences, or one sequence")
    _add_output(mot)
    _add_mot_options(mot)
    return parser


def _add_mot_options(parser: argparse.ArgumentParser) -> None:
    default = MotOptions()
    parser.add_argument(
        "--every",
        type=int,
        default=0,
        metavar="N",
        help="take every N-th frame (default: one per second)",
    )
    parser.add_argument(
        "--split",
        choices=SPLIT_RULES,
        help="whole sequences, or identities within them (default: sequence if there are several)",
    )
    parser.add_argument(
        "--test-sequences",
        nargs="+",
        default=(),
        metavar="NAME",
        help="sequences to test on (default: the last ones)",
    )
    parser.add_argument(
        "--test-share",
        type=float,
        default=default.test_share,
        help="share of sequences or identities to test on (default: %(default)s)",
    )
    parser.add_argument(
        "--min-visibility",
        type=float,
        default=default.min_visibility,
        help="leave out people of whom less is seen (default: %(default)s)",
    )
    parser.add_argument(
        "--classes",
        type=int,
        nargs="+",
        default=default.classes,
        help="classes whose tracks are identities (default: 1, pedestrian)",
    )
    parser.add_argument(
        "--unlabeled-classes",
        type=int,
        nargs="*",
        default=default.unlabeled_classes,
        help="classes of people without identity (default: 2 7)",
    )
    parser.add_argument(
        "--global-ids",
        action="store_true",
        help="a track number is the same person in all sequences",
    )


def _add_output(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--output", type=Path, help="folder to write to (default: that of the set)")
    parser.add_argument("--name", help="of the new data set (default: by format or folder)")
    parser.add_argument("--overwrite", action="store_true", help="replace files that are there")


def convert(args: argparse.Namespace, report) -> list[ConvertedSplit]:
    """Converts what the command line asks for.

    Raises:
        ValueError, OSError: it cannot be read, or must not be written.
    """
    root = args.root or ROOTS[args.format]()
    output = args.output or root
    name = args.name or (f"{args.format}_json" if args.format in ROOTS else root.resolve().name)
    there = [p for p in (output / f"{name}_{x}.json" for x in ("train", "test")) if p.exists()]
    if there and not args.overwrite:
        raise ValueError(f"{there[0]} exists: choose another --name, or add --overwrite")
    if args.format in ROOTS:
        return convert_known_format(args.format, root, output, name, report)
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
    return convert_mot(root, output, name, options, report)


def show_summary(console: Console, splits: list[ConvertedSplit]) -> None:
    """Prints the counts, and the config that uses the files."""
    table = Table(title="written", title_justify="left")
    for title in ("file", "images", "boxes", "with identity", "identities", "queries", "protocols"):
        table.add_column(title, justify="left" if title in ("file", "protocols") else "right")
    for one in splits:
        counts = (one.images, one.boxes, one.labeled, one.persons, one.queries)
        protocols = ", ".join(one.protocols)
        table.add_row(escape(one.path.name), *(f"{n:,}" for n in counts), protocols)
    console.print(table)
    lines = ["DATASETS:", "  PERSON_SEARCH_JSON:"]
    for one in splits:
        entry = [one.path.stem, config_path(one.path)]
        if one.image_root.resolve() != one.path.parent.resolve():
            entry.append(config_path(one.image_root))
        lines.append(f"  - [{', '.join(entry)}]")
    for key, one in zip(("TRAIN", "TEST"), splits, strict=True):
        lines.append(f'  {key}: ("{one.path.stem}",)')
    console.print("\nIn a config:\n")
    console.print(escape("\n".join(lines)), soft_wrap=True, highlight=False)


def config_path(path: Path) -> str:
    """Returns a path as DATASETS.PERSON_SEARCH_JSON takes it: below the data folder, or whole."""
    folder = Path(os.environ.get("DETECTRON2_DATASETS") or "datasets").resolve()
    path = path.resolve()
    return path.relative_to(folder).as_posix() if path.is_relative_to(folder) else str(path)


def main(argv: list[str] | None = None) -> int:
    """Converts one data set and returns the exit status: 1 if it cannot be done."""
    args = make_parser().parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    try:
        splits = convert(args, lambda text: print(f"{text} ...", file=sys.stderr))
    except (ValueError, OSError) as e:
        print(f"error: {e}", file=sys.stderr)
        return 1
    show_summary(Console(), splits)
    return 0


if __name__ == "__main__":
    sys.exit(main())
