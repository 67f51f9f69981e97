#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Checks in small, on synthetic data, which of the PSDiff paper's trends show.

    python projects/PSDiff/tools/reproduce_trends.py [--output output/trends] [--seeds 3] [--jobs 1]

The data set, the teacher and a training of about ten CPU minutes per variant and seed are made by
the same commands that a user types; what exists already is used again, an interrupted training goes
on. Every trained model is evaluated with 1, 2, 4 and 8 steps. ``trends.md`` and ``trends.json`` in
the output folder then hold each figure (mean and spread over the seeds) and, for each trend of the
paper, whether it holds here. A trend counts as held if it shows in every seed.

Variants are the leaves of configs/PSDiff/trends; config overrides at the end of the
command apply to all trainings, e.g. ``MODEL.DEVICE cuda SOLVER.MAX_ITER 8000``.
"""

import argparse
import json
import os
import shlex
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from person_search.engine.training_series import (
    METRICS,
    ROOT,
    console,
    results_in,
    mean_and_spread,
    parse_series,
    run_logged,
    series_parser,
)

CONFIGS = Path("configs/PSDiff/tiny/trends")
DATA_OPTIONS = (
    "--format cuhk_sysu --size 160 128 --train-images 800 --train-ids 200 --test-images 150 "
    "--test-ids 60 --people 2 4 --gallery-sizes 100 --difficulty 0.2 --quiet"
)
STEPS = (1, 2, 4, 8)
# Variants of the first two trends are trained with every seed, the others with as many as asked for
# by --other-seeds.
MAIN_VARIANTS = ("skip", "cascaded", "parallel")
OTHER_VARIANTS = ("no_interaction", "imitation")

# figures[variant][seed][steps]["search/mAP"]
Figures = dict[str, dict[int, dict[int, dict[str, float]]]]


@dataclass(frozen=True)
class Trend:
    """One claim of the paper: ``better`` (variant, steps) beats ``worse`` in ``metric``."""

    claim: str
    better: tuple[str, int]
    worse: tuple[str, int]
    metric: str = "search/mAP"
    paper: str = ""


TRENDS = [
    *(
        Trend(f"8 steps above 1 step, {variant} prediction", (variant, 8), (variant, 1), metric, p)
        for variant, ap50, mean_ap in (
            ("skip", "", ""),
            ("cascaded", "+12.9 (Fig. 5)", "+4.3 (Table I)"),
            ("parallel", "", "+3.0 (Table IV c)"),
        )
        for metric, p in (("search/mAP", mean_ap), ("detection/AP50", ap50))
    ),
    Trend(
        "cascaded above parallel prediction, 8 steps",
        ("cascaded", 8),
        ("parallel", 8),
        paper="+1.6 (Table IV c)",
    ),
    Trend("skip above parallel prediction, 8 steps", ("skip", 8), ("parallel", 8)),
    Trend("skip above cascaded prediction, 8 steps", ("skip", 8), ("cascaded", 8)),
    Trend(
        "SA + DC + CA above none, 8 steps",
        ("skip", 8),
        ("no_interaction", 8),
        paper="+3.8 (Table IV b)",
    ),
    Trend(
        "diffusion above imitation of the same teacher, 8 steps",
        ("skip", 8),
        ("imitation", 8),
        paper="+1.1 (Table VI)",
    ),
]


@dataclass
class Verdict:
    """What the figures say about a trend; ``differences`` by seed, in points."""

    trend: Trend
    differences: list[float] = field(default_factory=list)

    @property
    def text(self) -> str:
        if not self.differences:
            return "not measured"
        if min(self.differences) > 0:
            return "holds"
        return "holds on average" if np.mean(self.differences) > 0 else "does not hold"


def judge(trend: Trend, figures: Figures) -> Verdict:
    """Compares the two sides of a trend in the seeds that both were trained with."""
    (better, steps), (worse, worse_steps) = trend.better, trend.worse
    seeds = sorted(figures.get(better, {}).keys() & figures.get(worse, {}).keys())
    pairs = ((figures[better][s][steps], figures[worse][s][worse_steps]) for s in seeds)
    return Verdict(trend, [a[trend.metric] - b[trend.metric] for a, b in pairs])


def signed(values: list[float]) -> str:
    text = mean_and_spread(values)
    return text if text.startswith("-") else f"+{text}"


def markdown(figures: Figures, verdicts: list[Verdict]) -> str:
    """The two tables of ``trends.md``."""
    lines = ["| variant | seeds | steps | search mAP | top-1 | detection AP50 |", "|---" * 6 + "|"]
    for variant, by_seed in figures.items():
        for steps in STEPS:
            cells = [
                mean_and_spread([result[steps][f"{t}/{m}"] for result in by_seed.values()])
                for t, m in METRICS
            ]
            lines.append(f"| {variant} | {len(by_seed)} | {steps} | " + " | ".join(cells) + " |")
    lines += ["", "| trend | metric | paper | here, points | seeds | verdict |", "|---" * 6 + "|"]
    for verdict in verdicts:
        trend, values = verdict.trend, verdict.differences
        here = signed(values) if values else ""
        lines.append(
            f"| {trend.claim} | {trend.metric} | {trend.paper} | {here} | {len(values)} | "
            f"{verdict.text} |"
        )
    return "\n".join(lines) + "\n"


class Runner:
    """Runs commands of the project, each writing to a log file of its own."""

    def __init__(self, output: Path, overrides: list[str]) -> None:
        self.output, self.overrides = output, overrides
        self.embeddings = output / "embeddings.safetensors"
        self.teacher = output / "teacher"
        self.env = {**os.environ, "DETECTRON2_DATASETS": str(output.resolve() / "data")}

    def command(self, name: str, command: str) -> None:
        run_logged(command, self.output / "logs" / f"{name}.log", self.env)

    def prepare(self) -> None:
        """Data, teacher and its embeddings; the same for all variants and seeds."""
        keys = f"--config-file {CONFIGS}/skip.yaml MODEL.PSDIFF.TEACHER.EMBEDDINGS "
        keys += f"{self.embeddings.resolve()} OUTPUT_DIR {self.teacher.resolve()}"
        data = self.output.resolve() / "data" / "synthetic"
        console.print("Drawing the data set.")
        self.command("data", f"-m person_search.data.synthetic --root {data} {DATA_OPTIONS}")
        if not (self.teacher / "backbone.pth").is_file():
            console.print("Training the teacher.")
            self.command("teacher", f"projects/PSDiff/tools/train_teacher.py {keys}")
        if not self.embeddings.is_file():
            console.print("Embedding all training persons.")
            self.command(
                "embeddings",
                f"projects/PSDiff/tools/compute_embeddings.py {keys} "
                f"MODEL.PSDIFF.TEACHER.WEIGHTS {self.teacher.resolve()}/teacher.safetensors",
            )

    def train_and_evaluate(self, variant: str, seed: int) -> dict[int, dict[str, float]]:
        """One training and its evaluations; those that are there already are not repeated."""
        name = f"{variant}_seed{seed}"
        out = self.output.resolve() / name
        options = dict(zip(self.overrides[::2], self.overrides[1::2], strict=True))
        gpus = 0 if options.get("MODEL.DEVICE", "cpu") == "cpu" else 1
        keys = (
            f"--config-file {CONFIGS}/{variant}.yaml --num-gpus {gpus} SEED {seed} "
            f"MODEL.PSDIFF.TEACHER.EMBEDDINGS {self.embeddings.resolve()} "
        )
        extra = shlex.join(self.overrides)
        if not (out / "model_final.pth").is_file():
            self.command(
                name,
                f"train_net.py --resume {keys} OUTPUT_DIR {out} "
                f"MODEL.WEIGHTS {self.teacher.resolve()}/backbone.pth {extra}",
            )
        figures = {}
        for steps in STEPS:
            folder = out / f"steps{steps}"
            if not (folder / "results.json").is_file():
                self.command(
                    f"{name}_steps{steps}",
                    f"train_net.py --eval-only {keys} OUTPUT_DIR {folder} "
                    f"MODEL.WEIGHTS {out}/model_final.pth MODEL.PSDIFF.STEPS {steps} {extra}",
                )
            figures[steps] = results_in(folder)
        return figures


def write_report(output: Path, figures: Figures) -> str:
    """Writes ``trends.md`` and ``trends.json``; returns the former."""
    order = (*MAIN_VARIANTS, *OTHER_VARIANTS)
    figures = {v: dict(sorted(figures[v].items())) for v in order if v in figures}
    verdicts = [judge(trend, figures) for trend in TRENDS]
    text = markdown(figures, verdicts)
    (output / "trends.md").write_text(text)
    record = {
        "figures": figures,
        "trends": [
            {
                "claim": v.trend.claim,
                "metric": v.trend.metric,
                "paper": v.trend.paper,
                "differences": v.differences,
                "verdict": v.text,
            }
            for v in verdicts
        ],
    }
    (output / "trends.json").write_text(json.dumps(record, indent=2) + "\n")
    return text


def parse_args() -> argparse.Namespace:
    parser = series_parser(__doc__, "output/trends", seeds=3, trained="main variant")
    parser.add_argument("--other-seeds", type=int, default=1, help="trainings per other variant")
    parser.add_argument("--jobs", type=int, default=1, help="trainings at the same time")
    args = parse_series(parser)
    if min(args.seeds, args.other_seeds) < 0 or args.jobs < 1:
        parser.error("--seeds and --other-seeds must be at least 0, --jobs at least 1.")
    return args


def main() -> None:
    args = parse_args()
    os.chdir(ROOT)
    args.output.mkdir(parents=True, exist_ok=True)
    runner = Runner(args.output, args.opts)
    runner.prepare()
    # Seed by seed, so that a run that is stopped early has compared all variants.
    tasks = [
        (variant, seed)
        for seed in range(1, max(args.seeds, args.other_seeds) + 1)
        for variants, count in ((MAIN_VARIANTS, args.seeds), (OTHER_VARIANTS, args.other_seeds))
        for variant in variants
        if seed <= count
    ]
    figures: Figures = {}
    with ThreadPoolExecutor(args.jobs) as pool:
        jobs = {pool.submit(runner.train_and_evaluate, *task): task for task in tasks}
        for count, job in enumerate(as_completed(jobs), start=1):
            variant, seed = jobs[job]
            figures.setdefault(variant, {})[seed] = job.result()
            best = figures[variant][seed][STEPS[-1]]
            console.print(
                f"{count} of {len(tasks)}: {variant}, seed {seed}: "
                f"search mAP {best['search/mAP']:.1f}, AP50 {best['detection/AP50']:.1f} "
                f"({STEPS[-1]} steps)"
            )
            write_report(args.output, figures)
    console.print(write_report(args.output, figures))
    console.print(f"Tables:  {args.output / 'trends.md'}")


if __name__ == "__main__":
    main()
