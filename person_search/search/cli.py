# SPDX-License-Identifier: Apache-2.0
"""Command line of ``person-search``: finds a person in your own images and videos.

    person-search index --gallery galleries/street --source images/ --recursive \\
        --config-file configs/PSDiff/tiny/psdiff_slim_synthetic.yaml --weights model_final_ema.pth
    person-search query --gallery galleries/street --query street.jpg --box 120 40 160 170 \\
        --config-file configs/PSDiff/tiny/psdiff_slim_synthetic.yaml --weights model_final_ema.pth
    person-search serve --gallery galleries/street \\
        --config-file configs/PSDiff/tiny/psdiff_slim_synthetic.yaml --weights model_final_ema.pth
    person-search info --gallery galleries/street

``index`` can be interrupted and started again at any time. Images that cannot be read are named
and left out. Exit status: 0, also if nobody was found; 2 for wrong input; 130 after Ctrl-C.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from person_search.cli import run_program

GALLERY_HELP = "folder of the gallery"


def build_parser() -> argparse.ArgumentParser:
    """All sub-commands with their options."""
    parser = argparse.ArgumentParser(
        prog="person-search", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_index(commands.add_parser("index", help="add images and videos to a gallery"))
    _add_query(commands.add_parser("query", help="search a gallery for a person"))
    _add_serve(commands.add_parser("serve", help="search a gallery with a web browser"))
    for name, text in (
        ("info", "what is in a gallery"),
        ("verify", "read every byte of a gallery and name all damage"),
        ("compact", "write a gallery anew, without replaced, removed and damaged images"),
    ):
        command = commands.add_parser(name, help=text, description=text)
        command.add_argument("--gallery", required=True, type=Path, help=GALLERY_HELP)
        command.add_argument("--traceback", action="store_true", help="show where an error arose")
        if name == "compact":
            command.add_argument(
                "--index", action="store_true", help="then build the approximate index"
            )
    return parser


def _add_model(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config-file", required=True, help="the one the weights are trained with")
    parser.add_argument("--weights", default="", help="default: MODEL.WEIGHTS of the config")
    parser.add_argument("--gallery", required=True, type=Path, help=GALLERY_HELP)
    parser.add_argument("--traceback", action="store_true", help="show where an error was raised")
    parser.add_argument(
        "opts", nargs=argparse.REMAINDER, help="config overrides, e.g. MODEL.DEVICE cpu"
    )


def _add_index(parser: argparse.ArgumentParser) -> None:
    _add_model(parser)
    add = parser.add_argument
    add("--source", required=True, action="append", type=Path,
        help="folder, image or video; may be given several times")  # fmt: skip
    add("--recursive", action="store_true", help="folders within folders, too")
    sampling = parser.add_mutually_exclusive_group()
    sampling.add_argument("--every", type=float, default=1.0, metavar="SECONDS",
                          help="between the frames taken from a video (1)")  # fmt: skip
    sampling.add_argument("--fps", type=float, help="frames per second taken from a video")
    camera = parser.add_mutually_exclusive_group()
    camera.add_argument("--camera", default="", help="name of the camera of all these images")
    camera.add_argument("--camera-from-folder", action="store_true",
                        help="the folder of an image is named after its camera")  # fmt: skip
    add("--time", help="when all these images were taken, or the videos start; ISO 8601")
    add("--table", type=Path, help="CSV with the columns file, camera, time")
    add("--prune", action="store_true", help="take images out whose files are gone")
    add("--retry", action="store_true", help="read files again that could not be read before")
    add("--exact-only", action="store_true", help="build no approximate index")
    add("--num-gpus", type=int, default=0, help="processes, each with its own GPU")
    add("--num-processes", type=int, default=1, help="processes on a CPU")


def _add_query(parser: argparse.ArgumentParser) -> None:
    _add_model(parser)
    add = parser.add_argument
    add("--query", required=True, action="append", type=Path,
        help="image that shows the person; several of the same person are fused")  # fmt: skip
    whom = parser.add_mutually_exclusive_group()
    whom.add_argument("--box", type=float, nargs=4, action="append",
                      metavar=("X1", "Y1", "X2", "Y2"),
                      help="the person, in pixels; once per image")  # fmt: skip
    whom.add_argument("--point", type=float, nargs=2, action="append", metavar=("X", "Y"),
                      help="the person detected there; once per image")  # fmt: skip
    whom.add_argument("--best", action="store_true",
                      help="the person detected with the highest score (default)")  # fmt: skip
    add("--output", type=Path, default=Path("output/search"), help="folder for the results")
    add("--top", type=int, default=100, help="matches in results.jsonl (100)")
    add("--show", type=int, default=12, help="of them on the sheet and in the report (12)")
    add("--min-score", type=float, default=0.0, help="of the detections")
    add("--min-similarity", type=float, metavar="SIM",
        help="to the query; without it everybody is listed, the most similar first")  # fmt: skip
    add("--camera", action="append", default=[], help="only this one; may be repeated")
    add("--since", help="only images from this time on, e.g. 2026-05-01T12:00")
    add("--until", help="only images up to this time")
    add("--every-person", action="store_true",
        help="list all similar persons of an image, not only the most similar")  # fmt: skip
    add("--include-own", action="store_true", help="search the query's own image, too")
    add("--method", choices=("auto", "exact", "approximate"), default="auto")


def _add_serve(parser: argparse.ArgumentParser) -> None:
    _add_model(parser)
    add = parser.add_argument
    add("--host", default="127.0.0.1",
        help="address to answer at (127.0.0.1: this machine only); there is no login")  # fmt: skip
    add("--port", type=int, default=8017, help="0 for any that is free (8017)")
    add("--allow-host", action="append", default=[], metavar="NAME",
        help="name that browsers may use, besides localhost and addresses")  # fmt: skip
    add("--max-upload", type=float, default=20.0, metavar="MB", help="of one image (20)")
    add("--open", action="store_true", help="show the page in the browser")


def parse_args(words: Sequence[str] | None = None) -> argparse.Namespace:
    """Reads the command line and checks what can be checked without a model."""
    parser = build_parser()
    args = parser.parse_args(words)
    if args.command == "index":
        if args.fps is not None:
            if not args.fps > 0:
                parser.error(f"--fps is {args.fps:g}; it must be above 0")
            args.every = 1 / args.fps
        if not args.every > 0:
            parser.error(f"--every is {args.every:g}; it must be above 0")
    if args.command == "serve" and not args.max_upload > 0:
        parser.error(f"--max-upload is {args.max_upload:g}; it must be above 0")
    if args.command == "query":
        if args.top < 1:
            parser.error(f"--top is {args.top}; it must be at least 1")
        if args.show < 0:
            parser.error(f"--show is {args.show}; it must be at least 0")
        for name in ("box", "point"):
            given = getattr(args, name)
            if given and len(given) != len(args.query):
                parser.error(
                    f"--{name} is given {len(given)} times for {len(args.query)} images; give "
                    "one for each, in the same order"
                )
    return args


def _run(args: argparse.Namespace) -> int:
    from person_search.search.commands import COMMANDS

    return COMMANDS[args.command](args)


def main(words: Sequence[str] | None = None) -> int:
    """Runs a command; imports what it needs after the command line has been read."""
    args = parse_args(words)
    try:
        return run_program(_run, args)
    except KeyboardInterrupt:
        hint = " The same command goes on where it stopped." if args.command == "index" else ""
        print(f"\nInterrupted.{hint}", file=sys.stderr)
        return 130
