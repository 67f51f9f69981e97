#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
r"""Scores saved predictions under any protocol, without a model.

    python tools/evaluate_predictions.py --predictions prw_predictions.npz --protocols every
    python tools/evaluate_predictions.py --predictions ours.npz theirs.npz --names ours SeqNet \
        --protocols every --variants cws cbgm --output output/comparison --plots

A predictions file is written by an evaluation with TEST.PERSON_SEARCH.DUMP_PREDICTIONS True, or by
any other detector in the format of docs/predictions_format.md. Prints two tables per file, and with
--open-set a third one: at which minimum similarity how many searches for absent persons return a
person, and how many searches for present persons return them. With --output, writes
NAME/<data set>_results.json; with --plots, also gallery_size.png (mAP and top-1 over the size of
the gallery), search_precision_recall.png and detection_precision_recall.png with one curve per
file.
"""

import argparse
import re
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from person_search.cli import program_parser, run_program

EVERY = "every"
PLOTTED_METRICS = ("mAP", "top1")


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Reads the command line."""
    parser = program_parser(__doc__)
    parser.add_argument(
        "--predictions", nargs="+", type=Path, required=True, metavar="FILE",
        help="predictions files (.npz)",
    )  # fmt: skip
    parser.add_argument(
        "--names", nargs="+", metavar="NAME", help="a name for each file (default: the file name)"
    )
    parser.add_argument(
        "--dataset", metavar="NAME",
        help="registered test set (default: the data set stored in the file)",
    )  # fmt: skip
    parser.add_argument(
        "--config-file", default="", metavar="FILE",
        help="config file (YAML) with TEST.PERSON_SEARCH settings (default: the default settings)",
    )  # fmt: skip
    parser.add_argument(
        "--protocols", nargs="+", default=[], metavar="NAME",
        help=f"protocols to score, the headline's first; '{EVERY}': all whose files exist "
        "(default: that of the config or data set)",
    )  # fmt: skip
    parser.add_argument(
        "--variants", nargs="+", default=[], metavar="VARIANT",
        help="options to score in addition, e.g. cws cbgm best_det strict gt fixed cws+cbgm",
    )  # fmt: skip
    parser.add_argument(
        "--search-iou", type=float, metavar="IOU",
        help="minimum IoU of a detection with the person, 0 to 1; lower for small persons, except "
        "with the variant 'fixed' (default: 0.5, TEST.PERSON_SEARCH.SEARCH_IOU_THRESH)",
    )  # fmt: skip
    parser.add_argument(
        "--open-set", action="store_true",
        help="print a table of minimum similarities for searches of persons who may be absent",
    )  # fmt: skip
    parser.add_argument("--output", type=Path, metavar="FOLDER", help="folder for results, plots")
    parser.add_argument("--plots", action="store_true", help="write plots, requires --output")
    parser.add_argument(
        "opts", nargs=argparse.REMAINDER, metavar="KEY VALUE",
        help="config overrides, after all options, for example TEST.PERSON_SEARCH.SCORE_THRESH 0.3 "
        "(put '--' before them after an option that takes several values)",
    )  # fmt: skip
    args = parser.parse_args(argv)
    args.opts = [word for word in args.opts if word != "--"]
    if args.names is None:
        args.names = [path.stem.removesuffix("_predictions") for path in args.predictions]
    if len(args.names) != len(args.predictions) or len(set(args.names)) < len(args.names):
        parser.error(f"--names: {len(args.predictions)} different names are needed: {args.names}")
    if args.plots and args.output is None:
        parser.error("--plots requires --output, the folder to write to")
    return args


def evaluate(args: argparse.Namespace) -> None:
    """Scores every file and writes what was requested."""
    from person_search.config import build_config
    from person_search.data import register_config_datasets
    from person_search.evaluation.report import results_table

    cfg = build_config(args.config_file, ["MODEL.DEVICE", "cpu", *args.opts])
    register_config_datasets(cfg)
    evaluators: dict[str, Any] = {}
    unwritten = []
    for name, path in zip(args.names, args.predictions, strict=True):
        start = time.perf_counter()
        evaluators[name], dataset = load_file(cfg, args, path, name)
        results = evaluators[name].score()
        print(f"{name} on {dataset}\n{results_table(results)}")
        if args.open_set:
            print_open_set(evaluators[name])
        if args.output and not (args.output / name / f"{dataset}_results.json").is_file():
            unwritten.append(name)
        print(f"{path}: {time.perf_counter() - start:.1f} s\n", flush=True)
    if args.plots:
        write_plots(args.output, evaluators)
    if unwritten:
        raise OSError(f"the results of {unwritten} could not be written to {args.output}")


def load_file(cfg, args: argparse.Namespace, path: Path, name: str) -> tuple[Any, str]:
    """Returns an evaluator with the predictions of one file, and the name of the data set."""
    from detectron2.data import DatasetCatalog, MetadataCatalog

    from person_search.evaluation import PersonSearchEvaluator, read_predictions
    from person_search.evaluation.settings import settings_from_config

    dataset: str = args.dataset or read_predictions(path).info.get("dataset", "")
    test_sets = [
        n for n in DatasetCatalog.list() if "search_protocols" in MetadataCatalog.get(n).as_dict()
    ]
    if dataset not in test_sets:
        raise ValueError(
            f"{path}: unknown test set {dataset!r}; available: {sorted(test_sets)}. The header of "
            "the file names it, or --dataset"
        )
    settings = settings_from_config(cfg.TEST.PERSON_SEARCH)
    if args.variants:
        settings["variants"] = args.variants
    if args.search_iou is not None:
        settings["search_iou_thresh"] = args.search_iou
    evaluator = PersonSearchEvaluator(
        dataset,
        output_dir=args.output / name if args.output else None,
        protocols=protocol_names(args.protocols or cfg.TEST.PERSON_SEARCH.PROTOCOLS, dataset),
        **settings,
    )
    evaluator.load_predictions(path)
    return evaluator, dataset


def print_open_set(evaluator) -> None:
    """Prints the open-set errors of the first section at several minimum similarities."""
    from person_search.evaluation.open_set import best_similarities, open_set_table
    from person_search.evaluation.report import open_set_text

    section = evaluator.sections[0]
    protocol = evaluator.protocol(section.protocol)
    similarities = best_similarities(evaluator.predictions, protocol, section.options)
    rows = open_set_table(*similarities)
    print(f"\n{open_set_text(section.task, rows, len(similarities[1]))}")


def protocol_names(names: Sequence[str], dataset: str) -> list[str]:
    """Returns the protocols to score; ``every`` stands for all whose files exist."""
    from detectron2.data import MetadataCatalog

    if list(names) != [EVERY]:
        return list(names)
    metadata = MetadataCatalog.get(dataset)
    found = []
    for name in dict.fromkeys([*metadata.default_search_protocols, *metadata.search_protocols]):
        try:
            metadata.search_protocols[name]()
        except FileNotFoundError:
            print(f"skipping protocol {name}: its file does not exist")
        else:
            found.append(name)
    return found


def write_plots(folder: Path, evaluators: dict[str, Any]) -> None:
    """Writes the plots, with one curve per predictions file and variant."""
    from person_search.evaluation import evaluate_detection
    from person_search.evaluation.plots import (
        detection_curve,
        plot_gallery_size,
        plot_precision_recall,
        search_curve,
    )
    from person_search.utils.files import write_atomically

    sizes: dict[tuple[str, str], dict[int, dict[str, float]]] = {}
    search, search_notes, detection, detection_notes = {}, {}, {}, {}
    for name, evaluator in evaluators.items():
        for section in evaluator.sections:
            scores = evaluator.search_scores[section.task]
            metrics = scores.summary((1,))
            key = (name, section.variant)
            size = re.fullmatch(r"g(\d+)", section.protocol)
            if size:
                sizes.setdefault(key, {})[int(size[1])] = metrics
            if section.protocol == evaluator.sections[0].protocol:
                search[key], search_notes[key] = search_curve(scores), f"mAP {metrics['mAP']:.1f}"
        truth, p = evaluator.ground_truth, evaluator.predictions
        arrays = (truth.boxes, truth.offsets, p.boxes, p.scores, p.det_offsets)
        iou = evaluator.settings.det_iou_thresh
        ap = evaluate_detection(*arrays, iou_thresh=iou)["AP"]
        detection[name, ""] = detection_curve(*arrays, iou_thresh=iou)
        detection_notes[name, ""] = f"AP {ap:.1f} (IoU {iou:g})"
    protocol = next(iter(evaluators.values())).sections[0].protocol
    plots = {
        "search_precision_recall.png": plot_precision_recall(
            search, f"Search ({protocol}), mean of all queries", search_notes
        ),
        "detection_precision_recall.png": plot_precision_recall(
            detection, "Detection of persons, labeled or not", detection_notes
        ),
    }
    if any(len(by_size) > 1 for by_size in sizes.values()):
        plots["gallery_size.png"] = plot_gallery_size(sizes, PLOTTED_METRICS)
    for file, content in plots.items():
        write_atomically(folder / file, content)
        print(folder / file)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the program and returns its exit status."""
    return run_program(evaluate, parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
