#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Searches a folder of pictures for the person in a box of another picture.

    python tools/search.py --config-file configs/PSDiff/psdiff_slim_synthetic.yaml \\
        --weights output/demo/train/model_final_ema.pth \\
        --query street.jpg --box 120 40 160 170 --gallery pictures/ --output output/search

Writes results.json (all pictures, most similar first) and sheet.png (the first of them, to look at)
into the output folder. Pictures that cannot be read are named and left out.
Exit status: 0, also if nobody was found; 2 for wrong input.
"""

import argparse
import json
import sys
from pathlib import Path

from person_search.program import run_program


def parse_args() -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config-file", required=True, help="the one the weights are trained with")
    parser.add_argument("--weights", default="", help="default: MODEL.WEIGHTS of the config")
    parser.add_argument("--query", required=True, type=Path, help="picture that shows the person")
    parser.add_argument(
        "--box", required=True, type=float, nargs=4, metavar=("X1", "Y1", "X2", "Y2"),
        help="the person in it, in pixels",
    )  # fmt: skip
    parser.add_argument("--gallery", required=True, type=Path, help="folder of pictures")
    parser.add_argument("--output", type=Path, default=Path("output/search"))
    parser.add_argument("--top", type=int, default=9, help="how many pictures the sheet shows")
    parser.add_argument("--traceback", action="store_true", help="show where an error was raised")
    parser.add_argument(
        "opts", nargs=argparse.REMAINDER, help="config overrides, e.g. MODEL.DEVICE cpu"
    )
    args = parser.parse_args()
    if args.top < 1:
        parser.error(f"--top is {args.top}; it must be at least 1")
    return args


def search(args: argparse.Namespace) -> None:
    """Searches, writes both files and prints the best pictures."""
    from person_search.config import build_config
    from person_search.search import (
        PersonSearcher,
        clip_box,
        draw_own_search,
        list_pictures,
        read_picture,
    )
    from person_search.vis import encode_picture

    cfg = build_config(args.config_file, args.opts)
    height, width = read_picture(args.query).shape[:2]
    box = clip_box(args.box, width, height).tolist()
    pictures = list_pictures(args.gallery)
    args.output.mkdir(parents=True, exist_ok=True)

    searcher = PersonSearcher.from_config(cfg, args.weights)
    (query_feat,) = searcher.embed(args.query, [box])
    gallery = searcher.build_gallery(pictures)
    same = next((str(path) for path in pictures if path.samefile(args.query)), None)
    matches = gallery.search(query_feat, skip=same)

    searched = len(gallery.paths) - (same in gallery.paths)
    plural = "picture" if searched == 1 else "pictures"
    sheet = draw_own_search(args.query, box, matches[: args.top], f"{searched} {plural}")
    result = {
        "query": {"image": str(args.query), "box": box},
        "gallery": {
            "folder": str(args.gallery),
            "pictures": searched,
            "persons": len(gallery),
            "left_out": dict(gallery.left_out),
        },
        "matches": [match.to_json() for match in matches],
    }
    write(args.output / "sheet.png", encode_picture(sheet, ".png"))
    write(args.output / "results.json", (json.dumps(result, indent=2) + "\n").encode())
    for match in matches[: args.top]:
        print(f"{match.rank:3d}  similarity {match.sim:6.3f}  {match.path}")
    if not matches:
        thresh = cfg.TEST.PERSON_SEARCH.SCORE_THRESH
        print(
            f"Nobody was found in {searched} {plural}. Detections must score at least {thresh}; "
            "TEST.PERSON_SEARCH.SCORE_THRESH 0.2 at the end of the command finds more."
        )
    print(f"{args.output / 'results.json'}\n{args.output / 'sheet.png'}")


def write(path: Path, content: bytes) -> None:
    """Writes a file completely or not at all."""
    from person_search.evaluation.predictions import write_atomically

    write_atomically(path, lambda file: file.write(content))


def main() -> int:
    return run_program(search, parse_args())


if __name__ == "__main__":
    sys.exit(main())
