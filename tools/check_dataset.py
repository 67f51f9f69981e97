#!/usr/bin/env python
# SPDX-License-Identifier: Apache-2.0
"""Checks a data set: counts beside the published ones, every irregularity, and what is broken.

Examples::

    python tools/check_dataset.py cuhk_sysu
    python tools/check_dataset.py prw --root /data/PRW --decode
    python tools/check_dataset.py synthetic_cuhk_sysu --limit 5
    python tools/check_dataset.py datasets/mine/train.json --decode

Exit status: 0 for a set that is fit for use, 1 for a broken one, 2 for a wrong command line.
"""

import argparse
import logging
import sys
from collections import defaultdict
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from person_search.data.datasets import builtin
from person_search.data.datasets.check import CheckReport, check_dataset
from person_search.data.datasets.common import IRREGULARITY_KINDS
from person_search.data.datasets.check import check_json_dataset

DATASETS = {
    "cuhk_sysu": ("cuhk_sysu", builtin.cuhk_sysu_root),
    "prw": ("prw", builtin.prw_root),
    "synthetic_cuhk_sysu": ("cuhk_sysu", builtin.synthetic_cuhk_sysu_root),
    "synthetic_prw": ("prw", builtin.synthetic_prw_root),
}


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "dataset", help=f"{', '.join(sorted(DATASETS))}, or a JSON file (docs/adding_a_dataset.md)"
    )
    parser.add_argument(
        "--root", type=Path, help="its folder (default: below $DETECTRON2_DATASETS or datasets/)"
    )
    parser.add_argument(
        "--image-root",
        type=Path,
        help="of a JSON file: folder that the file names start from (default: that of the JSON)",
    )
    parser.add_argument(
        "--decode", action="store_true", help="decode every image; takes minutes on a real set"
    )
    parser.add_argument(
        "--limit", type=int, default=0, metavar="N", help="show N lines per kind (default: all)"
    )
    parser.add_argument(
        "--compare",
        action=argparse.BooleanOptionalAction,
        help="compare with the published numbers (default: unless the set is a synthetic one)",
    )
    args = parser.parse_args(argv)
    is_json = args.dataset.endswith(".json")
    if not is_json and args.dataset not in DATASETS:
        parser.error(f"{args.dataset!r} is none of {sorted(DATASETS)} and no .json file")
    if is_json and (args.root or args.compare):
        parser.error("--root and --compare are not for a JSON file; --image-root is")
    if not is_json and args.image_root:
        parser.error("--image-root is for a JSON file; use --root")
    if args.limit < 0:
        parser.error(f"--limit is {args.limit}; it must be 0 (all) or more")
    return args


def show_counts(console: Console, report: CheckReport) -> None:
    """Prints the table of counts."""
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


def show_lines(console: Console, title: str, lines: list[str], limit: int) -> None:
    """Prints a headline with the number of lines, and the first of them."""
    console.print(f"\n[bold]{title}: {len(lines)}")
    for line in lines[: limit or None]:
        console.print(f"  {escape(line)}", soft_wrap=True, highlight=False)
    if limit and len(lines) > limit:
        console.print(f"  ... and {len(lines) - limit} more (--limit 0 shows all)")


def main(argv: list[str] | None = None) -> int:
    """Checks one data set and returns the exit status."""
    args = parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    if args.dataset.endswith(".json"):
        report = check_json_dataset(args.dataset, args.image_root, args.decode)
    else:
        format_name, find_root = DATASETS[args.dataset]
        report = check_dataset(format_name, args.root or find_root(), args.compare, args.decode)

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
        show_lines(console, "Not there", report.notes, args.limit)
    if report.errors:
        show_lines(console, "[red]Errors", report.errors, args.limit)
        return 1
    console.print("\n[green]Fit for use.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
