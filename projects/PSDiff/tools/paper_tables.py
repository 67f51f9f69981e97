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
from pathlib import Path
from typing import Any

from table_definitions import COST_CONFIGS, FIGURES, PAPER_COST, TABLES

from person_search import reproduction
from person_search.cli import program_parser, run_program
from person_search.reproduction import Step, Training, markdown, read_metrics, table_lines

ROOT = Path(__file__).resolve().parents[3]
RECORD = ROOT / "projects" / "PSDiff" / "paper_results.json"
DOCUMENT = ROOT / "docs" / "results_psdiff.md"
BLOCK = re.compile(
    r"(<!-- projects/PSDiff/tools/paper_tables.py: (?:Table )?(.+?) -->\n).*?(<!-- end -->)",
    re.DOTALL,
)
ALL_TABLES = (*TABLES, *FIGURES)
NUMBERS = tuple(sorted({"II", *(table.number for table in ALL_TABLES)}))


class Commands(reproduction.Commands):
    """Commands of the tables: each training has a teacher."""

    method = "PSDiff"

    def before(self, training: Training) -> list[Step]:
        """Returns the steps that train and apply the teacher of a training."""
        from psdiff.teachers.folder import WEIGHTS_FILE, teacher_commands, teacher_folder

        cfg = self.config(training)
        options = self.options(training.config, min(self.num_gpus, 1))
        done = [Path(teacher_folder(cfg), WEIGHTS_FILE), Path(cfg.MODEL.PSDIFF.TEACHER.EMBEDDINGS)]
        commands = teacher_commands(cfg, options)
        kinds = ["teacher", "embeddings"]
        return [
            Step(command, path, kind, training.config)
            for command, path, kind in zip(
                commands, done[-len(commands) :], kinds[-len(commands) :], strict=True
            )
        ]

    def of_cost(self, backbone: str) -> Step:
        """Returns the step that computes the cost of a model for Table II."""
        path = self.output / f"cost_{backbone}.json"
        config = COST_CONFIGS[backbone]
        words = ["tools/analyze_model.py", "--config-file", f"configs/PSDiff/{config}.yaml"]
        words += ["--json", str(path), *self.overrides]
        return Step(f"python {shlex.join(words)}", path, "cost", config)

    def of_tables(self, numbers: list[str]) -> list[Step]:
        """Returns all steps of some tables in a valid order."""
        costs = [self.of_cost(backbone) for backbone in COST_CONFIGS if "II" in numbers]
        return [*self.of_evaluations(evaluations(numbers)), *costs]


def evaluations(numbers: list[str]) -> list[reproduction.Evaluation]:
    """Returns the evaluations of all cells of some tables; cells may share an evaluation."""
    return [run for table in ALL_TABLES if table.number in numbers for run in table.evaluations]


# ---- results -------------------------------------------------------------------------------------


def read_results(output: Path) -> dict[str, Any]:
    """Reads the results stored in the repository, updated with those of an output folder.

    Returns:
        ``search``: "<training>/<evaluation>" -> ``mAP``, ``top1``, ``AP50`` and, by gallery size,
        ``mAP_g<size>``, in percent, as far as evaluated. ``cost``: backbone
        -> ``parameters`` (number) and ``gflops`` by steps. ``speed``: by steps, relative to one.
    """
    results = json.loads(RECORD.read_text())
    results["search"] |= read_metrics(output, evaluations(list(NUMBERS)))
    for backbone in COST_CONFIGS:
        path = output / f"cost_{backbone}.json"
        if path.is_file():
            cost = json.loads(path.read_text())
            total = {steps: round(value, 1) for steps, value in cost["total"].items()}
            count = sum(cost["parameters"].values())
            results["cost"][backbone] = {"parameters": count, "gflops": total}
    return results


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


def all_tables(results: dict[str, Any], *, difference: bool = False) -> dict[str, str]:
    """Returns all tables in Markdown by number, in the order of the paper."""
    made = {
        table.number: markdown(table, results["search"], "PSDiff", difference=difference)
        for table in ALL_TABLES
    }
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
