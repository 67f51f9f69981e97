#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
r"""Draws searches of an evaluation from its saved predictions, without a model.

    python tools/visualize_search.py --config-file configs/PSDiff/tiny/psdiff_slim_synthetic.yaml \
        --predictions output/demo/train/inference/synthetic_cuhk_sysu_test_predictions.npz \
        --output output/demo

An evaluation saves predictions with TEST.PERSON_SEARCH.DUMP_PREDICTIONS True. Writes search_1.jpg
(a success), search_2.jpg (the median) and search_3.jpg (a failure), selected by average precision
alone, and chance.json: the metrics of the same detections with random embeddings. The lists are
ranked and judged as in the section "search" of the results. --protocol and --variant select another
section; --protocol multi_view --variant cws+cbgm is search_multi_view_cws_cbgm.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from person_search.cli import program_parser, run_program


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Reads the command line."""
    parser = program_parser(__doc__, config=True)
    parser.add_argument(
        "--predictions", required=True, type=Path, metavar="FILE", help="predictions file (.npz)"
    )
    parser.add_argument(
        "--output", required=True, type=Path, metavar="FOLDER", help="folder to write to"
    )
    parser.add_argument(
        "--protocol", metavar="NAME", help="search protocol (default: the first of the config)"
    )
    parser.add_argument(
        "--variant", default="",
        help="search options as in TEST.PERSON_SEARCH.VARIANTS, for example cbgm, cws+cbgm, "
        "best_det, gt (default: those of the config)",
    )  # fmt: skip
    parser.add_argument(
        "--query-id", type=int, nargs="+", metavar="ID", help="draw these queries instead"
    )
    parser.add_argument(
        "--top", type=int, default=9, metavar="N",
        help="number of entries of the ranked list to show, at least 1 (default: 9)",
    )  # fmt: skip
    args = parser.parse_args(argv)
    if args.top < 1:
        parser.error(f"--top is {args.top}, must be at least 1")
    return args


def visualize(args: argparse.Namespace) -> None:
    """Writes the sheets and the metrics of random embeddings."""
    from detectron2.data import DatasetCatalog

    from person_search.config import build_config
    from person_search.data import register_config_datasets
    from person_search.evaluation import PersonSearchEvaluator, chance_level, rank_gallery
    from person_search.evaluation.settings import parse_variant
    from person_search.utils.files import write_atomically
    from person_search.vis import encode_image
    from person_search.vis.evaluation_sheet import (
        describe_options,
        describe_outcome,
        draw_checked_search,
    )

    cfg = build_config(args.config_file, ["MODEL.DEVICE", "cpu", *args.opts])
    register_config_datasets(cfg)
    if len(cfg.DATASETS.TEST) != 1:
        raise ValueError(f"DATASETS.TEST is {list(cfg.DATASETS.TEST)}, must name the evaluated set")
    (dataset,) = cfg.DATASETS.TEST
    cfg.defrost()
    keys = cfg.TEST.PERSON_SEARCH
    keys.VARIANTS = []  # the chosen section becomes the headline
    if args.protocol:
        keys.PROTOCOLS = [args.protocol]
    if args.variant:
        for option, value in parse_variant(args.variant).items():
            keys[option.upper()] = value
    evaluator = PersonSearchEvaluator(cfg, dataset, args.output)
    evaluator.load_predictions(args.predictions)
    options = evaluator.sections[0].options
    protocol = evaluator.protocol(evaluator.sections[0].protocol)
    (scores,) = evaluator.score_protocols([protocol])
    files = {r["image_id"]: r["file_name"] for r in DatasetCatalog.get(dataset)}
    for number, (kind, query) in enumerate(examples(args.query_id, scores), 1):
        entries = rank_gallery(evaluator.predictions, protocol, query, options)
        outcome = describe_outcome(scores, query, gallery_size(protocol, query, files), args.top)
        outcome = f"{outcome} {describe_options(options)}".rstrip()
        sheet = draw_checked_search(
            protocol.queries[query], entries, files.__getitem__,
            kind=kind, outcome=outcome, top=args.top,
        )  # fmt: skip
        path = args.output / f"search_{number}.jpg"
        write_atomically(path, encode_image(sheet, ".jpg"))
        print(f"{path}: query {protocol.queries[query].query_id}, {kind}. {outcome}")
    topk = evaluator.settings.topk
    chance = chance_level(protocol, evaluator.predictions, topk=topk, options=options)
    text = json.dumps(chance, indent=2) + "\n"
    write_atomically(args.output / "chance.json", text.encode())
    print(f"{args.output / 'chance.json'}: search mAP by chance {chance['mAP']:.1f} %")


def examples(query_ids: list[int] | None, scores) -> list[tuple[str, int]]:
    """Returns the queries to draw: those of the user, or one of each kind."""
    from person_search.evaluation.predictions import find_rows
    from person_search.evaluation.ranking import choose_examples

    if query_ids is None:
        return choose_examples(scores)
    rows = find_rows(scores.query_ids, query_ids, "query_id", "--query-id")
    return [("success" if scores.best_rank[row] == 1 else "failure", int(row)) for row in rows]


def gallery_size(protocol, query: int, files: dict[int, str]) -> int:
    """Returns the number of different images that are searched for a query."""
    if protocol.gallery is not None:
        return len(set(protocol.gallery[query].tolist()) - {-1})
    return len(set(files) - set(protocol.excluded_images(query).tolist()))


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the program and returns its exit status."""
    return run_program(visualize, parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
