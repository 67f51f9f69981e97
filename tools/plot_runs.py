#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Draws losses and metrics of several trainings into one image.

    python tools/plot_runs.py output/a output/b --output runs.png

Reads metrics.json of each output folder. Losses are smoothed by a running median.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from person_search.cli import program_parser, run_program

DEFAULT_METRICS = ("total_loss", "search/mAP", "search/top1", "detection/AP50")
Curve = tuple[list[int], list[float]]


def read_curves(folder: Path) -> dict[str, Curve]:
    """Reads all curves of a training.

    Args:
        folder: Output folder with ``metrics.json``.

    Returns:
        Name -> iterations (ascending) and values. A resumed training overwrites what it repeats.

    Raises:
        ValueError: If the file is missing, unreadable or empty.
    """
    path = folder / "metrics.json"
    try:
        lines = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
        points: dict[str, dict[int, float]] = {}
        for line in lines:
            for name, value in line.items():
                points.setdefault(name, {})[int(line["iteration"])] = float(value)
    except FileNotFoundError:
        raise ValueError(
            f"{folder} has no metrics.json: name the OUTPUT_DIR of trainings."
        ) from None
    except (ValueError, KeyError, TypeError, AttributeError) as e:
        raise ValueError(f"{path} is not a file of metrics of a training: {e!r}.") from e
    if not points:
        raise ValueError(f"{path} is empty: no iteration has been logged yet.")
    curves = {name: sorted(values.items()) for name, values in points.items()}
    return {name: ([i for i, _ in at], [v for _, v in at]) for name, at in curves.items()}


def smoothed(values: Sequence[float], window: int) -> list[float]:
    """Returns the median of each value and its neighbors, ``window`` values at most."""
    import numpy as np

    half = window // 2
    return [float(np.median(values[max(i - half, 0) : i + half + 1])) for i in range(len(values))]


def plot(args: argparse.Namespace) -> None:
    """Writes the image."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    runs = {str(folder): read_curves(folder) for folder in args.folders}
    known = sorted({name for curves in runs.values() for name in curves} - {"iteration"})
    metrics = args.metrics or [name for name in DEFAULT_METRICS if name in known]
    if missing := [name for name in metrics if name not in known]:
        raise ValueError(f"no training has {', '.join(missing)}; they have {', '.join(known)}.")
    figure, axes = plt.subplots(
        len(metrics), 1, sharex=True, squeeze=False, figsize=(8, 2.6 * len(metrics) + 0.6)
    )
    for axis, metric in zip(axes[:, 0], metrics, strict=True):
        for number, (label, curves) in enumerate(runs.items()):
            iterations, values = curves.get(metric, ([], []))
            few = len(values) < 30
            shown = values if few else smoothed(values, args.window)
            axis.plot(
                iterations, shown, "o-" if few else "-", color=f"C{number}", label=label, ms=4
            )
            if not few:
                axis.plot(iterations, values, color=f"C{number}", alpha=0.25, lw=0.7)
        axis.set_ylabel(metric)
        axis.grid(alpha=0.3)
    axes[-1, 0].set_xlabel("iteration")
    axes[0, 0].legend(loc="upper right", fontsize="small")
    figure.tight_layout()
    args.output.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(args.output, dpi=120)
    plt.close(figure)
    print(f"{args.output}: {', '.join(metrics)} of {len(runs)} trainings")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the program and returns its exit status."""
    parser = program_parser(__doc__)
    add = parser.add_argument
    add("folders", nargs="+", type=Path, metavar="FOLDER", help="output folders of trainings")
    add("--output", type=Path, default=Path("runs.png"), metavar="FILE",
        help="image to write, .png, .svg or .pdf (default: %(default)s)")  # fmt: skip
    add("--metrics", nargs="+", metavar="NAME",
        help=f"one panel each (default: {', '.join(DEFAULT_METRICS)})")  # fmt: skip
    add("--window", type=int, default=15, metavar="N",
        help="values of the running median of long curves (default: %(default)s)")  # fmt: skip
    return run_program(plot, parser.parse_args(argv), log=False)


if __name__ == "__main__":
    sys.exit(main())
