# SPDX-License-Identifier: Apache-2.0
"""What the tools share that compare many trainings: options, commands, figures over the seeds.

Not a program; ``compare_priors.py`` and ``reproduce_trends.py`` are.
"""

import argparse
import json
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
from rich.console import Console

ROOT = Path(__file__).resolve().parents[2]
METRICS = (("search", "mAP"), ("search", "top1"), ("detection", "AP50"))
console = Console(highlight=False, width=None if sys.stdout.isatty() else 120)


def series_parser(
    description: str, output: str, seeds: int, trained: str
) -> argparse.ArgumentParser:
    """Makes a parser of the options that all series have.

    Args:
        output, seeds: defaults of the two. trained: what is trained with every seed, for the help.
    """
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, default=Path(output))
    parser.add_argument("--seeds", type=int, default=seeds, help=f"trainings per {trained}")
    parser.add_argument("overrides", nargs="*", help="after --: KEY VALUE pairs for all trainings")
    return parser


def parse_series(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """Reads the command line; ends the program where overrides are no pairs."""
    args = parser.parse_args()
    if len(args.overrides) % 2:
        parser.error(f"config overrides come as KEY VALUE pairs, not {args.overrides}.")
    return args


def run_logged(command: str, log: Path, env: dict[str, str]) -> None:
    """Runs a Python command, its output added to a file; ends the program if it fails."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as file:
        code = subprocess.run(
            [sys.executable, *shlex.split(command)],
            cwd=ROOT,
            env=env,
            stdout=file,
            stderr=subprocess.STDOUT,
        ).returncode
    if code:
        raise SystemExit(f"{log.stem} failed (exit status {code}); its output is in {log}.")


def figures_in(folder: Path) -> dict[str, float]:
    """``METRICS`` of the evaluation in an output folder, by names such as ``search/mAP``."""
    result = json.loads((folder / "results.json").read_text())
    return {f"{task}/{metric}": result[task][metric] for task, metric in METRICS}


def mean_and_spread(values: list[float]) -> str:
    """``70.1 ± 1.2``, the spread being the sample's standard deviation; ``70.1`` for one value."""
    text = f"{np.mean(values):.1f}"
    return f"{text} ± {np.std(values, ddof=1):.1f}" if len(values) > 1 else text
