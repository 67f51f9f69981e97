#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Compares, in small and on synthetic data, DiffPS on three backbones.

    python projects/DiffPS/tools/compare_priors.py [--output output/priors] [--seeds 1] [--prior FOLDER]

    trained   a tiny diffusion model that was trained on synthetic scenes, frozen (the prior)
    random    the same one with random weights in UNet and text encoder, frozen; the VAE is kept
    scratch   no prior: a ResNet with FPN of like cost, which trains together with the heads

The heads and their recipe are the same. The number of iterations differs, so that all trainings
take about the same CPU time: the frozen ones read their activations from a cache, and the ResNet
is paid for in every iteration. Data, caches and trainings are made by the commands that a user
types; what exists already is used again, an interrupted training goes on. ``priors.md`` and
``priors.json`` in the output folder hold the figures, mean and spread over the seeds. What a run
that was killed has spent is not known: minutes of what it was at are left out of the means.

Variants are the leaves of configs/DiffPS/priors; config overrides at the end of the
command apply to all trainings, e.g. ``SOLVER.MAX_ITER 3000``.
"""

import argparse
import json
import os
import resource
import shlex
from pathlib import Path

from demo import DATA_OPTIONS

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
from person_search.utils.files import write_atomically

CONFIGS = Path("configs/DiffPS/priors")
PRIOR = Path("projects/DiffPS/weights/tiny_diffusion")
VARIANTS = ("trained", "random", "scratch")
COSTS = (
    ("mflop", "backbone, MFLOP per image"),
    ("cache_minutes", "cache, CPU minutes"),
    ("minutes", "training, CPU minutes"),
)
TITLES = {
    "trained": "UNet trained on synthetic scenes, frozen",
    "random": "the same UNet with random weights, frozen",
    "scratch": "ResNet, trained with the heads",
}

# figures[variant][seed]: "search/mAP", ... and the names of COSTS
Figures = dict[str, dict[int, dict[str, float | None]]]

# costs[variant]: "mflop", "cache_minutes"; costs[f"{variant}_seed{seed}"]: "minutes"
Costs = dict[str, dict[str, float | None]]


def markdown(figures: Figures) -> str:
    """One row per variant."""
    titles = ["search mAP", "top-1", "detection AP50", *(title for _, title in COSTS)]
    columns = [*(f"{t}/{m}" for t, m in METRICS), *(name for name, _ in COSTS)]
    lines = ["| backbone | seeds | " + " | ".join(titles) + " |", "|---" * (2 + len(titles)) + "|"]
    for variant in VARIANTS:
        by_seed = figures.get(variant)
        if not by_seed:
            continue
        known = {c: [v for row in by_seed.values() if (v := row[c]) is not None] for c in columns}
        cells = [mean_and_spread(known[c]) for c in columns[:3]]
        for column in columns[3:]:
            values, digits = known[column], 0 if column == "mflop" else 1
            cells.append(f"{sum(values) / len(values):.{digits}f}" if values else "unknown")
        lines.append(f"| {TITLES[variant]} | {len(by_seed)} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


class Comparison:
    """Runs commands of the project, each writing to a log file of its own."""

    def __init__(self, output: Path, prior: Path, data: Path | None, overrides: list[str]) -> None:
        self.output, self.prior, self.overrides = output.resolve(), prior.resolve(), overrides
        self.data = data.resolve() if data else self.output / "data"
        self.make_data = data is None
        self.costs_file = self.output / "costs.json"
        env = {"DETECTRON2_DATASETS": str(self.data), "OMP_NUM_THREADS": "1"}
        self.env = {**os.environ, **env}

    def command(self, name: str, command: str) -> float:
        """Runs a Python command; returns the CPU minutes that it took."""
        before = _cpu_minutes()
        run_logged(command, self.output / "logs" / f"{name}.log", self.env)
        return _cpu_minutes() - before

    def prepare(self) -> None:
        """The data set and the model of random weights, the same for all seeds."""
        if not (self.prior / "model_index.json").is_file():
            raise SystemExit(
                f"--prior {self.prior} is no folder in diffusers format; "
                "projects/DiffPS/tools/train_tiny_diffusion.py makes one."
            )
        if self.make_data:
            console.print("Drawing the data set.")
            root = self.data / "synthetic"
            self.command(
                "data", f"-m person_search.data.synthetic --root {root} --quiet {DATA_OPTIONS}"
            )
        if not self.folder("random").is_dir():
            self.command(
                "random",
                f"projects/DiffPS/tools/make_tiny_diffusion.py {self.folder('random')} --like {self.prior} "
                "--keep vae",
            )

    def folder(self, variant: str) -> Path:
        """The diffusion model of a variant; ``scratch`` does not read it."""
        return self.output / "random_diffusion" if variant == "random" else self.prior

    def keys(self, variant: str) -> str:
        """Config of a variant, as arguments of a command."""
        keys = f"--config-file {CONFIGS}/{variant}.yaml "
        if variant != "scratch":
            keys += (
                f"MODEL.DIFFPS.BACKBONE.MODEL {self.folder(variant)} "
                f"MODEL.DIFFPS.BACKBONE.CACHE.DIR {self.output / 'cache'} "
            )
        return keys + shlex.join(self.overrides)

    def run(self, variant: str, seed: int) -> dict[str, float | None]:
        """One training and its evaluation, or what an earlier run found."""
        name = f"{variant}_seed{seed}"
        out, costs = self.output / name, self.read_costs()
        shared = costs.setdefault(variant, {})
        if "mflop" not in shared:
            shared["mflop"] = backbone_mflop(self.keys(variant))
        if variant == "scratch":
            shared["cache_minutes"] = 0.0
        elif shared.get("cache_minutes") is None:
            command = f"projects/DiffPS/tools/build_cache.py {self.keys(variant)}"
            self.measure(costs, variant, "cache_minutes", f"{variant}_cache", command)
        if not (out / "results.json").is_file():
            command = (
                f"train_net.py --num-gpus 0 --resume {self.keys(variant)} "
                f"SEED {seed} OUTPUT_DIR {out}"
            )
            self.measure(costs, name, "minutes", name, command)
        minutes = costs.get(name, {}).get("minutes")
        return results_in(out) | shared | {"minutes": minutes}

    def measure(self, costs: Costs, group: str, key: str, name: str, command: str) -> None:
        """Runs a command and notes its minutes; None if an earlier run was killed in it."""
        entry = costs.setdefault(group, {})
        begun_before, entry[key] = key in entry, None
        self.write_costs(costs)
        minutes = self.command(name, command)
        entry[key] = None if begun_before else minutes
        self.write_costs(costs)

    def read_costs(self) -> Costs:
        return json.loads(self.costs_file.read_text()) if self.costs_file.is_file() else {}

    def write_costs(self, costs: Costs) -> None:
        write_atomically(self.costs_file, (json.dumps(costs, indent=2) + "\n").encode())


def backbone_mflop(arguments: str) -> float:
    """Millions of floating-point operations (2 per multiplication) of the backbone for one image.

    VAE and UNet, as far as it runs, or the ResNet; convolutions and matrix products are counted.
    """
    import torch
    from detectron2.modeling import build_backbone
    from torch.utils.flop_counter import FlopCounterMode

    from person_search.config import build_config

    _, config, *keys = shlex.split(arguments)
    cfg = build_config(config, [*keys, "MODEL.DIFFPS.BACKBONE.CACHE.KIND", "none"])
    backbone = build_backbone(cfg).eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        backbone(torch.zeros(1, 3, *cfg.MODEL.DIFFPS.INPUT.SIZE))
    return counter.get_total_flops() / 1e6


def _cpu_minutes() -> float:
    """CPU time of all commands that have ended."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return (usage.ru_utime + usage.ru_stime) / 60


def write_report(output: Path, figures: Figures) -> str:
    """Writes ``priors.md`` and ``priors.json``; returns the former."""
    text = markdown(figures)
    (output / "priors.md").write_text(text)
    (output / "priors.json").write_text(json.dumps(figures, indent=2) + "\n")
    return text


def parse_args() -> argparse.Namespace:
    parser = series_parser(__doc__, "output/priors", seeds=1, trained="variant")
    parser.add_argument("--prior", type=Path, default=PRIOR, help="folder of the trained model")
    parser.add_argument("--data", type=Path, help="folder that has synthetic/CUHK-SYSU already; "
                        "drawn into the output folder otherwise")  # fmt: skip
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    args = parse_series(parser)
    if args.seeds < 1:
        parser.error("--seeds must be at least 1.")
    return args


def main() -> None:
    args = parse_args()
    os.chdir(ROOT)
    args.output.mkdir(parents=True, exist_ok=True)
    comparison = Comparison(args.output, args.prior, args.data, args.opts)
    comparison.prepare()
    figures: Figures = {}
    # Seed by seed, so that a run that is stopped early has compared all variants.
    for seed in range(1, args.seeds + 1):
        for variant in args.variants:
            row = comparison.run(variant, seed)
            figures.setdefault(variant, {})[seed] = row
            console.print(
                f"{variant}, seed {seed}: search mAP {row['search/mAP']:.1f}, top-1 "
                f"{row['search/top1']:.1f}, AP50 {row['detection/AP50']:.1f}"
            )
            write_report(args.output, figures)
    console.print(write_report(args.output, figures))
    console.print(f"Table:  {args.output / 'priors.md'}")


if __name__ == "__main__":
    main()
