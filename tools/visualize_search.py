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
    from person_search.evaluation import PersonSearchEvaluator, chance_level
    from person_search.evaluation.settings import parse_variant
    from person_search.utils.files import write_atomically
    from person_search.vis import encode_image
    from person_search.vis.evaluation_sheet import draw_examples

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
    files = {r["image_id"]: r["file_name"] for r in DatasetCatalog.get(dataset)}
    examples = draw_examples(evaluator, files, query_ids=args.query_id, top=args.top)
    for number, drawn in enumerate(examples, 1):
        path = args.output / f"search_{number}.jpg"
        write_atomically(path, encode_image(drawn.sheet, ".jpg"))
        print(f"{path}: query {drawn.query.query_id}, {drawn.kind}. {drawn.outcome}")
    options = evaluator.sections[0].options
    protocol = evaluator.protocol(evaluator.sections[0].protocol)
    topk = evaluator.settings.topk
    chance = chance_level(protocol, evaluator.predictions, topk=topk, options=options)
    text = json.dumps(chance, indent=2) + "\n"
    write_atomically(args.output / "chance.json", text.encode())
    print(f"{args.output / 'chance.json'}: search mAP by chance {chance['mAP']:.1f} %")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the program and returns its exit status."""
    return run_program(visualize, parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
