#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Checks which trends of the PSDiff paper hold in small-scale trainings on synthetic data.

    python projects/PSDiff/tools/reproduce_trends.py [--output output/trends] [--seeds 3] [--jobs 1]

Renders the data set, trains the teacher, then trains each variant with each seed (about ten CPU
minutes) and evaluates it with 1, 2, 4 and 8 steps. Finished parts are used again, and an
interrupted training is resumed. trends.md and trends.json in the output folder hold all results
(mean and standard deviation over the seeds) and a verdict on each trend of the paper. A trend holds
if it shows in every seed.

Variants are the configs in configs/PSDiff/tiny/trends. Config overrides at the end apply to all
trainings, for example MODEL.DEVICE cuda SOLVER.MAX_ITER 8000.
"""

import argparse
import json
import os
import shlex
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import NamedTuple

from person_search.cli import run_program
from person_search.training_series import (
    METRICS,
    ROOT,
    console,
    mean_and_spread,
    parse_series,
    results_in,
    run_logged,
    series_parser,
)

CONFIGS = Path("configs/PSDiff/tiny/trends")
DATA_OPTIONS = (
    "--format cuhk_sysu --size 160 128 --train-images 800 --train-ids 200 --test-images 150 "
    "--test-ids 60 --people 2 4 --gallery-sizes 100 --difficulty 0.2 --quiet"
)
STEPS = (1, 2, 4, 8)
MAIN_VARIANTS = ("skip", "cascaded", "parallel")
"""Variants trained with --seeds seeds; the others with --other-seeds."""
OTHER_VARIANTS = ("no_interaction", "imitation")

# results[variant][seed][steps]["search/mAP"]
Results = dict[str, dict[int, dict[int, dict[str, float]]]]


class Trend(NamedTuple):
    """A claim of the paper: ``better`` (variant, steps) exceeds ``worse`` in ``metric``."""

    claim: str
    better: tuple[str, int]
    worse: tuple[str, int]
    metric: str = "search/mAP"
    paper: str = ""


TRENDS = [
    *(
        Trend(f"8 steps above 1 step, {name} prediction", (name, 8), (name, 1), metric, paper)
        for name, metric, paper in (
            ("skip", "search/mAP", ""),
            ("skip", "detection/AP50", ""),
            ("cascaded", "search/mAP", "+4.3 (Table I)"),
            ("cascaded", "detection/AP50", "+12.9 (Fig. 5)"),
            ("parallel", "search/mAP", "+3.0 (Table IV c)"),
            ("parallel", "detection/AP50", ""),
        )
    ),
    *(
        Trend(f"{claim}, 8 steps", (better, 8), (worse, 8), "search/mAP", paper)
        for claim, better, worse, paper in (
            ("cascaded above parallel prediction", "cascaded", "parallel", "+1.6 (Table IV c)"),
            ("skip above parallel prediction", "skip", "parallel", ""),
            ("skip above cascaded prediction", "skip", "cascaded", ""),
            ("SA + DC + CA above none", "skip", "no_interaction", "+3.8 (Table IV b)"),
            (
                "diffusion above imitation of the same teacher",
                "skip",
                "imitation",
                "+1.1 (Table VI)",
            ),
        )
    ),
]


def differences(trend: Trend, results: Results) -> list[float]:
    """Returns the differences of the two sides of a trend for the seeds that both have."""
    (better, steps), (worse, worse_steps) = trend.better, trend.worse
    seeds = sorted(results.get(better, {}).keys() & results.get(worse, {}).keys())
    pairs = ((results[better][s][steps], results[worse][s][worse_steps]) for s in seeds)
    return [a[trend.metric] - b[trend.metric] for a, b in pairs]


def verdict(values: list[float]) -> str:
    """Returns whether a trend with these differences holds."""
    if not values:
        return "not measured"
    text = "does not hold"
    if sum(values) > 0:
        text = "holds" if min(values) > 0 else "holds on average"
    return f"{text} (one seed)" if len(values) == 1 else text


def signed(values: list[float]) -> str:
    """Formats differences with their sign."""
    text = mean_and_spread(values)
    return text if text.startswith("-") else f"+{text}"


def markdown(results: Results) -> str:
    """Formats the two tables of ``trends.md``."""
    lines = ["| variant | seeds | steps | search mAP | top-1 | detection AP50 |", "|---" * 6 + "|"]
    for variant, by_seed in results.items():
        for steps in STEPS:
            cells = [
                mean_and_spread([result[steps][f"{t}/{m}"] for result in by_seed.values()])
                for t, m in METRICS
            ]
            lines.append(f"| {variant} | {len(by_seed)} | {steps} | " + " | ".join(cells) + " |")
    lines += ["", "| trend | metric | paper | here, points | seeds | verdict |", "|---" * 6 + "|"]
    for trend in TRENDS:
        values = differences(trend, results)
        here = signed(values) if values else ""
        lines.append(
            f"| {trend.claim} | {trend.metric} | {trend.paper} | {here} | {len(values)} | "
            f"{verdict(values)} |"
        )
    return "\n".join(lines) + "\n"


class Runner:
    """Runs commands of the project, each with its own log file.

    Args:
        output: Output folder.
        overrides: Config overrides of all trainings.
    """

    def __init__(self, output: Path, overrides: list[str]) -> None:
        self.output, self.overrides = output, overrides
        self.embeddings = output / "embeddings.safetensors"
        self.teacher = output / "teacher"
        self.env = {**os.environ, "DETECTRON2_DATASETS": str(output.resolve() / "data")}

    def command(self, name: str, command: str) -> None:
        """Runs a Python command."""
        run_logged(command, self.output / "logs" / f"{name}.log", self.env)

    def prepare(self) -> None:
        """Makes data, teacher and embeddings, which all variants and seeds share."""
        teacher, programs = self.teacher.resolve(), "projects/PSDiff/tools"
        keys = f"--config-file {CONFIGS}/skip.yaml MODEL.PSDIFF.TEACHER.EMBEDDINGS "
        keys += f"{self.embeddings.resolve()} OUTPUT_DIR {teacher}"
        weights = f"MODEL.PSDIFF.TEACHER.WEIGHTS {teacher}/teacher.safetensors"
        data = self.output.resolve() / "data" / "synthetic"
        console.print("Rendering the data set.")
        self.command("data", f"-m person_search.data.synthetic --root {data} {DATA_OPTIONS}")
        if not (self.teacher / "backbone.pth").is_file():
            console.print("Training the teacher.")
            self.command("teacher", f"{programs}/train_teacher.py {keys}")
        if not self.embeddings.is_file():
            console.print("Embedding all training persons.")
            self.command("embeddings", f"{programs}/compute_embeddings.py {keys} {weights}")

    def train_and_evaluate(self, variant: str, seed: int) -> dict[int, dict[str, float]]:
        """Runs the missing parts of one training and its evaluations; returns results by steps."""
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
        results = {}
        for steps in STEPS:
            folder = out / f"steps{steps}"
            if not (folder / "results.json").is_file():
                self.command(
                    f"{name}_steps{steps}",
                    f"train_net.py --eval-only {keys} OUTPUT_DIR {folder} "
                    f"MODEL.WEIGHTS {out}/model_final.pth MODEL.PSDIFF.STEPS {steps} {extra}",
                )
            results[steps] = results_in(folder)
        return results


def write_report(output: Path, results: Results) -> str:
    """Writes ``trends.md`` and ``trends.json``; returns the former."""
    order = (*MAIN_VARIANTS, *OTHER_VARIANTS)
    results = {v: dict(sorted(results[v].items())) for v in order if v in results}
    text = markdown(results)
    (output / "trends.md").write_text(text, encoding="utf-8")
    trends = []
    for trend in TRENDS:
        values = differences(trend, results)
        entry = {"claim": trend.claim, "metric": trend.metric, "paper": trend.paper}
        trends.append({**entry, "differences": values, "verdict": verdict(values)})
    record = {"figures": results, "trends": trends}
    (output / "trends.json").write_text(json.dumps(record, indent=2) + "\n")
    return text


def work(args: argparse.Namespace) -> None:
    """Runs all trainings and writes the report after each one."""
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
    results: Results = {}
    with ThreadPoolExecutor(args.jobs) as pool:
        jobs = {pool.submit(runner.train_and_evaluate, *task): task for task in tasks}
        for count, job in enumerate(as_completed(jobs), start=1):
            variant, seed = jobs[job]
            results.setdefault(variant, {})[seed] = job.result()
            best = results[variant][seed][STEPS[-1]]
            console.print(
                f"{count} of {len(tasks)}: {variant}, seed {seed}: "
                f"search mAP {best['search/mAP']:.1f}, AP50 {best['detection/AP50']:.1f} "
                f"({STEPS[-1]} steps)"
            )
            write_report(args.output, results)
    console.print(write_report(args.output, results))
    console.print(f"Tables:  {args.output / 'trends.md'}")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the program."""
    parser = series_parser(__doc__, "output/trends", seeds=3, trained="main variant")
    parser.add_argument(
        "--other-seeds", type=int, default=1, metavar="N",
        help="number of trainings per other variant (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--jobs", type=int, default=1, metavar="N",
        help="number of trainings that run in parallel (default: %(default)s)",
    )  # fmt: skip
    args = parse_series(parser, argv)
    if min(args.seeds, args.other_seeds) < 0 or args.jobs < 1:
        parser.error("--seeds and --other-seeds must be at least 0, --jobs at least 1.")
    return run_program(work, args, log=False, resume_hint="The same command continues.")


if __name__ == "__main__":
    sys.exit(main())
