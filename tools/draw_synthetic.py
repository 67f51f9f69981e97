# SPDX-License-Identifier: Apache-2.0
"""Draws a person search data set and writes it in the format of CUHK-SYSU, PRW or both.

python tools/draw_synthetic.py --root datasets/synthetic --workers 4
"""

import argparse
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from person_search.cli import program_parser, run_program
from person_search.synthetic_config import DIFFICULTY_NAMES, SyntheticConfig

FORMATS = {"cuhk_sysu": "CUHK-SYSU", "prw": "PRW"}


def _difficulty(text: str) -> float:
    try:
        return DIFFICULTY_NAMES[text] if text in DIFFICULTY_NAMES else float(text)
    except ValueError:
        names = ", ".join(DIFFICULTY_NAMES)
        raise argparse.ArgumentTypeError(f"{text!r} is not a number or one of {names}") from None


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parses the command line; the defaults of the options are those of ``SyntheticConfig``."""
    parser = program_parser(__doc__)
    root = Path(os.environ.get("DETECTRON2_DATASETS") or "datasets") / "synthetic"
    parser.add_argument("--root", type=Path, metavar="DIR", default=root,
                        help=f"parent folder of CUHK-SYSU and PRW (default: {root})")  # fmt: skip
    parser.add_argument("--format", nargs="+", choices=tuple(FORMATS), default=["cuhk_sysu"],
                        help="formats to write (default: cuhk_sysu)")  # fmt: skip
    parser.add_argument("--workers", type=int, metavar="N", default=1,
                        help="number of drawing processes (default: 1)")  # fmt: skip
    parser.add_argument("--quiet", action="store_true", help="show no progress bar")

    def add(name: str, text: str, convert: Callable[[str], Any] = int, **kwargs: Any) -> None:
        default = getattr(SyntheticConfig(), name)
        shown = " ".join(map(str, default)) if isinstance(default, tuple) else default
        parser.add_argument(f"--{name.replace('_', '-')}", type=convert, default=default,
                            help=f"{text} (default: {shown})", **kwargs)  # fmt: skip

    add("seed", "root of all random streams", metavar="N")
    add("difficulty", f"0 to 1, or one of {', '.join(DIFFICULTY_NAMES)}", _difficulty)
    parser.add_argument("--size", type=int, nargs=2, metavar=("WIDTH", "HEIGHT"),
                        default=(SyntheticConfig.width, SyntheticConfig.height),
                        help="image size in pixels (default: 320 240)")  # fmt: skip
    add("train_images", "number of training images", metavar="N")
    add("test_images", "number of test images, which form the gallery pool", metavar="N")
    add("train_ids", "number of labeled training identities", metavar="N")
    add("test_ids", "number of test identities, with a query each (PRW: per camera)", metavar="N")
    add("cameras", "number of places in the CUHK-SYSU set", metavar="N")
    add("jpeg_quality", "JPEG quality, 1 to 100", metavar="N")
    add("people", "range of the number of persons per image", nargs=2, metavar=("MIN", "MAX"))
    add("labeled_share", "share of the persons with an identity", float, metavar="SHARE")
    add("gallery_sizes", "gallery sizes of the CUHK-SYSU protocols TestG<N>; sizes above the "
        "number of test images are omitted", nargs="*", metavar="N")  # fmt: skip
    add("look_alike_share", "share of the identities that resemble another one; None: depends on "
        "--difficulty", float, metavar="SHARE")  # fmt: skip
    parser.add_argument("--no-quirks", dest="quirks", action="store_false",
                        help="leave out the irregularities of the real files")  # fmt: skip
    return parser.parse_args(argv)


def write(args: argparse.Namespace) -> None:
    """Writes the data sets of all formats."""
    from person_search.data import synthetic

    options = vars(args).copy()
    root, workers, progress = args.root, args.workers, not args.quiet
    for name in ("root", "format", "workers", "quiet", "traceback"):
        del options[name]
    options["width"], options["height"] = options.pop("size")
    options["people"], options["gallery_sizes"] = tuple(args.people), tuple(args.gallery_sizes)
    cfg = SyntheticConfig(**options)
    for name in args.format:
        folder, write_set = FORMATS[name], getattr(synthetic, f"write_{name}")
        start = time.perf_counter()
        if write_set(root / folder, cfg, workers=workers, progress=progress):
            print(f"Wrote {root / folder} in {time.perf_counter() - start:.1f} s.")
        else:
            print(f"{root / folder} already exists with the same options.")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the program and returns the exit status."""
    return run_program(write, parse_args(argv), log=False)


if __name__ == "__main__":
    sys.exit(main())
