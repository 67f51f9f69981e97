# SPDX-License-Identifier: Apache-2.0
"""Shared parts of the tools that compare many trainings: options, commands, mean over seeds."""

import argparse
import json
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from rich.console import Console

from person_search.cli import program_parser

ROOT = Path(__file__).resolve().parents[1]
METRICS = (("search", "mAP"), ("search", "top1"), ("detection", "AP50"))
console = Console(highlight=False, width=None if sys.stdout.isatty() else 120)


def series_parser(
    description: str | None, output: str, seeds: int, trained: str
) -> argparse.ArgumentParser:
    """Returns a parser of the options that all series have, config overrides included.

    Args:
        description: Text above the options.
        output: Default output folder.
        seeds: Default number of seeds.
        trained: Description of what is trained once per seed, for the help.
    """
    parser = program_parser(description)
    parser.add_argument(
        "--output", type=Path, default=Path(output), metavar="DIR",
        help="output folder; finished parts in it are used again (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--seeds", type=int, default=seeds, metavar="N",
        help=f"number of trainings per {trained}, each with another seed (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "opts", nargs=argparse.REMAINDER, metavar="KEY VALUE",
        help="config overrides for all trainings, after all options",
    )  # fmt: skip
    return parser


def parse_series(
    parser: argparse.ArgumentParser, argv: Sequence[str] | None = None
) -> argparse.Namespace:
    """Parses a command line; exits with status 2 if the overrides are not pairs.

    Args:
        parser: Parser of :func:`series_parser`.
        argv: Arguments. Default: those of the process.
    """
    args = parser.parse_args(argv)
    if len(args.opts) % 2:
        parser.error(f"config overrides come as KEY VALUE pairs, not {args.opts}.")
    return args


def run_logged(command: str, log: Path, env: dict[str, str]) -> None:
    """Runs a Python command in the root of the checkout and appends its output to a file.

    Args:
        command: Arguments of the interpreter, for example ``train_net.py --help``.
        log: Log file.
        env: Environment of the command.

    Raises:
        SystemExit: With a message that names the log file, if the command fails.
    """
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


def results_in(folder: Path) -> dict[str, float]:
    """Returns ``METRICS`` of the evaluation in an output folder, by names like ``search/mAP``."""
    result = json.loads((folder / "results.json").read_text())
    return {f"{task}/{metric}": result[task][metric] for task, metric in METRICS}


def mean_and_spread(values: list[float]) -> str:
    """Returns "70.1 ± 1.2", mean and sample standard deviation, or "70.1" for one value."""
    text = f"{np.mean(values):.1f}"
    return f"{text} ± {np.std(values, ddof=1):.1f}" if len(values) > 1 else text
