#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Prints the tables of the PSDiff paper beside our results, and the commands that produce these.

    python projects/PSDiff/tools/paper_tables.py --commands   # shell script of all missing runs
    python projects/PSDiff/tools/paper_tables.py              # the tables, from existing results
    python projects/PSDiff/tools/paper_tables.py --update     # also stores the results

Each teacher is trained once per data set, each model once for all its results. Each evaluation has
its own folder, <output>/<training>/<steps, sampler, test set>. Finished runs are omitted, and an
interrupted training is resumed. Config overrides at the end apply to all commands, for example
MODEL.DEVICE cpu. The rows are defined in table_definitions.py.

--update stores results found in <output> in projects/PSDiff/paper_results.json, which all later
tables include, and writes the tables to docs/results_psdiff.md.
"""

import argparse
import json
import re
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from table_definitions import (
    COST_CONFIGS,
    FIGURES,
    GALLERIES,
    PAPER_COST,
    TABLES,
    Evaluation,
    Table,
    Training,
)

from person_search.cli import program_parser, run_program

if TYPE_CHECKING:
    from detectron2.config import CfgNode

ROOT = Path(__file__).resolve().parents[3]
RECORD = ROOT / "projects" / "PSDiff" / "paper_results.json"
DOCUMENT = ROOT / "docs" / "results_psdiff.md"
BLOCK = re.compile(
    r"(<!-- projects/PSDiff/tools/paper_tables.py: (?:Table )?(.+?) -->\n).*?(<!-- end -->)",
    re.DOTALL,
)
NUMBERS = tuple(sorted({"II", *(table.number for table in (*TABLES, *FIGURES))}))


class Step(NamedTuple):
    """A shell command and the file that exists when it is finished."""

    command: str
    done: Path


@dataclass
class Commands:
    """Commands of the tables.

    Attributes:
        output: Output folder of trainings and evaluations.
        num_gpus: Number of GPUs of trainings and evaluations.
        overrides: KEY VALUE pairs of all commands.
    """

    output: Path
    num_gpus: int
    overrides: list[str] = field(default_factory=list)

    def config(self, training: Training) -> "CfgNode":
        """Returns the config of a training."""
        from person_search.config import default_config, merge_into

        cfg = default_config()
        path = ROOT / "configs" / "PSDiff" / f"{training.config}.yaml"
        merge_into(cfg, path, [*self.overrides, *training.overrides])
        return cfg

    def _options(self, config: str, num_gpus: int) -> list[str]:
        path = f"configs/PSDiff/{config}.yaml"
        return ["--config-file", path, "--num-gpus", str(num_gpus), *self.overrides]

    def of_teacher(self, training: Training) -> list[Step]:
        """Returns the steps that train and apply the teacher of a training."""
        from psdiff.teachers.folder import WEIGHTS_FILE, teacher_commands, teacher_folder

        cfg = self.config(training)
        options = self._options(training.config, min(self.num_gpus, 1))
        done = [Path(teacher_folder(cfg), WEIGHTS_FILE), Path(cfg.MODEL.PSDIFF.TEACHER.EMBEDDINGS)]
        commands = teacher_commands(cfg, options)
        return [Step(*pair) for pair in zip(commands, done[-len(commands) :], strict=True)]

    def of_training(self, training: Training) -> Step:
        """Returns the step of a training."""
        out = self.output / training.name
        words = ["train_net.py", "--resume", *self._options(training.config, self.num_gpus)]
        words += [*training.overrides, "OUTPUT_DIR", str(out)]
        return Step(f"python {shlex.join(words)}", out / "model_final.pth")

    def of_evaluation(self, evaluation: Evaluation) -> Step:
        """Returns the step of an evaluation."""
        out = self.output / evaluation.folder
        options = self._options(evaluation.training.config, self.num_gpus)
        weights = str(self.of_training(evaluation.training).done)
        words = ["train_net.py", "--eval-only", *options, "MODEL.WEIGHTS", weights]
        words += [*evaluation.overrides, "OUTPUT_DIR", str(out)]
        return Step(f"python {shlex.join(words)}", out / "results.json")

    def of_cost(self, backbone: str) -> Step:
        """Returns the step that computes the cost of a model for Table II."""
        path = self.output / f"cost_{backbone}.json"
        config = f"configs/PSDiff/{COST_CONFIGS[backbone]}.yaml"
        words = ["tools/analyze_model.py", "--config-file", config, "--json", str(path)]
        return Step(f"python {shlex.join([*words, *self.overrides])}", path)

    def of_tables(self, numbers: list[str]) -> list[Step]:
        """Returns all steps of some tables in a valid order."""
        runs = list(dict.fromkeys(evaluations(numbers)))
        trainings = list(dict.fromkeys(run.training for run in runs))
        steps = [step for training in trainings for step in self.of_teacher(training)]
        steps += [self.of_training(training) for training in trainings]
        steps += [self.of_evaluation(run) for run in runs]
        steps += [self.of_cost(backbone) for backbone in COST_CONFIGS if "II" in numbers]
        return list({step.done: step for step in reversed(steps)}.values())[::-1]


def evaluations(numbers: list[str]) -> list[Evaluation]:
    """Returns the evaluations of all cells of some tables; cells may share an evaluation."""
    tables = [table for table in (*TABLES, *FIGURES) if table.number in numbers]
    return [cell.ours for table in tables for _, cells in table.rows for cell in cells]


# ---- results -------------------------------------------------------------------------------------


def read_results(output: Path) -> dict[str, Any]:
    """Reads the results stored in the repository, updated with those of an output folder.

    Returns:
        ``search``: "<training>/<evaluation>" -> ``mAP``, ``top1``, ``AP50`` and, by gallery size,
        ``mAP_g<size>``, in percent, as far as evaluated. ``cost``: backbone
        -> ``parameters`` (number) and ``gflops`` by steps. ``speed``: by steps, relative to one.
    """
    results = json.loads(RECORD.read_text())
    for run in evaluations(list(NUMBERS)):
        path = output / run.folder / "results.json"
        if path.is_file():
            found = json.loads(path.read_text())
            values = {m: found["search"][m] for m in ("mAP", "top1")}
            values["AP50"] = found.get("detection", {}).get("AP50")
            for name in GALLERIES:  # the first one is in section "search"
                values[f"mAP_{name}"] = found.get(f"search_{name}", {}).get("mAP")
            results["search"][run.folder] = {
                name: round(value, 1) for name, value in values.items() if value is not None
            }
    for backbone in COST_CONFIGS:
        path = output / f"cost_{backbone}.json"
        if path.is_file():
            cost = json.loads(path.read_text())
            total = {steps: round(value, 1) for steps, value in cost["total"].items()}
            count = sum(cost["parameters"].values())
            results["cost"][backbone] = {"parameters": count, "gflops": total}
    return results


def table_lines(header: Sequence[object], rows: Sequence[Sequence[object]]) -> str:
    """Formats a Markdown table."""
    lines = ["| " + " | ".join(map(str, row)) + " |\n" for row in (header, *rows)]
    return lines[0] + "|---" * len(header) + "|\n" + "".join(lines[1:])


def markdown(table: Table, results: dict[str, Any]) -> str:
    """Formats a table with a pair of columns for each value, and the configs of each row."""
    first, *pairs = table.columns
    columns = [first, *(f"{name} {who}".strip() for name in pairs for who in ("paper", "ours"))]
    rows = []
    for label, cells in table.rows:
        row = [label]
        for column, (paper, run) in enumerate(cells):
            ours = results["search"].get(run.folder, {})
            metrics = table.metrics[column : column + 1]
            metrics = metrics or (("mAP", "top1") if "/" in paper else ("mAP",))
            row += [paper, " / ".join(f"{ours[m]:.1f}" for m in metrics if m in ours)]
        configs = dict.fromkeys(run.training.config for _, run in cells)
        rows.append([*row, ", ".join(f"`{name}`" for name in configs)])
    name = table.number if table in FIGURES else f"Table {table.number}"
    title = f"**{name}**, {table.title}\n\n"
    return title + table_lines([*columns, "configs/PSDiff/"], rows)


def cost_markdown(results: dict[str, Any]) -> str:
    """Formats Table II."""
    r50, swinb = (results["cost"].get(backbone) for backbone in COST_CONFIGS)
    rows = []
    for steps, (millions, gflops, speed) in PAPER_COST.items():
        parameters = f"{r50['parameters'] / 1e6:.2f} M" if r50 else ""
        counted = [cost["gflops"][str(steps)] if cost else "" for cost in (r50, swinb)]
        ours = results["speed"].get(str(steps))
        relative = [f"{speed / PAPER_COST[1][2]:.2f}", "" if ours is None else f"{ours:.2f}"]
        rows.append([steps, f"{millions} M", parameters, gflops, *counted, *relative])
    header = (
        "steps | parameters, paper | ours | GFLOPs, paper | ours | Swin-B, ours | "
        "speed, paper (V100) | ours (one CPU thread)"
    ).split(" | ")
    return "**Table II**, cost of the models of Table I\n\n" + table_lines(header, rows)


def all_tables(results: dict[str, Any]) -> dict[str, str]:
    """Returns all tables in Markdown by number, in the order of the paper."""
    made = {table.number: markdown(table, results) for table in (*TABLES, *FIGURES)}
    return {"I": made.pop("I"), "II": cost_markdown(results), **made}


def with_tables(text: str, tables: dict[str, str]) -> str:
    """Returns a document with updated tables."""
    return BLOCK.sub(lambda match: match[1] + tables[match[2]] + match[3], text)


# ---- program -------------------------------------------------------------------------------------


def work(args: argparse.Namespace) -> None:
    """Prints commands or tables."""
    if args.commands:
        steps = Commands(args.output, args.num_gpus, args.opts).of_tables(args.tables)
        todo = [step.command for step in steps if not step.done.is_file()]
        print("\n".join([f"# {len(steps) - len(todo)} of {len(steps)} are finished", *todo]))
        return
    results = read_results(args.output)
    tables = all_tables(results)
    text = "\n".join(tables[number] for number in tables if number in args.tables)
    print(text)
    if args.output.is_dir():
        (args.output / "tables.md").write_text(text, encoding="utf-8")
    if args.update:
        RECORD.write_text(json.dumps(results, indent=2, sort_keys=True) + "\n")
        document = with_tables(DOCUMENT.read_text(encoding="utf-8"), tables)
        DOCUMENT.write_text(document, encoding="utf-8")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the program."""
    parser = program_parser(__doc__)
    parser.add_argument(
        "--output", type=Path, default=Path("output/paper"), metavar="DIR",
        help="folder of all trainings and evaluations (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--tables", nargs="+", choices=NUMBERS, default=list(NUMBERS), metavar="NUMBER",
        help=f"tables to print: {', '.join(NUMBERS)} (default: all)",
    )  # fmt: skip
    parser.add_argument(
        "--commands", action="store_true", help="print the commands of missing runs, not tables"
    )
    parser.add_argument(
        "--num-gpus", type=int, default=4, metavar="N",
        help="number of GPUs in the commands (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--update", action="store_true", help="store the results and update the document"
    )
    parser.add_argument(
        "opts", nargs=argparse.REMAINDER, metavar="KEY VALUE",
        help="config overrides for all commands, after all options",
    )  # fmt: skip
    return run_program(work, parser.parse_args(argv), log=False)


if __name__ == "__main__":
    sys.exit(main())
