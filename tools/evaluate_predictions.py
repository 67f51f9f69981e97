#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Scores saved predictions under any protocol, without a model.

    python tools/evaluate_predictions.py prw_predictions.npz --protocols all multi_view
    python tools/evaluate_predictions.py ours.npz theirs.npz --names ours SeqNet \\
        --protocols every --variants cws cbgm --output output/comparison --plots

A file of predictions is written by an evaluation with TEST.PERSON_SEARCH.DUMP_PREDICTIONS True, or
by any other detector: docs/predictions_format.md. Prints two tables per file, and with --open-set a
third: which lowest similarity shows somebody for how many persons who are not there, and still
finds how many who are. With --output, writes
NAME/<dataset>_results.json, and with --plots also gallery_size.png (mAP and top-1 over the size of
the gallery), search_precision_recall.png and detection_precision_recall.png, every file a curve.
"""

import argparse
import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from person_search.evaluation.plots import Curve

EVERY = "every"
PLOTTED_METRICS = ("mAP", "top1")


def parse_args() -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("predictions", nargs="+", type=Path, help="files of predictions (.npz)")
    parser.add_argument("--names", nargs="+", help="a name for each file; default: the file's own")
    parser.add_argument("--dataset", help="test set; default: the one the file says it was made on")
    parser.add_argument("--config-file", default="", help="config to read TEST.PERSON_SEARCH from")
    parser.add_argument(
        "--protocols", nargs="+", default=[],
        help=f"protocols to score, the headline's first; '{EVERY}': all whose files are there",
    )  # fmt: skip
    parser.add_argument(
        "--variants", nargs="+", default=[],
        help="options to add, e.g. cws cbgm best_det strict gt fixed cws+cbgm",
    )  # fmt: skip
    parser.add_argument(
        "--search-iou", type=float, metavar="IOU",
        help="IoU from which a detection can be the person searched for; small people need less, "
        "but not with the variant 'fixed' (default: 0.5, TEST.PERSON_SEARCH.SEARCH_IOU_THRESH)",
    )  # fmt: skip
    parser.add_argument(
        "--open-set", action="store_true",
        help="table of lowest similarities, for searches of persons who may not be there",
    )  # fmt: skip
    parser.add_argument("--output", type=Path, help="folder for results and plots")
    parser.add_argument("--plots", action="store_true", help="also write the plots (--output)")
    parser.add_argument("--traceback", action="store_true", help="show where an error was raised")
    parser.add_argument(
        "--set", nargs="+", default=[], dest="opts", metavar=("KEY", "VALUE"),
        help="config overrides, e.g. TEST.PERSON_SEARCH.SCORE_THRESH 0.3",
    )  # fmt: skip
    args = parser.parse_args()
    if args.names is None:
        args.names = [path.stem.removesuffix("_predictions") for path in args.predictions]
    if len(args.names) != len(args.predictions) or len(set(args.names)) < len(args.names):
        parser.error(f"--names: {len(args.predictions)} different names are needed: {args.names}")
    if args.plots and args.output is None:
        parser.error("--plots needs --output, the folder to write to")
    return args


def evaluate(args: argparse.Namespace) -> None:
    """Scores every file and writes what was asked for."""
    from person_search.config import build_config
    from person_search.data import register_config_datasets

    cfg = build_config(args.config_file, ["MODEL.DEVICE", "cpu", *args.opts])
    register_config_datasets(cfg)
    evaluators: dict[str, Any] = {}
    for name, path in zip(args.names, args.predictions, strict=True):
        start = time.perf_counter()
        evaluators[name] = score_file(cfg, args, path, name)
        print(f"{path}: {time.perf_counter() - start:.1f} s\n", flush=True)
    if args.plots:
        write_plots(args.output, evaluators)


def score_file(cfg, args: argparse.Namespace, path: Path, name: str):
    """Prints the figures of one file; returns the evaluator, which holds them query by query."""
    from person_search.evaluation import PersonSearchEvaluator, read_predictions
    from person_search.evaluation.report import results_table
    from person_search.evaluation.settings import settings_from_config

    keys = cfg.TEST.PERSON_SEARCH
    dataset = dataset_of(path, args.dataset or read_predictions(path).info.get("dataset"))
    settings = settings_from_config(keys)
    if args.variants:
        settings["variants"] = args.variants
    if args.search_iou is not None:
        settings["search_iou_thresh"] = args.search_iou
    evaluator = PersonSearchEvaluator(
        dataset,
        output_dir=args.output / name if args.output else None,
        protocols=protocol_names(args.protocols or keys.PROTOCOLS, dataset),
        **settings,
    )
    evaluator.load_predictions(path)
    results = evaluator.score()
    print(f"{name} on {dataset}")
    print(results_table(results))
    if args.open_set:
        print_open_set(evaluator)
    return evaluator


def print_open_set(evaluator) -> None:
    """The errors of the first section at several lowest similarities."""
    from person_search.evaluation.open_set import best_similarities, open_set_table
    from person_search.evaluation.report import open_set_text

    section = evaluator.sections[0]
    protocol = evaluator.protocol(section.protocol)
    similarities = best_similarities(evaluator.predictions, protocol, section.options)
    rows = open_set_table(*similarities)
    print(f"\n{open_set_text(section.task, rows, len(similarities[1]))}")


def dataset_of(path: Path, name: str | None) -> str:
    """The data set to score on, which must be known: what the file or the user says."""
    from detectron2.data import DatasetCatalog

    import person_search.data  # noqa: F401 - registers the data sets

    known = sorted(n for n in DatasetCatalog.list() if is_test_set(n))
    if name is None or name not in known:
        raise ValueError(
            f"{path}: there is no test set {name!r}. It is named by the header of the file or, "
            f"before that, by --dataset; known: {known}"
        )
    return name


def is_test_set(name: str) -> bool:
    from detectron2.data import MetadataCatalog

    return "search_protocols" in MetadataCatalog.get(name).as_dict()


def protocol_names(names: Sequence[str], dataset: str) -> list[str]:
    """The protocols to score; ``every`` stands for all whose files are there."""
    from detectron2.data import MetadataCatalog

    if list(names) != [EVERY]:
        return list(names)
    metadata = MetadataCatalog.get(dataset)
    default = list(metadata.default_search_protocols)
    found = []
    for name in [*default, *(n for n in metadata.search_protocols if n not in default)]:
        try:
            metadata.search_protocols[name]()
        except FileNotFoundError:
            print(f"no protocol {name}: its file is not there")
        else:
            found.append(name)
    return found


def write_plots(folder: Path, evaluators: dict[str, Any]) -> None:
    """Writes the plots, each file of predictions a curve per variant."""
    from person_search.evaluation.curves import search_curve
    from person_search.evaluation.plots import plot_gallery_size, plot_precision_recall

    sizes: dict[tuple[str, str], dict[int, dict[str, float]]] = {}
    search, search_notes, detection, detection_notes = {}, {}, {}, {}
    for name, evaluator in evaluators.items():
        for section in evaluator.sections:
            scores = evaluator.search_scores[section.task]
            figures = scores.summary((1,))
            key = (name, section.variant)
            size = re.fullmatch(r"g(\d+)", section.protocol)
            if size:
                sizes.setdefault(key, {})[int(size[1])] = figures
            if section.protocol == evaluator.sections[0].protocol:
                search[key], search_notes[key] = search_curve(scores), f"mAP {figures['mAP']:.1f}"
        detection[name, ""], detection_notes[name, ""] = detection_of(evaluator)
    protocol = next(iter(evaluators.values())).sections[0].protocol
    if any(len(by_size) > 1 for by_size in sizes.values()):
        save(folder / "gallery_size.png", plot_gallery_size(sizes, PLOTTED_METRICS))
    save(
        folder / "search_precision_recall.png",
        plot_precision_recall(search, f"Search ({protocol}), mean of all queries", search_notes),
    )
    save(
        folder / "detection_precision_recall.png",
        plot_precision_recall(detection, "Detection of people, labelled or not", detection_notes),
    )


def detection_of(evaluator) -> tuple["Curve", str]:
    """Precision-recall curve of the detections, and what to write beside it."""
    from person_search.evaluation.curves import detection_curve
    from person_search.evaluation.detection_metrics import evaluate_detection

    truth, p = evaluator.ground_truth, evaluator.predictions
    arrays = (truth.boxes, truth.offsets, p.boxes, p.scores, p.det_offsets)
    iou = evaluator.settings.det_iou_thresh
    figures = evaluate_detection(*arrays, iou_thresh=iou)
    curve = detection_curve(*arrays, iou_thresh=iou)
    return curve, f"AP {figures['AP']:.1f} (IoU {iou:g})"


def save(path: Path, content: bytes) -> None:
    from person_search.utils.files import write_atomically

    write_atomically(path, content)
    print(path)


def main() -> None:
    """Imports only what the command line asks for, so that ``--help`` is quick."""
    args = parse_args()
    from person_search.cli import quiet_libraries

    quiet_libraries()
    from detectron2.utils.logger import setup_logger

    from person_search.engine import friendly_errors
    from person_search.utils.backend import check_backend

    setup_logger(name="person_search", abbrev_name="person_search")
    with friendly_errors(args.traceback):
        check_backend()
        evaluate(args)


if __name__ == "__main__":
    main()
