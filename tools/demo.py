#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The whole project in one run on the CPU: draw data, train, evaluate, search, show.

    python tools/demo.py [--output output/demo] [--config-file configs/PSDiff/...yaml]

Every step is the command that a user would type; it is printed before it runs. What exists already
(data, a finished training) is used again; ``--fresh`` starts over.
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
DATASET = "synthetic_cuhk_sysu_test"
# 0.25 of difficulty leaves look-alikes and occlusion in, at a size that trains in minutes.
DATA_OPTIONS = (
    "--train-images 600 --test-images 150 --train-ids 150 --test-ids 60 --gallery-sizes 50 100"
)
console = Console(highlight=False)


class Steps:
    """Runs the steps one after another and keeps their seconds."""

    def __init__(self, datasets: Path) -> None:
        self.seconds: dict[str, float] = {}
        folders = [ROOT, ROOT / "projects" / "PSDiff", ROOT / "projects" / "DiffPS"]
        path = os.pathsep.join([*map(str, folders), os.environ.get("PYTHONPATH", "")])
        self.env = {**os.environ, "DETECTRON2_DATASETS": str(datasets), "PYTHONPATH": path}

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
    table.add_column("")
    columns = [
        ("search mAP", "search", "mAP"),
        ("top-1", "search", "top1"),
        ("top-5", "search", "top5"),
        ("detection recall", "detection", "recall"),
        ("detection AP", "detection", "AP"),
        ("AP50 (COCO)", "detection", "AP50"),
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
    parser.add_argument("--config-file", default="configs/PSDiff/psdiff_slim_synthetic.yaml")
    parser.add_argument("--datasets", type=Path, default=Path("datasets"))
    parser.add_argument("--fresh", action="store_true", help="throw earlier results away first")
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    # `make demo` says when it began, so that the installation counts as well.
    began = float(os.environ.get("DEMO_STARTED", time.time()))
    os.chdir(ROOT)
    out = args.output
    if args.fresh and out.exists():
        shutil.rmtree(out)
    out.mkdir(parents=True, exist_ok=True)
    steps = Steps(args.datasets.resolve())
    if "DEMO_STARTED" in os.environ:
        steps.seconds["installation"] = round(time.time() - began, 1)
    teacher, model, untrained = out / "teacher", out / "train", out / "untrained"
    keys = f"MODEL.PSDIFF.TEACHER.EMBEDDINGS {teacher}/embeddings.safetensors"
    config = f"--config-file {args.config_file}"

    steps.run(
        "data",
        "1/6  Draw a synthetic data set in the format of CUHK-SYSU",
        f"-m person_search.data.synthetic --root {args.datasets}/synthetic {DATA_OPTIONS} "
        f"--workers {os.cpu_count()}",
    )
    steps.run(
        "teacher",
        "2/6  Train the re-ID teacher on crops of the training persons",
        f"projects/PSDiff/train_teacher.py {config} OUTPUT_DIR {teacher}",
        done=teacher / "teacher.safetensors",
    )
    steps.run(
        "embeddings",
        "3/6  Let the teacher embed all training persons",
        f"projects/PSDiff/compute_embeddings.py {config} {keys} OUTPUT_DIR {teacher} "
        f"MODEL.PSDIFF.TEACHER.WEIGHTS {teacher}/teacher.safetensors",
        done=teacher / "embeddings.safetensors",
    )
    steps.run(
        "untrained",
        "4/6  Evaluate the untrained model, for comparison",
        f"train_net.py --num-gpus 0 --eval-only {config} {keys} OUTPUT_DIR {untrained} "
        'MODEL.WEIGHTS ""',
        done=untrained / "inference" / f"{DATASET}_results.json",
    )
    steps.run(
        "training",
        "5/6  Train PSDiff and evaluate it",
        f"train_net.py --num-gpus 0 --resume {config} {keys} OUTPUT_DIR {model} "
        "TEST.PERSON_SEARCH.DUMP_PREDICTIONS True",
        done=model / "inference" / f"{DATASET}_results.json",
    )
    steps.run(
        "search",
        "6/6  Search for persons and draw what was found",
        f"tools/visualize_search.py {config} --weights {model}/model_final.pth --output {out} "
        f"--predictions {model}/inference/{DATASET}_predictions.npz",
    )
    report(out, model, untrained, steps.seconds, time.time() - began)


def report(
    out: Path, model: Path, untrained: Path, seconds: dict[str, float], total: float
) -> None:
    """Writes metrics.json and prints the table, the times and the paths of the pictures."""
    trained = results_of(model)
    chance = json.loads((out / "chance.json").read_text())
    rows = {
        "PSDiff, trained": trained["results"],
        "PSDiff, untrained": results_of(untrained)["results"],
        "chance, same detections": {"search": chance},
    }
    metrics = {
        **trained["results"],
        "seconds": {**seconds, "total": round(total, 1)},
        "backend": trained["backend"],
        "untrained": rows["PSDiff, untrained"],
        "chance": chance,
    }
    (out / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n")
    console.rule("[bold]Results")
    console.print(figures_table(rows))
    times = ", ".join(f"{name} {value:.0f} s" for name, value in seconds.items())
    console.print(f"Detectron2: {trained['backend']}.  Time: {total / 60:.1f} min ({times}).")
    console.print(f"Figures:  {out / 'metrics.json'}")
    for picture in sorted(out.glob("*.jpg")):
        console.print(f"Picture:  {picture}")


if __name__ == "__main__":
    main()
