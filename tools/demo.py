#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Runs the whole project on the CPU: draw data, train, evaluate, search, visualize.

    python tools/demo.py [--output output/demo] [--fresh]

Every step is a command that a user would type; it is printed before it runs. Existing results
(data, a finished training) are reused, an interrupted training is resumed, and --fresh starts over.
--quick is a smoke test: tiny data and a few iterations in a folder of its own, about a minute.
"""

import argparse
import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from person_search.cli import program_parser, run_program

ROOT = Path(__file__).resolve().parents[1]
CONFIG = "configs/PSDiff/tiny/psdiff_slim_synthetic.yaml"
DATASET = "synthetic_cuhk_sysu_test"
DATA_OPTIONS = "--train-images 900 --train-ids 250 --test-images 150 --test-ids 60"
QUICK_DATA_OPTIONS = "--train-images 16 --train-ids 8 --test-images 51 --test-ids 6"
QUICK_OVERRIDES = (
    "TEST.PERSON_SEARCH.PROTOCOLS \"('g50',)\" MODEL.PSDIFF.STEPS 1 MODEL.PSDIFF.QUERY_DRAWS 1 "
    "SOLVER.IMS_PER_BATCH 2 SOLVER.MAX_ITER 4 SOLVER.STEPS ()"
)
# A CPU cannot train from scratch within the minutes of a demo. Training continues from weights that
# projects/PSDiff/tools/make_demo_weights.py trained on the same split at a high learning rate.
WEIGHTS = Path("projects/PSDiff/weights")
TEACHER_WEIGHTS = WEIGHTS / "teacher_slim_synthetic.safetensors"
PSDIFF_WEIGHTS = WEIGHTS / "psdiff_slim_synthetic.safetensors"


def make_console():
    """Returns a rich console that is wide enough for the table where the output goes to a file."""
    from rich.console import Console

    return Console(highlight=False, width=None if sys.stdout.isatty() else 120)


class Steps:
    """Runs the steps in order and records their durations.

    Args:
        datasets: Folder with the data sets, as DETECTRON2_DATASETS for all commands.
    """

    def __init__(self, datasets: Path) -> None:
        self.seconds: dict[str, float] = {}
        self.console = make_console()
        self.env = {
            **os.environ,
            "DETECTRON2_DATASETS": str(datasets),
            # raised when fvcore is imported; users can do nothing about it
            "PYTHONWARNINGS": "ignore:`torch.jit.script` is deprecated:FutureWarning",
        }

    def run(self, name: str, title: str, command: str, done: Path | None = None) -> None:
        """Runs a Python command in the repository root, unless the file ``done`` exists.

        Raises:
            SystemExit: If the command fails.
        """
        self.console.rule(f"[bold]{title}")
        if done is not None and (ROOT / done).is_file():
            self.console.print(f"Skipped: {done} exists.", soft_wrap=True)
            self.seconds[name] = 0.0
            return
        self.console.print(f"$ python {command}", style="cyan", soft_wrap=True, markup=False)
        start = time.monotonic()
        code = subprocess.run([sys.executable, *shlex.split(command)], cwd=ROOT, env=self.env)
        self.seconds[name] = round(time.monotonic() - start, 1)
        if code.returncode:
            raise SystemExit(f"\nThe step '{title}' failed (exit status {code.returncode}).")


def run_steps(steps: Steps, out: Path, datasets: Path, quick: bool = False) -> None:
    """Runs all six steps and skips those with an existing result.

    Args:
        steps: Runs the commands.
        out: Output folder, absolute or relative to the repository root.
        datasets: Folder for the data, absolute or relative to the repository root.
        quick: Uses tiny data, one denoising step and a few iterations.
    """
    results = f"inference/{DATASET}_results.json"
    embeddings = out / "embeddings.safetensors"
    folder, embeddings_word = shlex.quote(str(out)), shlex.quote(str(embeddings))
    keys = f"--config-file {CONFIG} " + (f"{QUICK_OVERRIDES} " if quick else "")
    train_keys = f"{keys}MODEL.PSDIFF.TEACHER.EMBEDDINGS {embeddings_word} OUTPUT_DIR {folder}"
    steps.run(
        "data",
        "1/6  Draw a synthetic data set in the format of CUHK-SYSU",
        f"-m person_search.data.synthetic --root {shlex.quote(str(datasets / 'synthetic'))} "
        f"{QUICK_DATA_OPTIONS if quick else DATA_OPTIONS} --workers {os.cpu_count()}",
    )
    steps.run(
        "embeddings",
        "2/6  Compute the re-ID teacher's embeddings of all training persons",
        f"projects/PSDiff/tools/compute_embeddings.py {train_keys} "
        f"MODEL.PSDIFF.TEACHER.WEIGHTS {TEACHER_WEIGHTS}",
        done=embeddings,
    )
    steps.run(
        "untrained",
        "3/6  Evaluate the untrained model, for comparison",
        f"train_net.py --num-gpus 0 --eval-only --untrained {train_keys}/untrained",
        done=out / "untrained" / results,
    )
    steps.run(
        "start",
        "4/6  Evaluate the weights that training starts from",
        f"train_net.py --num-gpus 0 --eval-only {train_keys}/start MODEL.WEIGHTS {PSDIFF_WEIGHTS}",
        done=out / "start" / results,
    )
    steps.run(
        "training",
        "5/6  Train PSDiff and evaluate it on identities not seen in training",
        f"train_net.py --num-gpus 0 --resume {train_keys}/train MODEL.WEIGHTS {PSDIFF_WEIGHTS} "
        "TEST.PERSON_SEARCH.DUMP_PREDICTIONS True",
        done=out / "train" / results,
    )
    predictions = shlex.quote(f"{out}/train/inference/{DATASET}_predictions.npz")
    steps.run(
        "search",
        "6/6  Visualize three searches",
        f"tools/visualize_search.py --output {folder} --predictions {predictions} {keys}".rstrip(),
    )


def results_of(folder: Path) -> dict:
    """Returns the content of an evaluation's results file."""
    return json.loads((folder / "inference" / f"{DATASET}_results.json").read_text("utf-8"))


def results_table(rows: dict[str, dict]):
    """Returns a rich table of the metrics, in percent.

    Args:
        rows: Results by the name of their row, as ``{task: {metric: value}}``.
    """
    from rich.table import Table

    table = Table(title="Person search on identities not seen in training (synthetic, percent)")
    table.add_column("", no_wrap=True)
    columns = [
        ("search mAP", "search", "mAP"),
        ("top-1", "search", "top1"),
        ("top-5", "search", "top5"),
        ("det. recall", "detection", "recall"),
        ("det. AP", "detection", "AP"),
        ("AP50", "detection", "AP50"),
    ]
    for title, _, _ in columns:
        table.add_column(title, justify="right")
    for name, result in rows.items():
        cells = [result.get(task, {}).get(metric) for _, task, metric in columns]
        table.add_row(name, *("-" if value is None else f"{value:.1f}" for value in cells))
    return table


def report(out: Path, datasets: Path, seconds: dict[str, float], total: float) -> None:
    """Writes metrics.json and prints the results, the durations and the paths of all output.

    Args:
        out: Output folder.
        datasets: Folder with the data.
        seconds: Duration of each step.
        total: Duration of the whole run in seconds.
    """
    console = make_console()
    trained = results_of(out / "train")
    chance = json.loads((out / "chance.json").read_text("utf-8"))
    rows = {
        "PSDiff, trained": trained["results"],
        "PSDiff, start weights": results_of(out / "start")["results"],
        "PSDiff, untrained": results_of(out / "untrained")["results"],
        "chance, same detections": {"search": chance},
    }
    path = out / "metrics.json"
    kept = {**seconds, "total": round(total, 1)}
    if not seconds["training"] and path.is_file():  # durations of the run that trained
        kept = json.loads(path.read_text("utf-8"))["seconds"]
    metrics = {
        **trained["results"],
        "seconds": kept,
        "backend": trained["backend"],
        "start": rows["PSDiff, start weights"],
        "untrained": rows["PSDiff, untrained"],
        "chance": chance,
    }
    path.write_text(json.dumps(metrics, indent=2) + "\n", encoding="utf-8")
    console.rule("[bold]Results")
    console.print(results_table(rows))
    times = ", ".join(f"{name} {value:.0f} s" for name, value in seconds.items())
    lines = [
        f"Detectron2: {trained['backend']}.  Time: {total / 60:.1f} min ({times}).",
        f"Metrics:   {path}",
        *(f"Search:    {image}" for image in sorted(out.glob("search_*.jpg"))),
        "Next:      search your own images in the browser (docs/search.md), for example",
        *(f"           {command}" for command in next_commands(out, datasets)),
        "Note:      these weights know drawn persons only; photographs require others.",
    ]
    for line in lines:
        console.print(line, soft_wrap=True, markup=False)


def next_commands(out: Path, datasets: Path) -> list[str]:
    """Returns commands that index the synthetic images and open the search page."""
    train = out / "train"
    model = ["--config-file", train / "config.yaml", "--weights", train / "model_final_ema.pth"]
    gallery = ["--gallery", out / "gallery"]
    images = datasets / "synthetic" / "CUHK-SYSU" / "Image" / "SSM"
    program = from_root(Path(sys.executable).parent / "person-search")
    commands: list[list[object]] = [
        ["dev/setup_env.sh", "--page"],
        [program, "index", *gallery, "--source", images, *model],
        [program, "serve", *gallery, "--open", *model],
    ]
    return [shlex.join(str(word) for word in command) for command in commands]


def from_root(path: Path) -> Path:
    """Returns ``path`` relative to the repository root if it lies inside."""
    path = path.absolute()
    return path.relative_to(ROOT) if path.is_relative_to(ROOT) else path


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parses the command line; the defaults of the folders depend on ``--quick``."""
    parser = program_parser(__doc__)
    parser.add_argument(
        "--output", type=Path, metavar="DIR",
        help="output folder (default: output/demo of the checkout; with --quick, "
        "output/demo_quick)",
    )  # fmt: skip
    parser.add_argument(
        "--datasets", type=Path, metavar="DIR",
        help="folder for the synthetic data (default: datasets of the checkout; with --quick, "
        "a folder below --output)",
    )  # fmt: skip
    parser.add_argument("--fresh", action="store_true", help="delete the output folder first")
    parser.add_argument(
        "--quick", action="store_true",
        help="check in about a minute that all steps run: tiny data, a few iterations; the "
        "metrics mean nothing",
    )  # fmt: skip
    args = parser.parse_args(argv)
    args.output = args.output or ROOT / "output" / ("demo_quick" if args.quick else "demo")
    args.datasets = args.datasets or (args.output if args.quick else ROOT) / "datasets"
    return args


def run_demo(args: argparse.Namespace) -> None:
    """Runs the steps and reports their results."""
    # "make demo" passes its start time, so that the installation counts as well
    began = float(os.environ.get("DEMO_STARTED") or time.time())
    out, datasets = from_root(args.output), from_root(args.datasets)
    os.chdir(ROOT)
    if args.fresh and out.exists():
        shutil.rmtree(out)
    out.mkdir(parents=True, exist_ok=True)
    steps = Steps(datasets.absolute())
    steps.seconds["installation"] = round(time.time() - began, 1)
    run_steps(steps, out, datasets, args.quick)
    report(out, datasets, steps.seconds, time.time() - began)
    if args.quick:
        print("Quick check: all steps ran. The metrics mean nothing.")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the demo and returns the exit status."""
    hint = "The same command continues where it stopped."
    return run_program(run_demo, parse_args(argv), log=False, resume_hint=hint)


if __name__ == "__main__":
    sys.exit(main())
