#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Sets the tables of the PSDiff paper beside our own figures, and names the commands for these.

    python projects/PSDiff/tools/paper_tables.py --commands     what is not done yet, in order: a shell script
    python projects/PSDiff/tools/paper_tables.py                the tables, from the results that exist
    python projects/PSDiff/tools/paper_tables.py --update       also keep the figures, and the README's tables

A teacher is trained once for each data set, a model once for all figures that it gives; every
evaluation has a folder of its own, <output>/<training>/<steps, sampler, test set>. Commands whose
result exists are left out, an interrupted training goes on. Config overrides at the end apply to
all commands, e.g. MODEL.DEVICE cpu. The rows stand in psdiff_tables.py.

``--update`` writes figures found in <output> to projects/PSDiff/paper_results.json, which all later
tables are made of too, and the tables to projects/PSDiff/README.md.
"""

import argparse
import json
import re
import shlex
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from table_definitions import COST_CONFIGS, PAPER_COST, TABLES, Evaluation, Table

from person_search.cli import run_program

if TYPE_CHECKING:
    from detectron2.config import CfgNode

ROOT = Path(__file__).resolve().parents[3]
RECORD = ROOT / "projects" / "PSDiff" / "paper_results.json"
README = ROOT / "projects" / "PSDiff" / "README.md"
BLOCK = re.compile(
    r"(<!-- projects/PSDiff/tools/paper_tables.py: Table (.+?) -->\n).*?(<!-- end -->)", re.DOTALL
)
NUMBERS = tuple(sorted({"II", *(table.number for table in TABLES)}))


@dataclass(frozen=True)
class Step:
    """A command, and the file that tells that it is done."""

    command: str
    done: Path


@dataclass
class Commands:
    """All commands of some tables, in an order in which they can be run.

    Args:
        output: folder of all runs but the teachers'. num_gpus: of the trainings and evaluations.
        overrides: KEY VALUE pairs of all commands.
    """

    output: Path
    num_gpus: int
    overrides: list[str] = field(default_factory=list)

    def options(self, training: str, num_gpus: int) -> list[str]:
        """Of every program: config, devices, overrides."""
        config = f"configs/PSDiff/{training}.yaml"
        return ["--config-file", config, "--num-gpus", str(num_gpus), *self.overrides]

    def config(self, training: str) -> "CfgNode":
        from person_search.config import default_config, merge_into

        cfg = default_config()
        merge_into(cfg, ROOT / "configs" / "PSDiff" / f"{training}.yaml", self.overrides)
        return cfg

    def of_teacher(self, training: str) -> list[Step]:
        """Trains and applies the teacher of a training."""
        from psdiff.teachers.advice import WEIGHTS_FILE, teacher_commands, teacher_folder

        cfg = self.config(training)
        options = self.options(training, min(self.num_gpus, 1))
        done = [Path(teacher_folder(cfg), WEIGHTS_FILE), Path(cfg.MODEL.PSDIFF.TEACHER.EMBEDDINGS)]
        commands = teacher_commands(cfg, options)
        return [Step(*pair) for pair in zip(commands, done[-len(commands) :], strict=True)]

    def of_training(self, training: str) -> Step:
        out = self.output / Evaluation(training).run
        words = ["train_net.py", "--resume", *self.options(training, self.num_gpus)]
        words += ["OUTPUT_DIR", str(out)]
        return Step(f"python {shlex.join(words)}", out / "model_final.pth")

    def of_evaluation(self, evaluation: Evaluation) -> Step:
        trained = self.of_training(evaluation.training).done
        out = self.output / evaluation.run / evaluation.name
        options = self.options(evaluation.training, self.num_gpus)
        words = ["train_net.py", "--eval-only", *options, "MODEL.WEIGHTS", str(trained)]
        words += [*evaluation.overrides, "OUTPUT_DIR", str(out)]
        return Step(f"python {shlex.join(words)}", out / "results.json")

    def of_cost(self, backbone: str) -> Step:
        path = self.output / f"cost_{backbone}.json"
        config = f"configs/PSDiff/{COST_CONFIGS[backbone]}.yaml"
        words = ["tools/analyze_model.py", "--config-file", config, "--json", str(path)]
        return Step(f"python {shlex.join([*words, *self.overrides])}", path)

    def of_tables(self, numbers: list[str]) -> list[Step]:
        runs = list(dict.fromkeys(evaluations(numbers)))
        trainings = list(dict.fromkeys(run.training for run in runs))
        steps = [step for training in trainings for step in self.of_teacher(training)]
        steps += [self.of_training(training) for training in trainings]
        steps += [self.of_evaluation(run) for run in runs]
        steps += [self.of_cost(backbone) for backbone in COST_CONFIGS if "II" in numbers]
        first: dict[Path, Step] = {}
        for step in steps:
            first.setdefault(step.done, step)
        return list(first.values())


def evaluations(numbers: list[str]) -> list[Evaluation]:
    """Of all cells of some tables, some of them several times."""
    tables = [table for table in TABLES if table.number in numbers]
    return [cell.ours for table in tables for _, cells in table.rows for cell in cells]


# ---- figures -------------------------------------------------------------------------------------


def read_figures(output: Path) -> dict[str, Any]:
    """What is kept in the repository, and over it what lies in an output folder.

    Returns:
        ``search``: "<training>/<evaluation>" -> ``mAP``, ``top1``, in percent. ``cost``: backbone
        -> ``parameters`` (number) and ``gflops`` by steps. ``speed``: by steps, relative to one.
    """
    figures = json.loads(RECORD.read_text())
    for run in evaluations(list(NUMBERS)):
        path = output / run.run / run.name / "results.json"
        if path.is_file():
            found = json.loads(path.read_text())["search"]
            kept = {metric: round(found[metric], 1) for metric in ("mAP", "top1")}
            figures["search"][f"{run.run}/{run.name}"] = kept
    for backbone in COST_CONFIGS:
        path = output / f"cost_{backbone}.json"
        if path.is_file():
            cost = json.loads(path.read_text())
            total = {steps: round(value, 1) for steps, value in cost["total"].items()}
            count = sum(cost["parameters"].values())
            figures["cost"][backbone] = {"parameters": count, "gflops": total}
    return figures


def as_in_paper(figures: dict[str, float] | None, paper: str) -> str:
    """Our figures in the form of the paper's: mAP, or mAP / top-1; empty where there are none."""
    if figures is None:
        return ""
    mean_ap = f"{figures['mAP']:.1f}"
    return f"{mean_ap} / {figures['top1']:.1f}" if "/" in paper else mean_ap


def markdown(table: Table, figures: dict[str, Any]) -> str:
    """One table, with a pair of columns for each figure, and the configs that it comes from."""
    first, *pairs = table.columns
    columns = [first, *(f"{name} {who}".strip() for name in pairs for who in ("paper", "ours"))]
    lines = ["| " + " | ".join([*columns, "configs/PSDiff/"]) + " |"]
    lines.append("|---" * (len(columns) + 1) + "|")
    for label, cells in table.rows:
        row = [label]
        for cell in cells:
            ours = figures["search"].get(f"{cell.ours.run}/{cell.ours.name}")
            row += [cell.paper, as_in_paper(ours, cell.paper)]
        configs = dict.fromkeys(cell.ours.training for cell in cells)
        row.append(", ".join(f"`{name}`" for name in configs))
        lines.append("| " + " | ".join(row) + " |")
    return f"**Table {table.number}**, {table.title}\n\n" + "\n".join(lines) + "\n"


def cost_markdown(figures: dict[str, Any]) -> str:
    """Table II."""
    r50, swinb = (figures["cost"].get(backbone) for backbone in COST_CONFIGS)
    lines = [
        "**Table II**, cost of the models of Table I",
        "",
        "| steps | parameters, paper | ours | GFLOPs, paper | ours | Swin-B, ours "
        "| speed, paper (V100) | ours (one CPU thread) |",
        "|---" * 8 + "|",
    ]
    for steps, (millions, gflops, speed) in PAPER_COST.items():
        counted = [cost["gflops"][str(steps)] if cost else "" for cost in (r50, swinb)]
        parameters = f"{r50['parameters'] / 1e6:.2f} M" if r50 else ""
        ours = figures["speed"].get(str(steps))
        row = [steps, f"{millions} M", parameters, gflops, *counted]
        row += [f"{speed / PAPER_COST[1][2]:.2f}", "" if ours is None else f"{ours:.2f}"]
        lines.append("| " + " | ".join(map(str, row)) + " |")
    return "\n".join(lines) + "\n"


def all_tables(figures: dict[str, Any]) -> dict[str, str]:
    """Markdown of every table by its number, in the order of the paper."""
    made = {table.number: markdown(table, figures) for table in TABLES}
    first = {"I": made.pop("I"), "II": cost_markdown(figures)}
    return first | made


def with_tables(text: str, tables: dict[str, str]) -> str:
    """A document with its blocks of tables made anew."""
    return BLOCK.sub(lambda match: match[1] + tables[match[2]] + match[3], text)


# ---- program -------------------------------------------------------------------------------------


def work(args: argparse.Namespace) -> None:
    if args.commands:
        commands = Commands(args.output, args.num_gpus, args.opts)
        steps = commands.of_tables(args.tables)
        todo = [step.command for step in steps if not step.done.is_file()]
        print("\n".join([f"# {len(steps) - len(todo)} of {len(steps)} are done", *todo]))
        return
    figures = read_figures(args.output)
    tables = all_tables(figures)
    text = "\n".join(tables[number] for number in tables if number in args.tables)
    print(text)
    if args.output.is_dir():
        (args.output / "tables.md").write_text(text)
    if args.update:
        RECORD.write_text(json.dumps(figures, indent=2, sort_keys=True) + "\n")
        README.write_text(with_tables(README.read_text(), tables))


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, default=Path("output/paper"), help="of all runs")
    parser.add_argument("--tables", nargs="+", choices=NUMBERS, default=list(NUMBERS))
    parser.add_argument("--commands", action="store_true", help="print commands, not tables")
    parser.add_argument("--num-gpus", type=int, default=4, help="in the commands (default: 4)")
    parser.add_argument("--update", action="store_true", help="keep figures and README's tables")
    parser.add_argument("--traceback", action="store_true", help="show where an error was raised")
    parser.add_argument("opts", nargs="*", help="after --: KEY VALUE pairs for the commands")
    args = parser.parse_args()
    return run_program(work, args, log=False)


if __name__ == "__main__":
    sys.exit(main())
