# SPDX-License-Identifier: Apache-2.0
"""Command line of the synthetic data generator."""

import argparse
import os
import sys
import time
from pathlib import Path

from . import SyntheticConfig, write_cuhk_sysu, write_prw
from .config import DIFFICULTY_NAMES

FORMATS = {"cuhk_sysu": ("CUHK-SYSU", write_cuhk_sysu), "prw": ("PRW", write_prw)}


def _difficulty(text: str) -> float:
    return DIFFICULTY_NAMES[text] if text in DIFFICULTY_NAMES else float(text)


def build_parser() -> argparse.ArgumentParser:
    """All options; their defaults are those of ``SyntheticConfig``."""
    default = SyntheticConfig()
    parser = argparse.ArgumentParser(
        prog="python -m person_search.data.synthetic",
        description="Draw a person search data set and write it as CUHK-SYSU and/or PRW.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    datasets = os.environ.get("DETECTRON2_DATASETS", "datasets")
    parser.add_argument("--root", type=Path, default=Path(datasets) / "synthetic",
                        help="folder that gets the subfolders CUHK-SYSU and PRW")  # fmt: skip
    parser.add_argument("--format", nargs="+", choices=tuple(FORMATS), default=["cuhk_sysu"])
    parser.add_argument("--workers", type=int, default=1, help="processes that draw")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    parser.add_argument("--seed", type=int, default=default.seed)
    parser.add_argument("--difficulty", type=_difficulty, default=default.difficulty,
                        help=f"0 to 1, or one of {', '.join(DIFFICULTY_NAMES)}")  # fmt: skip
    parser.add_argument("--size", type=int, nargs=2, metavar=("WIDTH", "HEIGHT"),
                        default=(default.width, default.height))  # fmt: skip
    for name, text in (
        ("train_images", "training images"),
        ("test_images", "test images, the gallery pool"),
        ("train_ids", "labeled training identities"),
        ("test_ids", "test identities, one query each (PRW: one per camera)"),
        ("cameras", "places of the CUHK-SYSU set"),
        ("jpeg_quality", "1 to 100"),
    ):
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=getattr(default, name),
                            help=text)  # fmt: skip
    parser.add_argument("--people", type=int, nargs=2, metavar=("FEWEST", "MOST"),
                        default=default.people, help="people per image")  # fmt: skip
    parser.add_argument("--labeled-share", type=float, default=default.labeled_share,
                        help="share of the people with an identity")  # fmt: skip
    parser.add_argument("--gallery-sizes", type=int, nargs="*", default=default.gallery_sizes,
                        help="protocols TestG<X> of CUHK-SYSU, as the pool allows")  # fmt: skip
    parser.add_argument("--look-alike-share", type=float, default=None,
                        help="share of look-alikes; None: from difficulty")  # fmt: skip
    parser.add_argument("--no-quirks", dest="quirks", action="store_false",
                        help="leave out the irregularities of the real files")  # fmt: skip
    return parser


def main(argv: list[str] | None = None) -> int:
    """Writes the sets asked for; returns the exit status."""
    args = build_parser().parse_args(argv)
    try:
        cfg = SyntheticConfig(
            seed=args.seed,
            difficulty=args.difficulty,
            width=args.size[0],
            height=args.size[1],
            train_images=args.train_images,
            test_images=args.test_images,
            train_ids=args.train_ids,
            test_ids=args.test_ids,
            people=tuple(args.people),
            labeled_share=args.labeled_share,
            gallery_sizes=tuple(args.gallery_sizes),
            cameras=args.cameras,
            look_alike_share=args.look_alike_share,
            quirks=args.quirks,
            jpeg_quality=args.jpeg_quality,
        )
        for name in args.format:
            folder, write = FORMATS[name]
            root, start = args.root / folder, time.perf_counter()
            if write(root, cfg, workers=args.workers, progress=not args.quiet):
                print(f"wrote {root} in {time.perf_counter() - start:.1f} s")
            else:
                print(f"{root} is there already, written with the same options")
    except (ValueError, FileExistsError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
