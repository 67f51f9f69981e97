# SPDX-License-Identifier: Apache-2.0
"""Tables I to VI and Figures 4 and 5 of the PSDiff paper: values, and runs that reproduce them.

Not a program; ``paper_tables.py`` is. Source: arXiv 2309.11125, tables of the same numbers. Each of
our values comes from one evaluation of one training; equal evaluations are run once.
"""

from typing import NamedTuple

from person_search.reproduction import Table, Training, row


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
