# SPDX-License-Identifier: Apache-2.0
"""Tables I and III to VI of the PSDiff paper, row by row: the paper's figures, and what makes ours.

Not a program; ``paper_tables.py`` is. Source: arXiv 2309.11125, the tables of the same numbers.
A figure of ours is one evaluation of one training; figures that are the same run share it.
"""

from dataclasses import dataclass

CUHK_SYSU = "paper/psdiff_r50_fpn_cuhk_sysu"
PRW = "paper/psdiff_r50_fpn_prw"


@dataclass(frozen=True)
class Evaluation:
    """A trained model, tested with settings that need no training.

    Args:
        training: config below configs/PSDiff, without ``.yaml``.
        test: data set; "" for that of the config.
    """

    training: str
    steps: int = 8
    sampler: str = "ddim"
    test: str = ""

    @property
    def run(self) -> str:
        """Name of the training, and of its folder."""
        return self.training.rpartition("/")[2]

    @property
    def name(self) -> str:
        """Folder of the evaluation in that of the training."""
        return "_".join(filter(None, (f"steps{self.steps}", self.sampler, self.test)))

    @property
    def overrides(self) -> list[str]:
        """KEY VALUE pairs of ``train_net.py --eval-only``."""
        test = ["DATASETS.TEST", f"('{self.test}',)"] if self.test else []
        psdiff = {"STEPS": str(self.steps), "SAMPLER": self.sampler}
        return [x for k, v in psdiff.items() for x in (f"MODEL.PSDIFF.{k}", v)] + test


@dataclass(frozen=True)
class Cell:
    """The paper's figure, "mAP / top-1" or "mAP" alone, and what makes ours; None: not measured."""

    paper: str
    ours: Evaluation


@dataclass(frozen=True)
class Table:
    """A table; ``columns`` are the names of the first column and of each pair paper, ours."""

    number: str
    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, tuple[Cell, ...]], ...]


def _table_1() -> Table:
    figures = {
        1: ("90.8 / 92.1", "49.9 / 80.4"),
        2: ("92.5 / 93.8", "51.1 / 83.2"),
        4: ("94.7 / 95.1", "52.7 / 86.3"),
        8: ("95.1 / 95.3", "53.5 / 87.1"),
    }
    rows = [
        (f"R50, {k}", (Cell(a, Evaluation(CUHK_SYSU, k)), Cell(b, Evaluation(PRW, k))))
        for k, (a, b) in figures.items()
    ]
    swin = (
        Cell("95.7 / 96.3", Evaluation("paper/psdiff_swinb_fpn_cuhk_sysu")),
        Cell("57.1 / 88.1", Evaluation("paper/psdiff_swinb_fpn_prw")),
    )
    title = "steps on CUHK-SYSU (gallery 100) and PRW; mAP / top-1"
    columns = ("backbone, steps", "CUHK-SYSU", "PRW")
    return Table("I", title, columns, (*rows, ("Swin-B, 8", swin)))


def _table_3() -> Table:
    rows = (
        ("CUHK-SYSU → PRW", (Cell("35.5 / 82.1", Evaluation(CUHK_SYSU, test="prw_test")),)),
        ("PRW → CUHK-SYSU", (Cell("58.2 / 63.7", Evaluation(PRW, test="cuhk_sysu_test")),)),
    )
    title = "trained on one set, tested on the other, 8 steps; mAP / top-1"
    return Table("III", title, ("", ""), rows)


def _table_4a() -> Table:
    figures = {
        1: ("93.9", "94.0", "94.3", "93.3"),
        2: ("94.2", "94.6", "95.1", "94.4"),
        3: ("94.1", "94.2", "94.5", "94.1"),
        4: ("93.8", "94.0", "94.1", "93.8"),
    }

    def training(s1: int, s2: int) -> str:
        return CUHK_SYSU if (s1, s2) == (2, 3) else f"ablations/table4a_s1_{s1}_s2_{s2}"

    rows = tuple(
        (f"s1 = {s1}", tuple(
            Cell(paper, Evaluation(training(s1, s2))) for s2, paper in enumerate(papers, start=1)
        ))
        for s1, papers in figures.items()
    )  # fmt: skip
    columns = ("", *(f"s2 = {s2}," for s2 in range(1, 5)))
    return Table("IV a", "signal scales of boxes (s1) and embeddings (s2); mAP", columns, rows)


def _table_4bc() -> tuple[Table, Table]:
    interaction = (
        ("none", "91.3 / 91.8", "ablations/table4b_none"),
        ("SA", "92.5 / 93.3", "ablations/table4b_sa"),
        ("SA + DC", "93.8 / 94.3", "ablations/table4b_sa_dc"),
        ("SA + CA", "94.3 / 94.7", "ablations/table4b_sa_ca"),
        ("SA + DC + CA", "95.1 / 95.3", CUHK_SYSU),
    )
    prediction = (
        ("parallel, 1 step", "90.5 / 91.7", Evaluation("ablations/table4c_parallel", 1)),
        ("parallel, 8 steps", "93.5 / 94.1", Evaluation("ablations/table4c_parallel", 8)),
        ("cascaded, 1 step", "90.8 / 92.1", Evaluation(CUHK_SYSU, 1)),
        ("cascaded, 8 steps", "95.1 / 95.3", Evaluation(CUHK_SYSU, 8)),
    )
    rows_b = tuple((label, (Cell(p, Evaluation(run)),)) for label, p, run in interaction)
    rows_c = tuple((label, (Cell(p, run),)) for label, p, run in prediction)
    return (
        Table("IV b", "interaction of the two features; mAP / top-1", ("", ""), rows_b),
        Table("IV c", "prediction; mAP / top-1", ("", ""), rows_c),
    )


def _table_5() -> Table:
    figures = {
        "ddim": ("DDIM", ("90.8", "92.5", "94.7", "95.1")),
        "dpmsolver": ("DPM-Solver", ("90.8", "92.8", "94.9", "95.1")),
        "dpmsolver++": ("DPM-Solver++", ("90.8", "92.5", "94.8", "95.0")),
    }
    steps = (1, 2, 4, 8)
    rows = tuple(
        (label, tuple(
            Cell(p, Evaluation(CUHK_SYSU, k, sampler)) for k, p in zip(steps, papers, strict=True)
        ))
        for sampler, (label, papers) in figures.items()
    )  # fmt: skip
    columns = ("", "1 step,", "2 steps,", "4 steps,", "8 steps,")
    return Table("V", "samplers; mAP", columns, rows)


def _table_6() -> Table:
    figures = {
        "s_reid": ("S-ReID", "92.1 / 93.0", "93.5 / 94.1"),
        "mgn": ("MGN", "92.7 / 92.3", "93.9 / 93.6"),
        "agw": ("AGW", "91.9 / 92.5", "93.1 / 93.7"),
        "pplr": ("PPLR", "93.2 / 93.0", "94.3 / 93.9"),
        "hhcl": ("HHCL", "94.0 / 93.9", "95.1 / 95.3"),
    }

    def diffusion(name: str) -> str:
        return CUHK_SYSU if name == "hhcl" else f"ablations/table6_{name}_diffusion"

    rows = tuple(
        (label, (
            Cell(left, Evaluation(f"ablations/table6_{name}_imitation")),
            Cell(right, Evaluation(diffusion(name))),
        ))
        for name, (label, left, right) in figures.items()
    )  # fmt: skip
    title = "teachers, imitated or with diffusion; mAP / top-1"
    return Table("VI", title, ("teacher", "imitation,", "diffusion,"), rows)


TABLES = (_table_1(), _table_3(), _table_4a(), *_table_4bc(), _table_5(), _table_6())

COST_CONFIGS = {"r50": CUHK_SYSU, "swinb": "paper/psdiff_swinb_fpn_cuhk_sysu"}
"""Whose cost Table II has; its files are written by ``tools/analyze_model.py --json``."""

PAPER_COST = {1: (31, 301, 31), 2: (31, 309, 27), 4: (31, 333, 21), 8: (31, 390, 14)}
"""Table II, by steps: million parameters, GFLOPs, images per second (V100)."""
