#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Compares DiffPS on three backbones, small-scale and on synthetic data.

    python projects/DiffPS/tools/compare_priors.py [--output DIR] [--seeds 3] [--prior DIR]

    trained   a tiny diffusion model trained on synthetic scenes, frozen (the prior)
    random    the same model with random weights in UNet and text encoder, frozen; the VAE is kept
    scratch   no prior: a ResNet with FPN of similar cost, trained together with the heads

Heads and recipe are the same. The number of iterations differs, so that all trainings take about
the same CPU time: the frozen backbones read their activations from a cache, and the ResNet runs in
every iteration. Data, caches and trainings are made by the usual commands; existing ones are used
again, and an interrupted training resumes. ``priors.md`` and ``priors.json`` in the output folder
contain the results, mean and spread over the seeds. The CPU time of a killed run is unknown and is
left out of the means.

The variants are the configs in configs/DiffPS/tiny/priors; config overrides at the end of the
command apply to all trainings, for example ``SOLVER.MAX_ITER 3000``.
"""

import argparse
import json
import os
import shlex
import sys
from pathlib import Path

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
from person_search.utils.files import write_atomically

CONFIGS = Path("configs/DiffPS/tiny/priors")
PRIOR = Path("projects/DiffPS/weights/tiny_diffusion")
DATA_OPTIONS = "--train-images 900 --train-ids 250 --test-images 150 --test-ids 60"
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
VARIANTS = tuple(TITLES)

Results = dict[str, dict[int, dict[str, float | None]]]
"""Variant -> seed -> values by name: ``search/mAP``, ..., and the names of ``COSTS``."""


def markdown(results: Results) -> str:
    """Returns a table with one row per variant."""
    titles = ["search mAP", "top-1", "detection AP50", *(title for _, title in COSTS)]
    columns = [*(f"{t}/{m}" for t, m in METRICS), *(name for name, _ in COSTS)]
    lines = ["| backbone | seeds | " + " | ".join(titles) + " |", "|---" * (2 + len(titles)) + "|"]
    for variant in VARIANTS:
        by_seed = results.get(variant)
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
    """Runs commands of the project, each with its own log file.

    Args:
        output: Output folder.
        prior: Folder of the trained diffusion model.
        data: Folder with ``synthetic/CUHK-SYSU``; None to draw it into the output folder.
        overrides: Config overrides of all trainings.
    """

    def __init__(self, output: Path, prior: Path, data: Path | None, overrides: list[str]) -> None:
        self.output, self.prior, self.overrides = output.resolve(), prior.resolve(), overrides
        self.data = data.resolve() if data else self.output / "data"
        self.make_data = data is None
        self.costs_file = self.output / "costs.json"
        env = {"DETECTRON2_DATASETS": str(self.data), "OMP_NUM_THREADS": "1"}
        self.env = {**os.environ, **env}

    def command(self, name: str, command: str) -> float:
        """Runs a Python command; returns its CPU minutes."""
        before = _cpu_minutes()
        run_logged(command, self.output / "logs" / f"{name}.log", self.env)
        return _cpu_minutes() - before

    def prepare(self) -> None:
        """Makes the dataset and the model with random weights, which all seeds share."""
        if not (self.prior / "model_index.json").is_file():
            raise FileNotFoundError(
                f"--prior {self.prior} is not a folder in diffusers format; "
                "projects/DiffPS/tools/train_tiny_diffusion.py makes one."
            )
        if self.make_data:
            console.print("Drawing the dataset.")
            root = shlex.quote(str(self.data / "synthetic"))
            self.command(
                "data", f"-m person_search.data.synthetic --root {root} --quiet {DATA_OPTIONS}"
            )
        folder = self.output / "random_diffusion"
        if not folder.is_dir():
            command = ["projects/DiffPS/tools/make_tiny_diffusion.py", str(folder)]
            command += ["--like", str(self.prior), "--keep", "vae"]
            self.command("random", shlex.join(command))

    def keys(self, variant: str) -> str:
        """Returns the config of a variant, as arguments of a command."""
        keys = ["--config-file", f"{CONFIGS}/{variant}.yaml"]
        if variant != "scratch":
            random = variant == "random"
            model = self.output / "random_diffusion" if random else self.prior
            keys += ["MODEL.DIFFPS.BACKBONE.MODEL", str(model)]
            keys += ["MODEL.DIFFPS.BACKBONE.CACHE.DIR", str(self.output / "cache")]
        return shlex.join([*keys, *self.overrides])

    def run(self, variant: str, seed: int) -> dict[str, float | None]:
        """Trains and evaluates one variant, unless an earlier run did; returns its results."""
        name = f"{variant}_seed{seed}"
        out, costs = self.output / name, {}
        if self.costs_file.is_file():
            costs = json.loads(self.costs_file.read_text(encoding="utf-8"))
        shared = costs.setdefault(variant, {})
        if "mflop" not in shared:
            shared["mflop"] = backbone_mflop(self.keys(variant))
        if variant == "scratch":
            shared["cache_minutes"] = 0.0
        elif shared.get("cache_minutes") is None:
            command = f"projects/DiffPS/tools/build_cache.py {self.keys(variant)}"
            self._measure(costs, variant, "cache_minutes", f"{variant}_cache", command)
        if not (out / "results.json").is_file():
            overrides = shlex.join(["SEED", str(seed), "OUTPUT_DIR", str(out)])
            command = f"train_net.py --num-gpus 0 --resume {self.keys(variant)} {overrides}"
            self._measure(costs, name, "minutes", name, command)
        minutes = costs.get(name, {}).get("minutes")
        return results_in(out) | shared | {"minutes": minutes}

    def _measure(self, costs: dict, group: str, key: str, name: str, command: str) -> None:
        """Runs a command and stores its minutes; None if an earlier run was killed in it."""
        entry = costs.setdefault(group, {})
        started_before, entry[key] = key in entry, None
        self._write_costs(costs)
        minutes = self.command(name, command)
        entry[key] = None if started_before else minutes
        self._write_costs(costs)

    def _write_costs(self, costs: dict) -> None:
        write_atomically(self.costs_file, (json.dumps(costs, indent=2) + "\n").encode())


def backbone_mflop(arguments: str) -> float:
    """Returns the million floating-point operations of the backbone for one image.

    Convolutions and matrix products are counted, 2 operations per multiply-add: of the VAE and the
    UNet up to the last activation, or of the ResNet.
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
    """Returns the CPU time of all finished commands."""
    import resource  # not on Windows

    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return (usage.ru_utime + usage.ru_stime) / 60


def parse_args() -> argparse.Namespace:
    """Parses the command line."""
    parser = series_parser(__doc__, "output/priors", seeds=1, trained="variant")
    parser.add_argument("--prior", type=Path, default=PRIOR, metavar="DIR",
                        help="folder of the trained diffusion model (default: %(default)s)",
                        )  # fmt: skip
    parser.add_argument("--data", type=Path, metavar="DIR", help="folder with synthetic/CUHK-SYSU "
                        "(default: drawn into the output folder)")  # fmt: skip
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS),
                        help="variants to train (default: all)")  # fmt: skip
    args = parse_series(parser)
    if args.seeds < 1:
        parser.error("--seeds must be at least 1.")
    return args


def compare(args: argparse.Namespace) -> None:
    """Runs the trainings and writes the table after each."""
    os.chdir(ROOT)
    args.output.mkdir(parents=True, exist_ok=True)
    comparison = Comparison(args.output, args.prior, args.data, args.opts)
    comparison.prepare()
    results: Results = {}
    # seed by seed, so that a run that is stopped early has compared all variants
    for seed in range(1, args.seeds + 1):
        for variant in args.variants:
            row = comparison.run(variant, seed)
            results.setdefault(variant, {})[seed] = row
            console.print(
                f"{variant}, seed {seed}: search mAP {row['search/mAP']:.1f}, top-1 "
                f"{row['search/top1']:.1f}, AP50 {row['detection/AP50']:.1f}"
            )
            (args.output / "priors.md").write_text(markdown(results), encoding="utf-8")
            text = json.dumps(results, indent=2) + "\n"
            (args.output / "priors.json").write_text(text, encoding="utf-8")
    console.print(markdown(results))
    console.print(f"Table:  {args.output / 'priors.md'}")


def main() -> int:
    """Runs the program."""
    return run_program(compare, parse_args(), resume_hint="The same command continues.")


if __name__ == "__main__":
    sys.exit(main())
