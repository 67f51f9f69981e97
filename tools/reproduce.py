#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Runs everything that the tables of a paper need, and compares the results with the paper's.

    python tools/reproduce.py psdiff --data /data --gpus 4
    python tools/reproduce.py diffps --data /data --gpus 3 --slurm "--partition gpu --time 3-0"

Teachers, embeddings, trainings and evaluations run one after another. Finished ones are skipped,
so the same command continues after an interruption. Ends with OUTPUT/tables.md and with a folder to
publish, OUTPUT/publish: weights with their model cards, configs, logs and results. --plan lists the
steps with estimates of time and memory and runs nothing.
"""

import argparse
import importlib.util
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from person_search.cli import program_parser, run_program

ROOT = Path(__file__).resolve().parents[1]
TABLES = {
    "psdiff": "projects/PSDiff/tools/paper_tables.py",
    "diffps": "projects/DiffPS/tools/diffps_tables.py",
}
# Sustained TFLOP/s of a training in mixed precision: ASSUMED, about a quarter of the peak.
SPEED = {"V100": 25.0, "RTX 4090": 40.0, "A100": 75.0, "H100": 200.0}
# Forward TFLOP of an image, by words in the name of the config (docs/results_psdiff.md and
# docs/results_diffps.md: counted); frozen and trained part, since only the latter has a backward.
COST = {"diffps": (5.5, 2.8), "swinb": (0.0, 0.88), "psdiff": (0.0, 0.38)}
# GiB of a training with 8 images on one GPU in mixed precision, calculated; not known for DiffPS.
MEMORY = {"swinb": 27.9, "psdiff": 3.9}
COPIED = ("config.yaml", "metrics.json", "log.txt", "run.json", "results.json")


def load_tables(method: str) -> ModuleType:
    """Imports the definitions of a paper's tables."""
    path = ROOT / TABLES[method]
    spec = importlib.util.spec_from_file_location(f"{method}_paper_tables", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def estimate(commands: Any, step: Any) -> tuple[float, float | None]:
    """Estimates the TFLOP and the memory in GiB of a training; (0, None) for other steps."""
    from person_search.reproduction import Training

    if step.kind != "training":
        return 0.0, None
    solver = commands.config(Training(step.config)).SOLVER
    name = f"{commands.method}/{step.config}".lower()
    frozen, trained = next(cost for word, cost in COST.items() if word in name)
    total = solver.MAX_ITER * solver.IMS_PER_BATCH * (frozen + 3 * trained)
    memory = next((gib for word, gib in MEMORY.items() if word in name), None)
    if memory is not None and commands.num_gpus > 0:
        memory *= solver.IMS_PER_BATCH / commands.num_gpus / 8
    return total, memory


def folder_of(step: Any) -> str:
    """Returns the folder of a step, for evaluations below that of the training."""
    parts = step.done.parent.parts
    return "/".join(parts[-2:] if step.kind == "evaluation" else parts[-1:])


def print_plan(commands: Any, steps: Sequence[Any]) -> None:
    """Prints all steps with estimates."""
    from rich.console import Console
    from rich.table import Table

    gpus = max(commands.num_gpus, 1)
    table = Table(title=f"{len(steps)} steps; hours on {gpus} GPU(s) and GiB on each: ESTIMATES")
    for title in ("", "step", "folder", *SPEED, "GiB"):
        table.add_column(title, justify="right" if title in (*SPEED, "GiB") else "left")
    sums = dict.fromkeys(SPEED, 0.0)
    for step in steps:
        work, memory = estimate(commands, step)
        hours = {gpu: work / speed / gpus / 3600 for gpu, speed in SPEED.items()}
        done = step.done.is_file()
        sums = {gpu: sums[gpu] + (0 if done else hours[gpu]) for gpu in SPEED}
        shown = [f"{value:.1f}" if work else "" for value in hours.values()]
        table.add_row(
            "done" if done else "", step.kind, folder_of(step), *shown,
            f"{memory:.0f}" if memory else "",
        )  # fmt: skip
    table.add_row("", "to do", "", *(f"{value:.0f}" for value in sums.values()), "")
    Console(highlight=False, width=None if sys.stdout.isatty() else 120).print(table)
    print(
        "Estimated from operation counts and assumed speeds "
        f"({', '.join(f'{gpu} {speed:g}' for gpu, speed in SPEED.items())} TFLOP/s); teachers and "
        "evaluations are not included. No run on these GPUs stands behind them."
    )


def run_step(step: Any, number: str, args: argparse.Namespace) -> None:
    """Runs a step, its output appended to a log.

    Raises:
        SystemExit: With the name of the log, if it fails or does not write its file.
    """
    name = f"{step.kind}_{folder_of(step).replace('/', '_')}"
    log = args.output.resolve() / "logs" / f"{name}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    words = [sys.executable, *shlex.split(step.command)[1:]]
    print(f"[{number}] {step.kind}: {step.done}", flush=True)
    if args.slurm is not None:
        gpus = [f"--gpus={args.gpus}"] if args.gpus else []
        words = [
            "sbatch", "--wait", f"--job-name={name}", f"--output={log}", "--open-mode=append",
            f"--chdir={ROOT}", *gpus, *shlex.split(args.slurm), f"--wrap={shlex.join(words)}",
        ]  # fmt: skip
    env = {**os.environ, "DETECTRON2_DATASETS": str(args.data.resolve())}
    code = run_command(words, env, log)
    if code or not step.done.is_file():
        reason = f"exit status {code}" if code else f"it did not write {step.done}"
        raise SystemExit(
            f"error: {step.kind} of {step.config} failed ({reason}); its output is in {log}. The "
            "same command continues here."
        )


def run_command(words: Sequence[str], env: dict[str, str], log: Path) -> int:
    """Runs a command in the root of the checkout; appends its output to a log."""
    with log.open("ab") as file:
        try:
            return subprocess.run(
                words, cwd=ROOT, env=env, stdout=file, stderr=subprocess.STDOUT
            ).returncode
        except FileNotFoundError:
            raise ValueError(
                f"{words[0]} is not installed here: run on a login node of Slurm, or omit --slurm."
            ) from None


def publish(steps: Sequence[Any], args: argparse.Namespace) -> Path:
    """Collects weights, configs, logs and results of all finished trainings.

    Returns:
        The folder.
    """
    folder = args.output / "publish"
    lines = ["# Results", "", "See tables.md. Weights carry a model card, shown by", ""]
    lines += ["    person-search info --weights FILE", ""]
    for step in steps:
        if step.kind == "evaluation" and step.done.is_file():
            target = folder / step.done.parent.parent.name / f"results_{step.done.parent.name}.json"
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(step.done, target)
        if step.kind != "training" or not step.done.is_file():
            continue
        source, target = step.done.parent, folder / step.done.parent.name
        target.mkdir(parents=True, exist_ok=True)
        for name in COPIED:
            if (source / name).is_file():
                shutil.copy2(source / name, target / name)
        averaged = source / "model_final_ema.pth"
        weights = averaged if averaged.is_file() else step.done
        shrink = [sys.executable, "tools/shrink_checkpoint.py", str(weights)]
        log = args.output / "logs" / "publish.log"
        if run_command([*shrink, str(target / "weights.safetensors")], dict(os.environ), log):
            raise SystemExit(f"error: {weights} cannot be published; the reason is in {log}.")
        lines.append(f"- `{target.name}/weights.safetensors`: {step.config}.yaml")
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copy2(args.output / "tables.md", folder / "tables.md")
    (folder / "README.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def reproduce(args: argparse.Namespace) -> None:
    """Runs the missing steps and writes tables and the folder to publish."""
    tables = load_tables(args.method)
    if unknown := [number for number in args.tables or () if number not in tables.NUMBERS]:
        raise ValueError(
            f"--tables {' '.join(unknown)}: the paper's are {', '.join(tables.NUMBERS)}."
        )
    if not args.data.is_dir():
        raise FileNotFoundError(
            f"--data {args.data} is not a folder; it must hold the data sets, see "
            "datasets/README.md."
        )
    numbers = args.tables or list(tables.NUMBERS)
    commands = tables.Commands(args.output, args.gpus, args.opts)
    os.chdir(ROOT)  # paths in the configs are relative to it
    steps = commands.of_tables(numbers)
    if args.plan:
        print_plan(commands, steps)
        return
    args.output.mkdir(parents=True, exist_ok=True)
    for number, step in enumerate(steps, start=1):
        if not step.done.is_file():
            run_step(step, f"{number}/{len(steps)}", args)
    made = tables.all_tables(tables.read_results(args.output), difference=True)
    text = "\n".join(made[number] for number in made if number in numbers)
    (args.output / "tables.md").write_text(text, encoding="utf-8")
    print(f"\n{text}\nTo publish: {publish(steps, args)}")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the program and returns its exit status."""
    parser = program_parser(__doc__)
    add = parser.add_argument
    add("method", choices=TABLES, help="whose paper")
    add("--data", type=Path, required=True, metavar="ROOT",
        help="folder of the data sets, as $DETECTRON2_DATASETS")  # fmt: skip
    add("--gpus", type=int, required=True, metavar="N", help="GPUs of a step; 0: CPU")
    add("--output", type=Path, metavar="DIR",
        help="folder of all runs (default: output/reproduce_<method>)")  # fmt: skip
    add("--tables", nargs="+", metavar="NUMBER", help="tables of the paper (default: all)")
    add("--slurm", nargs="?", const="", metavar="OPTIONS",
        help="submits each step with sbatch and waits for it; OPTIONS in one word")  # fmt: skip
    add("--plan", action="store_true", help="list the steps with estimates and end")
    add("--set", dest="opts", nargs="+", default=[], metavar="KEY VALUE",
        help="config overrides of all steps")  # fmt: skip
    args = parser.parse_args(argv)
    if len(args.opts) % 2:
        parser.error(f"--set takes KEY VALUE pairs, not {args.opts}")
    args.data = args.data.resolve()
    args.output = (args.output or Path(f"output/reproduce_{args.method}")).resolve()
    return run_program(reproduce, args, log=False, resume_hint="The same command continues.")


if __name__ == "__main__":
    sys.exit(main())
