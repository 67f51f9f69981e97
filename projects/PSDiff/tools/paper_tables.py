#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Prints the tables of the PSDiff paper beside our results, and the commands that produce these.

    python projects/PSDiff/tools/paper_tables.py --commands   # shell script of all missing runs
    python projects/PSDiff/tools/paper_tables.py              # the tables, from existing results
    python projects/PSDiff/tools/paper_tables.py --update     # also stores the results

Each teacher is trained once per data set, each model once for all its results. Each evaluation has
its own folder, <output>/<training>/<steps, sampler, test set>. Finished runs are omitted, and an
interrupted training is resumed. Config overrides at the end apply to all commands, for example
MODEL.DEVICE cpu. Source of the paper's values: arXiv 2309.11125, tables of the same numbers.

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
from typing import Any, NamedTuple

from person_search import reproduction
from person_search.cli import program_parser, run_program
from person_search.reproduction import (
    Step,
    Table,
    Training,
    evaluations_of,
    markdown,
    read_metrics,
    row,
    table_lines,
)

ROOT = Path(__file__).resolve().parents[3]
RECORD = ROOT / "projects" / "PSDiff" / "paper_results.json"
DOCUMENT = ROOT / "docs" / "results_psdiff.md"
BLOCK = re.compile(
    r"(<!-- projects/PSDiff/tools/paper_tables.py: (?:Table )?(.+?) -->\n).*?(<!-- end -->)",
    re.DOTALL,
)

# ---- tables --------------------------------------------------------------------------------------


class Evaluation(NamedTuple):
    """A trained model, tested with settings that need no training.

    Attributes:
        training: Training of the model.
        steps: Denoising steps.
        sampler: Sampler.
        test: Test set; empty: that of the config.
    """

    training: Training
    steps: int = 8
    sampler: str = "ddim"
    test: str = ""

    @property
    def folder(self) -> str:
        """Output folder, ``<training>/<steps, sampler, test set>``."""
        parts = filter(None, (f"steps{self.steps}", self.sampler, self.test))
        return f"{self.training.name}/{'_'.join(parts)}"

    @property
    def overrides(self) -> list[str]:
        """KEY VALUE pairs of ``train_net.py --eval-only``."""
        test = ["DATASETS.TEST", f"('{self.test}',)"] if self.test else []
        steps = ["MODEL.PSDIFF.STEPS", str(self.steps), "MODEL.PSDIFF.SAMPLER", self.sampler]
        sizes = ["TEST.PERSON_SEARCH.PROTOCOLS", str(["g100", *GALLERIES])]
        return [*self.training.overrides, *steps, *test, *(sizes if self == FIGURE_4 else [])]


CUHK_SYSU = Training("paper/psdiff_r50_fpn_cuhk_sysu")
PRW = Training("paper/psdiff_r50_fpn_prw")
SWIN = (Training("paper/psdiff_swinb_fpn_cuhk_sysu"), Training("paper/psdiff_swinb_fpn_prw"))


def ablation(name: str, steps: int = 8) -> Evaluation:
    """Returns the evaluation of a config in configs/PSDiff/ablations."""
    return Evaluation(Training(f"ablations/{name}"), steps)


def scales(s1: int) -> list[Evaluation]:
    """Returns a row of Table IV a: signal scale s1 of boxes, 1 to 4 of embeddings."""
    found = []
    for s2 in (1, 2, 3, 4):
        keys = ("MODEL.PSDIFF.SNR_BOX", f"{s1}.0", "MODEL.PSDIFF.SNR_REID", f"{s2}.0")
        grid = Training(CUHK_SYSU.config, keys, f"table4a_s1_{s1}_s2_{s2}")
        found.append(Evaluation(CUHK_SYSU if (s1, s2) == (2, 3) else grid))
    return found


def samplers(name: str) -> list[Evaluation]:
    """Returns a row of Table V: a sampler with 1, 2, 4 and 8 steps."""
    return [Evaluation(CUHK_SYSU, steps, name) for steps in (1, 2, 4, 8)]


def teachers(name: str) -> list[Evaluation]:
    """Returns a row of Table VI: a teacher with imitation and with diffusion."""
    hhcl = name == "hhcl"
    diffusion = Evaluation(CUHK_SYSU) if hhcl else ablation(f"table6_{name}_diffusion")
    return [ablation(f"table6_{name}_imitation"), diffusion]


TABLES = (
    Table(
        "I",
        "steps on CUHK-SYSU (gallery 100) and PRW; mAP / top-1",
        ("backbone, steps", "CUHK-SYSU", "PRW"),
        [
            row("R50, 1", "90.8 / 92.1, 49.9 / 80.4", Evaluation(CUHK_SYSU, 1), Evaluation(PRW, 1)),
            row("R50, 2", "92.5 / 93.8, 51.1 / 83.2", Evaluation(CUHK_SYSU, 2), Evaluation(PRW, 2)),
            row("R50, 4", "94.7 / 95.1, 52.7 / 86.3", Evaluation(CUHK_SYSU, 4), Evaluation(PRW, 4)),
            row("R50, 8", "95.1 / 95.3, 53.5 / 87.1", Evaluation(CUHK_SYSU), Evaluation(PRW)),
            row("Swin-B, 8", "95.7 / 96.3, 57.1 / 88.1", *map(Evaluation, SWIN)),
        ],
    ),
    Table(
        "III",
        "trained on one set, tested on the other, 8 steps; mAP / top-1",
        ("", ""),
        [
            row("CUHK-SYSU → PRW", "35.5 / 82.1", Evaluation(CUHK_SYSU, test="prw_test")),
            row("PRW → CUHK-SYSU", "58.2 / 63.7", Evaluation(PRW, test="cuhk_sysu_test")),
        ],
    ),
    Table(
        "IV a",
        "signal scales of boxes (s1, `SNR_BOX`) and embeddings (s2, `SNR_REID`); mAP",
        ("", "s2 = 1,", "s2 = 2,", "s2 = 3,", "s2 = 4,"),
        [
            row("s1 = 1", "93.9, 94.0, 94.3, 93.3", *scales(1)),
            row("s1 = 2", "94.2, 94.6, 95.1, 94.4", *scales(2)),
            row("s1 = 3", "94.1, 94.2, 94.5, 94.1", *scales(3)),
            row("s1 = 4", "93.8, 94.0, 94.1, 93.8", *scales(4)),
        ],
    ),
    Table(
        "IV b",
        "interaction of the two features; mAP / top-1",
        ("", ""),
        [
            row("none", "91.3 / 91.8", ablation("table4b_none")),
            row("SA", "92.5 / 93.3", ablation("table4b_sa")),
            row("SA + DC", "93.8 / 94.3", ablation("table4b_sa_dc")),
            row("SA + CA", "94.3 / 94.7", ablation("table4b_sa_ca")),
            row("SA + DC + CA", "95.1 / 95.3", Evaluation(CUHK_SYSU)),
        ],
    ),
    Table(
        "IV c",
        "prediction; mAP / top-1",
        ("", ""),
        [
            row("parallel, 1 step", "90.5 / 91.7", ablation("table4c_parallel", 1)),
            row("parallel, 8 steps", "93.5 / 94.1", ablation("table4c_parallel")),
            row("cascaded, 1 step", "90.8 / 92.1", Evaluation(CUHK_SYSU, 1)),
            row("cascaded, 8 steps", "95.1 / 95.3", Evaluation(CUHK_SYSU)),
        ],
    ),
    Table(
        "V",
        "samplers; mAP",
        ("", "1 step,", "2 steps,", "4 steps,", "8 steps,"),
        [
            row("DDIM", "90.8, 92.5, 94.7, 95.1", *samplers("ddim")),
            row("DPM-Solver", "90.8, 92.8, 94.9, 95.1", *samplers("dpmsolver")),
            row("DPM-Solver++", "90.8, 92.5, 94.8, 95.0", *samplers("dpmsolver++")),
        ],
    ),
    Table(
        "VI",
        "teachers, imitated or with diffusion; mAP / top-1",
        ("teacher", "imitation,", "diffusion,"),
        [
            row("S-ReID", "92.1 / 93.0, 93.5 / 94.1", *teachers("s_reid")),
            row("MGN", "92.7 / 92.3, 93.9 / 93.6", *teachers("mgn")),
            row("AGW", "91.9 / 92.5, 93.1 / 93.7", *teachers("agw")),
            row("PPLR", "93.2 / 93.0, 94.3 / 93.9", *teachers("pplr")),
            row("HHCL", "94.0 / 93.9, 95.1 / 95.3", *teachers("hhcl")),
        ],
    ),
)

# Galleries of Figure 4 besides g100, the standard protocol.
GALLERIES = ("g50", "g500", "g1000", "g2000", "g4000")
FIGURE_4 = Evaluation(CUHK_SYSU)

# The paper states few values of its figures: "–".
FIGURES = (
    Table(
        "Fig. 4",
        "gallery sizes on CUHK-SYSU, 8 steps; mAP",
        ("", "50,", "100,", "500,", "1000,", "2000,", "4000,"),
        [row("PSDiff", "–, 95.1, –, –, –, –", *[FIGURE_4] * 6)],
        ("mAP_g50", "mAP", "mAP_g500", "mAP_g1000", "mAP_g2000", "mAP_g4000"),
    ),
    Table(
        "Fig. 5",
        "steps on CUHK-SYSU",
        ("steps", "AP50,", "mAP,"),
        [
            row(str(steps), papers, *[Evaluation(CUHK_SYSU, steps)] * 2)
            for steps, papers in enumerate(
                ("72.8, 90.8", "–, 92.5", "–, –", "–, 94.7", "–, –", "–, –", "–, –", "85.7, 95.1"),
                start=1,
            )
        ],
        ("AP50", "mAP"),
    ),
)

COST_CONFIGS = {"r50": CUHK_SYSU.config, "swinb": SWIN[0].config}
"""Configs of Table II; their costs are written by ``tools/analyze_model.py --json``."""

PAPER_COST = {1: (31, 301, 31), 2: (31, 309, 27), 4: (31, 333, 21), 8: (31, 390, 14)}
"""Table II, by steps: million parameters, GFLOPs, images per second (V100)."""

ALL_TABLES = (*TABLES, *FIGURES)
NUMBERS = tuple(sorted({"II", *(table.number for table in ALL_TABLES)}))


# ---- commands ------------------------------------------------------------------------------------


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

    def of_tables(self, numbers: Sequence[str]) -> list[Step]:
        """Returns all steps of some tables in a valid order."""
        costs = [self.of_cost(backbone) for backbone in COST_CONFIGS if "II" in numbers]
        return [*self.of_evaluations(evaluations_of(ALL_TABLES, numbers)), *costs]


# ---- results -------------------------------------------------------------------------------------


def read_results(output: Path) -> dict[str, Any]:
    """Reads the results stored in the repository, updated with those of an output folder.

    Returns:
        ``search``: "<training>/<evaluation>" -> ``mAP``, ``top1``, ``AP50`` and, by gallery size,
        ``mAP_g<size>``, in percent, as far as evaluated. ``cost``: backbone
        -> ``parameters`` (number) and ``gflops`` by steps. ``speed``: by steps, relative to one.
    """
    results = json.loads(RECORD.read_text())
    results["search"] |= read_metrics(output, evaluations_of(ALL_TABLES, NUMBERS))
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
        Commands(args.output, args.num_gpus, args.opts).print_missing(args.tables)
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
        "--tables", nargs="+", choices=NUMBERS, default=list(NUMBERS), metavar="NUMBER",
        help=f"tables to print: {', '.join(NUMBERS)} (default: all)",
    )  # fmt: skip
    parser.add_argument(
        "--update", action="store_true", help="store the results and update the document"
    )
    reproduction.add_options(parser, "output/paper", num_gpus=4)
    return run_program(work, parser.parse_args(argv), log=False)


if __name__ == "__main__":
    sys.exit(main())
