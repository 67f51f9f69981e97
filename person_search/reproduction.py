# SPDX-License-Identifier: Apache-2.0
"""Tables of a paper: their values, the runs that reproduce them, and the comparison.

Each project defines its tables in ``projects/<name>/tools``; ``tools/reproduce.py`` runs what they
need. Each of our values comes from one evaluation of one training; equal trainings
and evaluations are run once.
"""

import argparse
import json
import shlex
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

if TYPE_CHECKING:
    from detectron2.config import CfgNode

ROOT = Path(__file__).resolve().parents[1]


class Training(NamedTuple):
    """A training.

    Attributes:
        config: Config below ``configs/<method>``, without ``.yaml``.
        overrides: KEY VALUE pairs of the training and its evaluations.
        variant: Name of the training; empty: that of the config.
    """

    config: str
    overrides: tuple[str, ...] = ()
    variant: str = ""

    @property
    def name(self) -> str:
        """Name of the training and of its output folder."""
        return self.variant or self.config.rpartition("/")[2]


class Evaluation(Protocol):
    """A trained model, tested with settings that need no training; hashable."""

    @property
    def training(self) -> Training:
        """Training of the model."""

    @property
    def folder(self) -> str:
        """Output folder, ``<training>/<what is set>``."""

    @property
    def overrides(self) -> list[str]:
        """KEY VALUE pairs of ``train_net.py --eval-only``."""


class Cell(NamedTuple):
    """A value of the paper, such as "mAP / top-1", and the evaluation that reproduces it."""

    paper: str
    ours: Evaluation


class Table(NamedTuple):
    """A table, or the values of a figure.

    Attributes:
        number: Number in the paper, such as "IV a" or "Fig. 4".
        title: Title.
        columns: Names of the first column and of each pair of columns (paper, ours).
        rows: Label and values of each row.
        metrics: Metric of each pair of columns; empty: mAP, or mAP and top-1.
    """

    number: str
    title: str
    columns: tuple[str, ...]
    rows: list[tuple[str, list[Cell]]]
    metrics: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """Number with the word "Table", where it is not a figure."""
        return self.number if self.number.startswith("Fig.") else f"Table {self.number}"

    @property
    def evaluations(self) -> list[Evaluation]:
        """Evaluations of all cells, in order; cells may share an evaluation."""
        return [cell.ours for _, cells in self.rows for cell in cells]

    def metrics_of(self, column: int, paper: str) -> tuple[str, ...]:
        """Returns the metrics of a cell."""
        if self.metrics:
            return self.metrics[column : column + 1]
        return ("mAP", "top1") if "/" in paper else ("mAP",)


def evaluations_of(tables: Iterable[Table], numbers: Sequence[str]) -> list[Evaluation]:
    """Returns the evaluations of all cells of some tables; cells may share an evaluation."""
    return [run for table in tables if table.number in numbers for run in table.evaluations]


def row(label: str, papers: str, *runs: Evaluation) -> tuple[str, list[Cell]]:
    """Makes a row from the values of the paper, separated by commas, and our evaluations."""
    return label, [Cell(*pair) for pair in zip(papers.split(", "), runs, strict=True)]


class Step(NamedTuple):
    """A command, and the file that exists when it has been run.

    Attributes:
        command: Command line that starts with ``python``.
        done: File that the command writes last.
        kind: What it does: "teacher", "embeddings", "cache", "training", "evaluation" or "cost".
        config: Config below ``configs/<method>``.
    """

    command: str
    done: Path
    kind: str
    config: str


@dataclass
class Commands(ABC):
    """Makes the command lines of all steps.

    Attributes:
        output: Output folder of all runs.
        num_gpus: GPUs of a training or an evaluation.
        overrides: KEY VALUE pairs for all commands.
    """

    output: Path
    num_gpus: int
    overrides: list[str] = field(default_factory=list)
    method = ""
    """Folder of the configs."""

    def config(self, training: Training) -> "CfgNode":
        """Returns the config of a training."""
        from person_search.config import default_config, merge_into

        cfg = default_config()
        path = ROOT / "configs" / self.method / f"{training.config}.yaml"
        merge_into(cfg, path, [*self.overrides, *training.overrides])
        return cfg

    def options(self, config: str, num_gpus: int) -> list[str]:
        """Returns the options of a program: config, GPUs and overrides."""
        path = f"configs/{self.method}/{config}.yaml"
        return ["--config-file", path, "--num-gpus", str(num_gpus), *self.overrides]

    @abstractmethod
    def of_tables(self, numbers: Sequence[str]) -> list[Step]:
        """Returns all steps of some tables in a valid order."""

    def print_missing(self, numbers: Sequence[str]) -> None:
        """Prints a shell script of the unfinished steps of some tables."""
        steps = self.of_tables(numbers)
        todo = [step.command for step in steps if not step.done.is_file()]
        print("\n".join([f"# {len(steps) - len(todo)} of {len(steps)} are finished", *todo]))

    def before(self, training: Training) -> list[Step]:
        """Returns the steps that a training requires: none, unless a project has some."""
        return []

    def of_training(self, training: Training) -> Step:
        """Returns the step of a training."""
        out = self.output / training.name
        words = ["train_net.py", "--resume", *self.options(training.config, self.num_gpus)]
        words += [*training.overrides, "OUTPUT_DIR", str(out)]
        done = out / "model_final.pth"
        return Step(f"python {shlex.join(words)}", done, "training", training.config)

    def of_evaluation(self, evaluation: Evaluation) -> Step:
        """Returns the step of an evaluation."""
        out, training = self.output / evaluation.folder, evaluation.training
        options = self.options(training.config, self.num_gpus)
        weights = str(self.of_training(training).done)
        words = ["train_net.py", "--eval-only", *options, "MODEL.WEIGHTS", weights]
        words += [*evaluation.overrides, "OUTPUT_DIR", str(out)]
        done = out / "results.json"
        return Step(f"python {shlex.join(words)}", done, "evaluation", training.config)

    def of_evaluations(self, runs: Iterable[Evaluation]) -> list[Step]:
        """Returns all steps of some evaluations in a valid order."""
        runs = list(dict.fromkeys(runs))
        trainings = list(dict.fromkeys(run.training for run in runs))
        steps = [step for training in trainings for step in self.before(training)]
        steps += [self.of_training(training) for training in trainings]
        steps += [self.of_evaluation(run) for run in runs]
        return list({step.done: step for step in reversed(steps)}.values())[::-1]


def add_options(parser: argparse.ArgumentParser, output: str, num_gpus: int) -> None:
    """Adds the options that the table programs of all projects have.

    Args:
        parser: Parser of the program.
        output: Default output folder.
        num_gpus: Default number of GPUs.
    """
    add = parser.add_argument
    add("--output", type=Path, default=Path(output), metavar="DIR",
        help="folder of all trainings and evaluations (default: %(default)s)")  # fmt: skip
    add("--commands", action="store_true", help="print the commands of missing runs, not tables")
    add("--num-gpus", type=int, default=num_gpus, metavar="N",
        help="number of GPUs in the commands (default: %(default)s)")  # fmt: skip
    add("opts", nargs=argparse.REMAINDER, metavar="KEY VALUE",
        help="config overrides for all commands, after all options")  # fmt: skip


# ---- results -------------------------------------------------------------------------------------


def read_metrics(output: Path, runs: Iterable[Evaluation]) -> dict[str, dict[str, float]]:
    """Reads the results of finished evaluations.

    Returns:
        Folder of the evaluation -> ``mAP``, ``top1``, ``AP50`` and ``mAP_<protocol>`` of further
        protocols, in percent with one decimal.
    """
    results = {}
    for run in runs:
        path = output / run.folder / "results.json"
        if path.is_file():
            found: dict[str, Any] = json.loads(path.read_text())
            values = {"mAP": found["search"]["mAP"], "top1": found["search"]["top1"]}
            if "detection" in found:
                values["AP50"] = found["detection"]["AP50"]
            for section, metrics in found.items():
                if section.startswith("search_"):
                    values[f"mAP_{section.removeprefix('search_')}"] = metrics["mAP"]
            results[run.folder] = {name: round(value, 1) for name, value in values.items()}
    return results


def table_lines(header: Sequence[object], rows: Sequence[Sequence[object]]) -> str:
    """Formats a Markdown table."""
    lines = ["| " + " | ".join(map(str, row)) + " |\n" for row in (header, *rows)]
    return lines[0] + "|---" * len(header) + "|\n" + "".join(lines[1:])


def markdown(
    table: Table, results: dict[str, dict[str, float]], method: str, *, difference: bool = False
) -> str:
    """Formats a table with two columns for each value, and the configs of each row.

    Args:
        table: Table.
        results: Metrics of each evaluation, see :func:`read_metrics`.
        method: Folder of the configs.
        difference: Adds a third column for each value: ours minus the paper's.
    """
    first, *names = table.columns
    titles = ("paper", "ours", "difference") if difference else ("paper", "ours")
    columns = [first, *(f"{name} {title}".strip() for name in names for title in titles)]
    rows = []
    for label, cells in table.rows:
        cols: list[str] = [label]
        for column, (paper, run) in enumerate(cells):
            found = results.get(run.folder, {})
            ours = [found.get(metric) for metric in table.metrics_of(column, paper)]
            known = [value for value in ours if value is not None]
            cols += [paper, " / ".join(f"{value:.1f}" for value in known)]
            if difference:
                cols.append(_difference(paper, known))
        configs = dict.fromkeys(run.training.config for _, run in cells)
        rows.append([*cols, ", ".join(f"`{name}`" for name in configs)])
    lines = table_lines([*columns, f"configs/{method}/"], rows)
    return f"**{table.name}**, {table.title}\n\n{lines}"


def _difference(paper: str, ours: list[float]) -> str:
    try:
        theirs = [float(value) for value in paper.split(" / ")]
    except ValueError:  # "–": not stated
        return ""
    if len(theirs) != len(ours):
        return ""
    return " / ".join(f"{a - b:+.1f}" for a, b in zip(ours, theirs, strict=True))
