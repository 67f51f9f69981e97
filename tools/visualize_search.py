#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Draws searches of an evaluation, from its saved predictions; the model does not run again.

    python tools/visualize_search.py --config-file configs/PSDiff/tiny/psdiff_slim_synthetic.yaml \\
        --predictions output/demo/train/inference/synthetic_cuhk_sysu_test_predictions.npz \\
        --output output/demo

An evaluation saves them with TEST.PERSON_SEARCH.DUMP_PREDICTIONS True. Writes search_1.jpg (a
success), search_2.jpg (the median) and search_3.jpg (a failure), chosen by average precision alone,
and chance.json: the figures that the same detections get with random embeddings. Ranked and judged
as in the section "search" of the results; --protocol and --variant choose another section, e.g.
--protocol multi_view --variant cws+cbgm that of search_multi_view_cws_cbgm.
"""

import argparse
import json
import sys
from pathlib import Path

from person_search.cli import run_program


def parse_args() -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config-file", required=True, help="config of the evaluation")
    parser.add_argument("--predictions", required=True, type=Path, help="NAME_predictions.npz")
    parser.add_argument("--output", required=True, type=Path, help="folder to write to")
    parser.add_argument("--protocol", help="what is searched (default: the first of the config)")
    parser.add_argument(
        "--variant", default="",
        help="how, as in TEST.PERSON_SEARCH.VARIANTS, e.g. cbgm, cws+cbgm, best_det, gt",
    )  # fmt: skip
    parser.add_argument("--query-id", type=int, nargs="+", help="draw these queries instead")
    parser.add_argument("--top", type=int, default=9, help="entries of the ranked list to show")
    parser.add_argument("--traceback", action="store_true", help="show where an error was raised")
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="config overrides: KEY VALUE pairs")
    args = parser.parse_args()
    if args.top < 1:
        parser.error(f"--top is {args.top}; it must be at least 1")
    return args


def visualize(args: argparse.Namespace) -> None:
    """Writes the sheets and the figures of chance."""
    from detectron2.data import DatasetCatalog

    from person_search.config import build_config
    from person_search.data import register_config_datasets
    from person_search.evaluation import PersonSearchEvaluator, chance_level
    from person_search.evaluation.ranking import rank_query
    from person_search.utils.files import write_atomically
    from person_search.vis import encode_image
    from person_search.vis.ranked_list import (
        describe_options,
        describe_outcome,
        draw_checked_search,
    )

    cfg = build_config(args.config_file, ["MODEL.DEVICE", "cpu", *args.opts])
    register_config_datasets(cfg)
    dataset = dataset_of(cfg)
    cfg = choose_section(cfg, args.protocol, args.variant)
    evaluator = PersonSearchEvaluator(cfg, dataset, args.output)
    evaluator.load_predictions(args.predictions)
    options = evaluator.settings.search
    protocol = evaluator.protocol(evaluator.sections[0].protocol)
    (scores,) = evaluator.score_protocols([protocol])
    files = {r["image_id"]: r["file_name"] for r in DatasetCatalog.get(dataset)}
    args.output.mkdir(parents=True, exist_ok=True)

    for number, (kind, query) in enumerate(examples(args.query_id, scores), 1):
        entries = rank_query(evaluator.predictions, protocol, query, options)
        outcome = describe_outcome(scores, query, gallery_size(protocol, query, files), args.top)
        outcome = f"{outcome} {describe_options(options)}".rstrip()
        sheet = draw_checked_search(
            protocol.queries[query], entries, files.__getitem__,
            kind=kind, outcome=outcome, top=args.top,
        )  # fmt: skip
        path = args.output / f"search_{number}.jpg"
        content = encode_image(sheet, ".jpg")
        write_atomically(path, content)
        print(f"{path}: query {protocol.queries[query].query_id}, {kind}. {outcome}")
    topk = evaluator.settings.topk
    chance = chance_level(protocol, evaluator.predictions, topk=topk, options=options)
    text = json.dumps(chance, indent=2) + "\n"
    write_atomically(args.output / "chance.json", text.encode())
    print(f"{args.output / 'chance.json'}: search mAP by chance {chance['mAP']:.1f} %")


def dataset_of(cfg) -> str:
    """The test set of the config, which must be one."""
    names = cfg.DATASETS.TEST
    if len(names) != 1:
        raise ValueError(f"DATASETS.TEST is {list(names)}; name the one that was evaluated.")
    return names[0]


def choose_section(cfg, protocol: str | None, variant: str):
    """Returns a config whose headline ``search`` is the section to be drawn."""
    from person_search.evaluation import EvaluationSettings
    from person_search.evaluation.options import OPTION_VALUES
    from person_search.evaluation.settings import settings_from_config

    cfg = cfg.clone()
    cfg.defrost()
    keys = cfg.TEST.PERSON_SEARCH
    if protocol:
        keys.PROTOCOLS = [protocol]
    keys.VARIANTS = []
    if variant:
        settings = EvaluationSettings.from_arguments(settings_from_config(keys), None)
        options = settings.search.changed(variant)
        for name in OPTION_VALUES:
            keys[name.upper()] = getattr(options, name)
    return cfg


def examples(query_ids: list[int] | None, scores) -> list[tuple[str, int]]:
    """What to draw: the queries that the user names, or one of each kind."""
    from person_search.evaluation.predictions import find_rows
    from person_search.evaluation.ranking import choose_examples

    if query_ids is None:
        return choose_examples(scores)
    rows = find_rows(scores.query_ids, query_ids, "query_id", "--query-id")
    return [("success" if scores.best_rank[row] == 1 else "failure", int(row)) for row in rows]


def gallery_size(protocol, query: int, files: dict[int, str]) -> int:
    """Number of different images that are searched for a query."""
    if protocol.gallery is not None:
        return len(set(protocol.gallery[query].tolist()) - {-1})
    return len(set(files) - set(protocol.excluded_images(query).tolist()))


def main() -> int:
    return run_program(visualize, parse_args())


if __name__ == "__main__":
    sys.exit(main())
