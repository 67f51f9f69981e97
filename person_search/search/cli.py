# SPDX-License-Identifier: Apache-2.0
r"""Finds a person in your own images and videos.

    person-search index --gallery galleries/street --source images/ --recursive \
        --config-file configs/PSDiff/tiny/psdiff_slim_synthetic.yaml --weights model_final_ema.pth
    person-search query --gallery galleries/street --query street.jpg --box 120 40 160 170 \
        --config-file configs/PSDiff/tiny/psdiff_slim_synthetic.yaml --weights model_final_ema.pth
    person-search serve --gallery galleries/street \
        --config-file configs/PSDiff/tiny/psdiff_slim_synthetic.yaml --weights model_final_ema.pth
    person-search info --gallery galleries/street

``index`` can be interrupted and restarted at any time. Unreadable images are listed and left out.
Exit status: 0, also if no person was found; 2 for invalid input; 130 after Ctrl-C.
"""

import argparse
import io
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from person_search.cli import add_common_options, add_launch_options, run_program
from person_search.search.locations import MilvusAddress, parse_location
from person_search.search.remote import Place, parse_place

COMMANDS = {
    "index": "add images and videos to a gallery",
    "query": "search a gallery for a person",
    "serve": "search a gallery in a web browser",
    "label": "propose identities for a gallery, correct them in a web browser, write them as JSON",
    "info": "print what a gallery contains, or the model card of a weight file",
    "verify": "read every byte of a gallery and list all damage",
    "compact": "rewrite a gallery without replaced, removed and damaged images",
    "forget": "delete images or persons from a gallery for good",
    "export": "write a model as an ONNX file",
    "copy": "copy a gallery into a folder or a database",
}


def build_parser() -> argparse.ArgumentParser:
    """Returns the parser with all sub-commands and their options."""
    parser = argparse.ArgumentParser(
        prog="person-search",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, text in COMMANDS.items():
        command = commands.add_parser(name, help=text, description=f"{text.capitalize()}.")
        with_model = name in ("index", "query", "serve", "label", "export")
        add_common_options(command, config=with_model, required=name != "label")
        if name == "copy":
            for place in ("source", "target"):
                command.add_argument(
                    place, type=_gallery, metavar=place.upper(), help=f"{place} gallery"
                )
            continue
        if name != "export":
            command.add_argument(
                "--gallery",
                required=name != "info",
                type=_gallery,
                metavar="GALLERY",
                help="folder of the gallery, or milvus://HOST:19530/NAME",
            )
        if with_model or name == "info":
            default = "" if name == "info" else " (default: MODEL.WEIGHTS of the config)"
            command.add_argument(
                "--weights",
                default="",
                metavar="FILE",
                help=f"checkpoint, https://..., or hf://owner/name[/file][@revision]{default}",
            )
        if name in ("index", "query", "serve", "info"):
            command.add_argument(
                "--precision",
                metavar="NAME",
                help="float32, bfloat16, float16 or auto, the fastest of this machine (default: "
                "TEST.PRECISION of the config, float32)",
            )
        if name == "compact":
            command.add_argument(
                "--index", action="store_true", help="also build the approximate index"
            )
    _add_index(commands.choices["index"])
    _add_query(commands.choices["query"])
    _add_serve(commands.choices["serve"])
    _add_label(commands.choices["label"])
    _add_forget(commands.choices["forget"])
    _add_export(commands.choices["export"])
    return parser


def _gallery(text: str) -> Path | MilvusAddress:
    try:
        return parse_location(text)
    except ValueError as e:  # argparse would print the text, which may hold a password
        raise argparse.ArgumentTypeError(str(e)) from e


def _place(text: str) -> Place:
    try:
        return parse_place(text)
    except ValueError as e:
        raise argparse.ArgumentTypeError(str(e)) from e


def _add_index(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--source", required=True, action="append", type=_place, metavar="PATH",
        help="folder, image or video to index, also at s3://...; may be repeated")  # fmt: skip
    add("--recursive", action="store_true", help="include subfolders of the sources")
    sampling = parser.add_mutually_exclusive_group()
    sampling.add_argument("--every", type=float, default=1.0, metavar="SECONDS",
                          help="interval of sampled video frames (default: 1)")  # fmt: skip
    sampling.add_argument("--fps", type=float, metavar="NUMBER",
                          help="sampled video frames per second")  # fmt: skip
    camera = parser.add_mutually_exclusive_group()
    camera.add_argument("--camera", default="", metavar="NAME",
                        help="camera that took all these images (default: from EXIF)")  # fmt: skip
    camera.add_argument("--camera-from-folder", action="store_true",
                        help="use the name of the folder of an image as its camera")  # fmt: skip
    add("--time", help="ISO 8601 time at which all these images were taken or the videos start, "
        "for example 2026-05-01T12:00 (default: from EXIF)")  # fmt: skip
    add("--table", type=Path, metavar="FILE",
        help="CSV table with the columns file, camera, time; takes precedence over --camera, "
        "--time and EXIF")  # fmt: skip
    add("--prune", action="store_true", help="remove images whose files no longer exist")
    add("--retry", action="store_true", help="reread files that were unreadable before")
    add("--exact-only", action="store_true",
        help="do not build the approximate index of a large gallery")  # fmt: skip
    add_launch_options(parser, num_gpus=0)


def _add_query(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--query", required=True, action="append", type=Path, metavar="FILE",
        help="image of the person; may be repeated to average several images")  # fmt: skip
    person = parser.add_mutually_exclusive_group()
    person.add_argument("--box", type=float, nargs=4, action="append",
                        metavar=("X1", "Y1", "X2", "Y2"),
                        help="box of the person in pixels; once per --query")  # fmt: skip
    person.add_argument("--point", type=float, nargs=2, action="append", metavar=("X", "Y"),
                        help="pixel within the detected person; once per --query")  # fmt: skip
    person.add_argument("--best", action="store_true",
                        help="person with the highest detection score (default)")  # fmt: skip
    add("--output", type=Path, default=Path("output/search"), metavar="FOLDER",
        help="folder for the results (default: output/search)")  # fmt: skip
    add("--top", type=int, default=100, metavar="NUMBER",
        help="maximum number of matches in results.jsonl (default: 100)")  # fmt: skip
    add("--show", type=int, default=12, metavar="NUMBER",
        help="maximum number of matches on the sheet and in the report (default: 12)")  # fmt: skip
    add("--min-score", type=float, default=0.0, metavar="SCORE",
        help="minimum detection score of a match, 0 to 1 (default: 0)")  # fmt: skip
    add("--min-similarity", type=float, metavar="SIM",
        help="minimum similarity of a match to the query, -1 to 1 (default: no minimum, so that "
        "the most similar persons are listed even if none is the same person)")  # fmt: skip
    add("--camera", action="append", default=[], metavar="NAME",
        help="search images of this camera only; may be repeated")  # fmt: skip
    add("--since", metavar="TIME",
        help="search images from this time on, for example 2026-05-01T12:00")  # fmt: skip
    add("--until", metavar="TIME",
        help="search images up to this time; a date includes that day")  # fmt: skip
    add("--every-person", action="store_true",
        help="list all similar persons of an image instead of the most similar one")  # fmt: skip
    add("--every-frame", action="store_true",
        help="list every frame of a video instead of grouping the frames that show the same person "
        "walk by")  # fmt: skip
    add("--include-own", action="store_true", help="also search the image of the query")
    add("--method", choices=("auto", "exact", "approximate"), default="auto",
        help="auto uses the approximate index of a large gallery (default: auto)")  # fmt: skip


def _add_serve(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--max-upload", type=float, default=20.0, metavar="MB",
                        help="maximum size of an uploaded image in MB (default: 20)")  # fmt: skip
    _add_page(parser)


def _add_label(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--output", required=True, type=Path, metavar="FILE",
        help="annotation file (JSON) to write, or to continue")  # fmt: skip
    add("--source", action="append", default=[], type=Path, metavar="PATH",
        help="folder or image to index first, as by 'index'; may be repeated (default: label what "
        "the gallery contains)")  # fmt: skip
    add("--recursive", action="store_true", help="include subfolders of the sources")
    add("--min-score", type=float, default=0.0, metavar="SCORE",
        help="minimum detection score of a person, 0 to 1 (default: 0)")  # fmt: skip
    add("--min-size", type=int, default=2, metavar="NUMBER",
        help="minimum number of persons of a proposed group (default: 2)")  # fmt: skip
    _add_page(parser)


def _add_page(parser: argparse.ArgumentParser) -> None:
    """Adds the options of a page: its address, and who may see it."""
    add = parser.add_argument
    add("--host", default="127.0.0.1", metavar="ADDRESS",
        help="address to listen at (default: 127.0.0.1, reachable from this machine "
        "only)")  # fmt: skip
    add("--port", type=int, default=8017, metavar="NUMBER",
        help="port to listen at; 0 selects a free one (default: 8017)")  # fmt: skip
    add("--allow-host", action="append", default=[], metavar="NAME",
        help="host name under which browsers may open the page, besides localhost and IP "
        "addresses; may be repeated")  # fmt: skip
    add("--open", action="store_true", help="open the page in the web browser")
    token = parser.add_mutually_exclusive_group()
    token.add_argument("--token", metavar="VALUE",
                       help="token that opens the page (default: the environment variable "
                       "PERSON_SEARCH_TOKEN, which unlike this option no list of processes shows, "
                       "or a random one, printed at the start)")  # fmt: skip
    token.add_argument("--no-token", action="store_true",
                       help="open the page to all users of this machine; on a loopback address "
                       "only")  # fmt: skip
    add("--https", nargs=2, type=Path, default=[], metavar=("CERT", "KEY"),
        help="certificate and its private key, both PEM files, to serve https")  # fmt: skip
    add("--trust-header", default="", metavar="NAME",
        help="header in which a proxy names its user after the login, for example X-Remote-User; "
        "requires --trusted-proxy")  # fmt: skip
    add("--trusted-proxy", action="append", default=[], metavar="ADDRESS",
        help="IP address or network of the proxy whose --trust-header is accepted; may be "
        "repeated")  # fmt: skip


def _add_forget(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--source", action="append", default=[], type=_place, metavar="PATH",
        help="folder, image or video to delete from the gallery; may be repeated")  # fmt: skip
    add("--results", type=Path, metavar="FILE",
        help="results.jsonl of a search, of which --rank selects persons to delete")  # fmt: skip
    add("--rank", type=int, nargs="+", default=[], metavar="NUMBER",
        help="ranks of the matches whose persons are deleted")  # fmt: skip


def _add_export(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--output", type=Path, required=True, metavar="FILE",
        help="file to write: .onnx, or .pt2 for a program of torch.export")  # fmt: skip
    add("--max-side", type=int, default=0, metavar="PIXELS",
        help="largest side of a resized image (default: INPUT.MAX_SIZE_TEST)")  # fmt: skip
    add("--heads-only", action="store_true",
        help="leave out a frozen backbone (DiffPS): the file takes its activations")  # fmt: skip
    add("--int8", action="store_true", help="quantize the weights of linear layers (.onnx)")
    add("--evaluate", action="store_true",
        help="compare the results of file and model on DATASETS.TEST (.onnx)")  # fmt: skip


def parse_args(words: Sequence[str] | None = None) -> argparse.Namespace:
    """Parses the command line and validates what needs no model."""
    parser = build_parser()
    args = parser.parse_args(words)
    if getattr(args, "precision", None):
        args.opts += ["TEST.PRECISION", args.precision]
    if args.command == "index":
        if args.fps is not None:
            if not args.fps > 0:
                parser.error(f"--fps is {args.fps:g}; it must be above 0")
            args.every = 1 / args.fps
        if not args.every > 0:
            parser.error(f"--every is {args.every:g}; it must be above 0")
    if args.command == "info" and not (args.gallery or args.weights):
        parser.error("info requires --gallery or --weights")
    if args.command == "forget":
        if bool(args.results) != bool(args.rank):
            parser.error("--results and --rank are given together")
        if not (args.source or args.results):
            parser.error("forget requires --source, or --results and --rank")
    if args.command == "export":
        if args.output.suffix not in (".onnx", ".pt2"):
            parser.error(f"--output is {args.output}; its name must end in .onnx or .pt2")
        if args.output.suffix != ".onnx" and (args.int8 or args.evaluate):
            parser.error(f"--int8 and --evaluate require an .onnx file; --output is {args.output}")
        if args.heads_only and args.evaluate:
            parser.error("--evaluate requires the whole model, not --heads-only")
    if args.command == "serve" and not args.max_upload > 0:
        parser.error(f"--max-upload is {args.max_upload:g}; it must be above 0")
    if args.command == "label":
        if args.min_size < 2:
            parser.error(f"--min-size is {args.min_size}; it must be at least 2")
        if args.source and not args.config_file:
            parser.error("--source requires --config-file, to detect and embed persons")
    if args.command in ("serve", "label"):
        if bool(args.trust_header) != bool(args.trusted_proxy):
            parser.error("--trust-header and --trusted-proxy are given together")
        if not re.fullmatch("[A-Za-z0-9-]*", args.trust_header):
            parser.error(f"--trust-header is {args.trust_header!r}; letters, digits and - allowed")
        if args.no_token and args.trust_header:
            parser.error("--no-token opens the page to all; --trust-header has no effect then")
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
    from person_search.search.commands import RUN

    return RUN[args.command](args)


def main(words: Sequence[str] | None = None) -> int:
    """Runs ``person-search``; returns the exit status."""
    for stream in (sys.stdout, sys.stderr):  # file names that the terminal's encoding lacks
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    args = parse_args(words)
    resumable = args.command in ("index", "copy")
    hint = "Run the same command again to continue." if resumable else ""
    return run_program(_run, args, resume_hint=hint)
