#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The whole project in one run on the CPU: draw data, train, evaluate, search, show.

    python tools/demo.py [--output output/demo] [--fresh]

Every step is the command that a user would type; it is printed before it runs. What exists already
(data, a finished training) is used again, ``--fresh`` starts over; an interrupted training goes on.
"""

import argparse
import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parents[1]
CONFIG = "configs/PSDiff/tiny/psdiff_slim_synthetic.yaml"
DATASET = "synthetic_cuhk_sysu_test"
DATA_OPTIONS = "--train-images 900 --train-ids 250 --test-images 150 --test-ids 60"
# A CPU cannot train from nothing in the minutes of a demo, so it goes on from small weights that
# projects/PSDiff/tools/make_demo_weights.py made on the same training split, before their learning rate came down.
WEIGHTS = Path("projects/PSDiff/weights")
TEACHER_WEIGHTS = WEIGHTS / "teacher_slim_synthetic.safetensors"
PSDIFF_WEIGHTS = WEIGHTS / "psdiff_slim_synthetic.safetensors"
# Wide enough for the table also where the output goes to a file.
console = Console(highlight=False, width=None if sys.stdout.isatty() else 120)


class Steps:
    """Runs the steps one after another and keeps their seconds."""

    def __init__(self, datasets: Path) -> None:
        self.seconds: dict[str, float] = {}
        self.env = {
            **os.environ,
            "DETECTRON2_DATASETS": str(datasets),
            # fvcore calls it at import; nothing that a newcomer could do about it
            "PYTHONWARNINGS": "ignore:`torch.jit.script` is deprecated:FutureWarning",
        }

    def run(self, name: str, title: str, command: str, done: Path | None = None) -> None:
        """Runs a Python command unless the file ``done`` is there already."""
        console.rule(f"[bold]{title}")
        if done is not None and done.is_file():
            console.print(f"{done} is there already; used again.")
            self.seconds[name] = 0.0
            return
        console.print(f"$ python {command}", style="cyan", soft_wrap=True)
        start = time.monotonic()
        code = subprocess.run([sys.executable, *shlex.split(command)], cwd=ROOT, env=self.env)
        self.seconds[name] = round(time.monotonic() - start, 1)
        if code.returncode:
            raise SystemExit(f"\nThe step '{title}' failed (exit status {code.returncode}).")


def results_of(folder: Path) -> dict:
    """Figures of an evaluation from the file that the evaluator wrote."""
    return json.loads((folder / "inference" / f"{DATASET}_results.json").read_text())


def figures_table(rows: dict[str, dict]) -> Table:
    """Results side by side; percent."""
    table = Table(title="Person search on people never seen in training (synthetic, percent)")
    table.add_column("", no_wrap=True)
    columns = [
        ("search mAP", "search", "mAP"),
        ("top-1", "search", "top1"),
        ("top-5", "search", "top5"),
        ("detected", "detection", "recall"),
        ("det. AP", "detection", "AP"),
        ("AP50", "detection", "AP50"),
    ]
    for title, _, _ in columns:
        table.add_column(title, justify="right")
    for name, result in rows.items():
        cells = [result.get(task, {}).get(metric) for _, task, metric in columns]
        table.add_row(name, *("-" if value is None else f"{value:.1f}" for value in cells))
    return table


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("output/demo"))
    parser.add_argument("--datasets", type=Path, default=Path("datasets"))
    parser.add_argument("--fresh", action="store_true", help="throw earlier results away first")
    return parser.parse_args()


def run_steps(steps: Steps, out: Path, datasets: Path) -> None:
    """All six steps, each skipped if its result is there."""
    results = f"inference/{DATASET}_results.json"
    embeddings = out / "embeddings.safetensors"
    keys = f"--config-file {CONFIG} MODEL.PSDIFF.TEACHER.EMBEDDINGS {embeddings} OUTPUT_DIR {out}"
    steps.run(
        "data",
        "1/6  Draw a synthetic data set in the format of CUHK-SYSU",
        f"-m person_search.data.synthetic --root {datasets}/synthetic {DATA_OPTIONS} "
        f"--workers {os.cpu_count()}",
    )
    steps.run(
        "embeddings",
        "2/6  Let the re-ID teacher embed all training persons",
        f"projects/PSDiff/tools/compute_embeddings.py {keys} "
        f"MODEL.PSDIFF.TEACHER.WEIGHTS {TEACHER_WEIGHTS}",
        done=embeddings,
    )
    for folder, what, option, weights in (
        ("untrained", "3/6  Evaluate the untrained model, for comparison", "--untrained ", ""),
        (
            "start",
            "4/6  Evaluate the weights that training starts from",
            "",
            f" MODEL.WEIGHTS {PSDIFF_WEIGHTS}",
        ),
    ):
        steps.run(
            folder,
            what,
            f"train_net.py --num-gpus 0 --eval-only {option}{keys}/{folder}{weights}",
            done=out / folder / results,
        )
    steps.run(
        "training",
        "5/6  Train PSDiff and evaluate it on people never seen in training",
        f"train_net.py --num-gpus 0 --resume {keys}/train MODEL.WEIGHTS {PSDIFF_WEIGHTS} "
        "TEST.PERSON_SEARCH.DUMP_PREDICTIONS True",
        done=out / "train" / results,
    )
    steps.run(
        "search",
        "6/6  Draw three searches",
        f"tools/visualize_search.py --config-file {CONFIG} --output {out} "
        f"--predictions {out}/train/inference/{DATASET}_predictions.npz",
    )


def main() -> None:
    args = parse_args()
    # `make demo` says when it began, so that the installation counts as well.
    began = float(os.environ.get("DEMO_STARTED", time.time()))
    os.chdir(ROOT)
    if args.fresh and args.output.exists():
        shutil.rmtree(args.output)
    args.output.mkdir(parents=True, exist_ok=True)
    steps = Steps(args.datasets.resolve())
    steps.seconds["installation"] = round(time.time() - began, 1)
    run_steps(steps, args.output, args.datasets)
    report(args.output, args.datasets, steps.seconds, time.time() - began)


def keep_first_times(path: Path, seconds: dict[str, float]) -> dict[str, float]:
    """Times of the run that did the work: a second one takes no time for what it finds done."""
    if seconds["training"] or not path.is_file():
        return seconds
    return json.loads(path.read_text())["seconds"]


def report(out: Path, datasets: Path, seconds: dict[str, float], total: float) -> None:
    """Writes metrics.json and prints the table, the times and the paths of the images."""
    trained = results_of(out / "train")
    chance = json.loads((out / "chance.json").read_text())
    rows = {
        "PSDiff, trained": trained["results"],
        "PSDiff, start weights": results_of(out / "start")["results"],
        "PSDiff, untrained": results_of(out / "untrained")["results"],
        "chance, same detections": {"search": chance},
    }
    seconds = {**seconds, "total": round(total, 1)}
    metrics = {
        **trained["results"],
        "seconds": keep_first_times(out / "metrics.json", seconds),
        "backend": trained["backend"],
        "start": rows["PSDiff, start weights"],
        "untrained": rows["PSDiff, untrained"],
        "chance": chance,
    }
    (out / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n")
    console.rule("[bold]Results")
    console.print(figures_table(rows))
    times = ", ".join(f"{k} {v:.0f} s" for k, v in seconds.items() if k != "total")
    console.print(f"Detectron2: {trained['backend']}.  Time: {total / 60:.1f} min ({times}).")
    console.print(f"Figures:  {out / 'metrics.json'}")
    for picture in sorted(out.glob("*.jpg")):
        console.print(f"Image:  {picture}")
    console.print("Next:     search in any images with the browser (docs/search.md), for example")
    for command in next_commands(out, datasets):
        console.print(f"          {command}", soft_wrap=True)


def next_commands(out: Path, datasets: Path) -> list[str]:
    """Index the synthetic images with the trained model, and open the page."""
    train = out / "train"
    model = f"--config-file {train / 'config.yaml'} --weights {train / 'model_final_ema.pth'}"
    gallery, pictures = out / "gallery", datasets / "synthetic" / "CUHK-SYSU" / "Image" / "SSM"
    return [
        "dev/setup_env.sh --page",
        f".venv/bin/person-search index --gallery {gallery} --source {pictures} {model}",
        f".venv/bin/person-search serve --gallery {gallery} --open {model}",
    ]


if __name__ == "__main__":
    main()
