#!/usr/bin/env python
# SPDX-License-Identifier: Apache-2.0
"""Converts a data set to the project's COCO-style JSON, see docs/adding_a_dataset.md.

Examples::

    python tools/convert_dataset.py cuhk_sysu
    python tools/convert_dataset.py prw --root /data/PRW --output datasets/prw_json
    python tools/convert_dataset.py mot /data/MOT17/train --name street --every 25
    python tools/convert_dataset.py mot /data/MOT17/train --split identity --test-share 0.4
    python tools/convert_dataset.py posetrack21 --root /data/PoseTrack21
    python tools/convert_dataset.py movienet --root /data/MovieNet-PS --appearances 30
    python tools/convert_dataset.py cdps --root /data/CDPS
    python tools/convert_dataset.py cvat annotations.xml --images images/ --identity person_id
    python tools/convert_dataset.py label_studio export.json --images images/ --split identity

Images are not copied. Writes <output>/<name>_train.json and <name>_test.json, and prints the lines
of a config that trains and tests on them. A track of a MOT sequence becomes an identity, a sequence
a camera. An export of CVAT or Label Studio becomes <output>/<name>.json unless --split is given.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from person_search.cli import add_common_options, run_program

FORMATS = {
    "cuhk_sysu": "CUHK-SYSU",
    "prw": "PRW",
    "posetrack21": "PoseTrack21 (person search)",
    "movienet": "MovieNet-PS (MovieNet-CS)",
    "cdps": "CDPS",
}
TOOLS = {
    "cvat": "annotations.xml of CVAT, as 'CVAT for images 1.1' or 'CVAT for video 1.1'",
    "label_studio": "JSON of Label Studio",
}


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
    movienet = formats.choices["movienet"]
    movienet.add_argument(
        "--appearances",
        type=int,
        default=10,
        metavar="N",
        help="training set Train_app<N>: 10, 30, 50, 70 or 100 (default: %(default)s)",
    )
    movienet.add_argument(
        "--gallery-sizes",
        type=int,
        nargs="+",
        default=(),
        metavar="N",
        help="protocols to convert, the default one first (default: all that exist)",
    )
    for name, title in TOOLS.items():
        _add_labels(formats.add_parser(name, help=title))
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
    _add_test(mot, "sequence")
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


def _add_test(parser: argparse.ArgumentParser, sequence: str) -> None:
    parser.add_argument(
        f"--test-{sequence}s",
        dest="test_sequences",
        nargs="+",
        default=(),
        metavar="NAME",
        help=f"{sequence}s to test on (default: the last ones)",
    )
    parser.add_argument(
        "--test-share",
        type=float,
        default=0.5,
        help=f"share of {sequence}s or identities to test on, between 0 and 1 (default: "
        "%(default)s)",
    )


def _add_labels(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", type=Path, help="exported file")
    parser.add_argument(
        "--images",
        type=Path,
        metavar="FOLDER",
        help="folder of the images (default: that of the file)",
    )
    _add_output(parser)
    parser.add_argument(
        "--identity",
        default="",
        metavar="NAME",
        help="attribute (CVAT) or control per region (Label Studio) with the identity; or 'label', "
        "'track' (CVAT for video), 'none' (default: the attribute that looks like one)",
    )
    parser.add_argument(
        "--labels",
        nargs="+",
        default=(),
        metavar="NAME",
        help="labels of persons (default: person, pedestrian, people)",
    )
    parser.add_argument(
        "--every", type=int, default=1, metavar="N", help="take every N-th frame of a video"
    )
    parser.add_argument(
        "--camera-from-folder", action="store_true", help="the folder of an image is its camera"
    )
    parser.add_argument(
        "--split",
        choices=("folder", "identity"),
        help="split into training and test data by folder, or by identity (default: one file)",
    )
    _add_test(parser, "folder")


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
    from person_search.data.datasets import builtin, cdps, movienet, posetrack21
    from person_search.data.datasets import convert as conversion
    from person_search.data.datasets.label_tools import LabelOptions
    from person_search.data.datasets.mot import MotOptions

    def report(text: str) -> None:
        print(f"{text} ...", file=sys.stderr)

    layouts = {"posetrack21": posetrack21, "movienet": movienet, "cdps": cdps}
    if args.format in TOOLS:
        root = args.images or args.file.parent
    elif args.format in layouts:
        root = args.root or layouts[args.format].LAYOUT.find(builtin.data_folder())
    else:
        root = args.root or getattr(builtin, f"{args.format}_root")()
    output = args.output or root
    name = args.name or (f"{args.format}_json" if args.format in FORMATS else root.resolve().name)
    single = args.format in TOOLS and not args.split
    files = [f"{name}.json"] if single else [f"{name}_{split}.json" for split in ("train", "test")]
    there = [path for path in (output / file for file in files) if path.exists()]
    if there and not args.overwrite:
        raise ValueError(f"{there[0]} exists: choose another --name, or add --overwrite")
    if args.format in layouts:
        if args.format == "posetrack21":
            documents = posetrack21.posetrack21_documents(root)
        elif args.format == "movienet":
            sizes = args.gallery_sizes
            documents = movienet.movienet_documents(root, args.appearances, sizes, report)
        else:
            documents = cdps.cdps_documents(root)
        layout = layouts[args.format].LAYOUT
        splits = conversion.convert_documents(documents, root, output, name, layout, report)
    elif args.format in FORMATS:
        splits = conversion.convert_known_format(args.format, root, output, name, report)
    elif args.format in TOOLS:
        label_options = LabelOptions(
            split="sequence" if args.split == "folder" else args.split or "",
            test_sequences=tuple(args.test_sequences),
            test_share=args.test_share,
            identity=args.identity,
            labels=tuple(args.labels),
            every=args.every,
            camera_from_folder=args.camera_from_folder,
            single=single,
        )
        splits = conversion.convert_labels(
            args.format, args.file, root, output, name, label_options, report
        )
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
        splits = conversion.convert_mot(root, output, name, options, report)
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
    for one in splits:
        lines.append(f'  {"TEST" if one.split == "test" else "TRAIN"}: ("{one.path.stem}",)')
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
