#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Prints the results of the DiffPS paper beside ours, and the commands that produce these.

    python projects/DiffPS/tools/diffps_tables.py --commands   # shell script of all missing runs
    python projects/DiffPS/tools/diffps_tables.py              # the tables, from existing results

Table 1 is the paper's; its values are known from the project page. The values of its ablations are
not known to us: tables A and B have our own rows for the same questions. The first training on a
data set fills a cache that the others read, with the overrides MODEL.DIFFPS.BACKBONE.CACHE.KIND
latent and CACHE.DIR. tools/reproduce.py runs all.
"""

import argparse
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
)


class Evaluation(NamedTuple):
    """A trained model, tested with settings that need no training.

    Attributes:
        training: Training of the model.
        settings: KEY VALUE pairs of the test.
        label: Name of the settings, for the folder.
    """

    training: Training
    settings: tuple[str, ...] = ()
    label: str = "test"

    @property
    def folder(self) -> str:
        """Output folder, ``<training>/<label>``."""
        return f"{self.training.name}/{self.label}"

    @property
    def overrides(self) -> list[str]:
        """KEY VALUE pairs of ``train_net.py --eval-only``."""
        return [*self.training.overrides, *self.settings]


PAPER = {"cuhk_sysu": "97.8 / 98.4", "prw": "62.0 / 91.0"}
RECOMMENDED = {name: Training(f"diffps_sd21_{name}") for name in PAPER}


def both(folder: str) -> list[Evaluation]:
    """Returns the evaluations of a variant on both data sets."""
    return [
        Evaluation(
            Training(f"{folder}diffps_sd21_{name}", variant=f"diffps_{folder.strip('/')}_{name}")
        )
        for name in PAPER
    ]


def without(part: str, *overrides: str) -> Evaluation:
    """Returns the evaluation of the recommended config on PRW with another training."""
    return Evaluation(Training(RECOMMENDED["prw"].config, overrides, f"ablation_{part}_prw"))


def timestep(t: int) -> Evaluation:
    """Returns the evaluation of activations at another timestep, as in Fig. 4."""
    keys = ("MODEL.DIFFPS.BACKBONE.TIMESTEP", str(t), "MODEL.DIFFPS.BACKBONE.NOISE", "seeded")
    return without(f"t{t}", *keys) if t else Evaluation(RECOMMENDED["prw"])


PAPERS = ", ".join(PAPER.values())
TABLES = (
    Table(
        "1",
        "CUHK-SYSU (gallery 100) and PRW; mAP / top-1",
        ("", "CUHK-SYSU", "PRW"),
        [
            row("recommended", PAPERS, *map(Evaluation, RECOMMENDED.values())),
            row("as in the released code", PAPERS, *both("release/")),
            row("as in the figures", PAPERS, *both("paper/")),
        ],
    ),
    Table(
        "A",
        "parts, PRW; mAP / top-1 and detection AP50",
        ("", "mAP,", "top-1,", "AP50,"),
        [
            row(label, "–, –, –", *[run] * 3)
            for label, run in (
                ("DiffPS", Evaluation(RECOMMENDED["prw"])),
                ("without DGRPN", without("dgrpn", "MODEL.DIFFPS.DGRPN.ENABLED", "False")),
                ("without MSFRN", without("msfrn", "MODEL.DIFFPS.MSFRN.ENABLED", "False")),
                ("without SFAN", without("sfan", "MODEL.DIFFPS.SFAN.ENABLED", "False")),
            )
        ],
        ("mAP", "top1", "AP50"),
    ),
    Table(
        "B",
        "timestep of the activations (Fig. 4), PRW",
        ("timestep", "AP50,", "mAP,"),
        [row(str(t), "–, –", *[timestep(t)] * 2) for t in (0, 100, 300, 500)],
        ("AP50", "mAP"),
    ),
)
NUMBERS = tuple(table.number for table in TABLES)


class Commands(reproduction.Commands):
    """Commands of the tables."""

    method = "DiffPS"

    def of_tables(self, numbers: Sequence[str]) -> list[Step]:
        """Returns all steps of some tables in a valid order."""
        return self.of_evaluations(evaluations_of(TABLES, numbers))


def read_results(output: Path) -> dict[str, Any]:
    """Returns ``search``: metrics of each finished evaluation in an output folder."""
    return {"search": read_metrics(output, evaluations_of(TABLES, NUMBERS))}


def all_tables(results: dict[str, Any], *, difference: bool = False) -> dict[str, str]:
    """Returns all tables in Markdown by number."""
    found = results["search"]
    return {t.number: markdown(t, found, "DiffPS", difference=difference) for t in TABLES}


def work(args: argparse.Namespace) -> None:
    """Prints commands or tables."""
    if args.commands:
        Commands(args.output, args.num_gpus, args.opts).print_missing(NUMBERS)
    else:
        print("\n".join(all_tables(read_results(args.output)).values()))


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the program."""
    parser = program_parser(__doc__)
    reproduction.add_options(parser, "output/paper_diffps", num_gpus=3)
    return run_program(work, parser.parse_args(argv), log=False)


if __name__ == "__main__":
    sys.exit(main())
