#!/usr/bin/env python
# SPDX-License-Identifier: Apache-2.0
"""Checks a data set: counts beside the published ones, every irregularity and every error.

Examples::

    python tools/check_dataset.py cuhk_sysu
    python tools/check_dataset.py prw --root /data/PRW --decode
    python tools/check_dataset.py synthetic_cuhk_sysu --limit 5
    python tools/check_dataset.py datasets/mine/train.json --decode

The last line says what the data set is fit for: training, evaluation, or detection only (without
identities, which training and evaluation need). Exit status: 0 if it is fit for one of them, 1 if
not, 2 for a wrong command line.
"""

import argparse
import sys
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from person_search.cli import program_parser, run_program

DATASETS = ("cuhk_sysu", "prw", "synthetic_cuhk_sysu", "synthetic_prw")


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parses the command line."""
    parser = program_parser(__doc__)
    parser.add_argument(
        "dataset", help=f"{', '.join(DATASETS)}, or a JSON file (docs/adding_a_dataset.md)"
    )
    parser.add_argument(
        "--root",
        type=Path,
        metavar="FOLDER",
        help="folder of the data set (default: below $DETECTRON2_DATASETS or datasets/)",
    )
    parser.add_argument(
        "--image-root",
        type=Path,
        metavar="FOLDER",
        help="folder to which the file names in a JSON file are relative (default: its own folder)",
    )
    parser.add_argument(
        "--decode", action="store_true", help="decode every image; takes minutes on a real data set"
    )
    parser.add_argument(
        "--limit",
        type=int,
        default=0,
        metavar="N",
        help="maximum number of lines per kind of finding; 0 shows all (default: 0)",
    )
    parser.add_argument(
        "--compare",
        action=argparse.BooleanOptionalAction,
        help="compare with the published counts (default: unless the data set is synthetic)",
    )
    args = parser.parse_args(argv)
    is_json = args.dataset.endswith(".json")
    if not is_json and args.dataset not in DATASETS:
        parser.error(f"{args.dataset!r} is neither one of {list(DATASETS)} nor a .json file")
    if is_json and (args.root or args.compare):
        parser.error("--root and --compare do not apply to a JSON file; use --image-root")
    if not is_json and args.image_root:
        parser.error("--image-root applies to a JSON file only; use --root")
    if args.limit < 0:
        parser.error(f"--limit is {args.limit}; it must be 0 (all) or more")
    return args


def check(args: argparse.Namespace) -> int:
    """Checks a data set, prints the report and returns the exit status."""
    from rich.console import Console

    from person_search.data.datasets import builtin
    from person_search.data.datasets.check import check_dataset, check_json_dataset
    from person_search.data.datasets.common import IRREGULARITY_KINDS

    if args.dataset.endswith(".json"):
        report = check_json_dataset(args.dataset, args.image_root, args.decode)
    else:
        root = args.root or getattr(builtin, f"{args.dataset}_root")()
        format_name = args.dataset.removeprefix("synthetic_")
        report = check_dataset(format_name, root, args.compare, args.decode)

    console = Console()
    if report.counts:
        show_counts(console, report)
    by_kind = defaultdict(list)
    for item in report.irregularities:
        by_kind[item.kind].append(f"{item.where}: {item.detail}")
    for kind in IRREGULARITY_KINDS:
        if kind in by_kind:
            show_lines(console, IRREGULARITY_KINDS[kind], by_kind[kind], args.limit)
    if report.notes:
        show_lines(console, "Notes", report.notes, args.limit)
    if report.errors:
        show_lines(console, "[red]Errors", report.errors, args.limit)
    if report.uses:
        console.print(f"\n[green]Fit for {' and '.join(report.uses)}.")
    else:
        console.print("\n[red]Not fit for use.")
    return 0 if report.uses else 1


def show_counts(console, report) -> None:
    """Prints the table of counts."""
    from rich.markup import escape
    from rich.table import Table

    table = Table(title=escape(f"{report.title}: {report.root}"), title_justify="left")
    compared = any(count.published is not None for count in report.counts)
    table.add_column("count")
    table.add_column("found", justify="right")
    if compared:
        table.add_column("published", justify="right")
        table.add_column("")
    for count in report.counts:
        row = [count.what, f"{count.found:,}"]
        if compared:
            known = count.published is not None
            mark = "" if not known else "[red]differs" if count.differs else "[green]ok"
            row += [f"{count.published:,}" if known else "", mark]
        table.add_row(*row)
    console.print(table)


def show_lines(console, title: str, lines: list[str], limit: int) -> None:
    """Prints a headline with the number of lines, and the first lines."""
    from rich.markup import escape

    console.print(f"\n[bold]{title}: {len(lines)}")
    for line in lines[: limit or None]:
        console.print(f"  {escape(line)}", soft_wrap=True, highlight=False)
    if limit and len(lines) > limit:
        console.print(f"  ... and {len(lines) - limit} more (--limit 0 shows all)")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the program and returns the exit status."""
    return run_program(check, parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
