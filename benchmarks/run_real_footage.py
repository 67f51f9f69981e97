#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Trains and evaluates on three MOT15 sequences; makes the table of docs/results_real_footage.md.

    python benchmarks/run_real_footage.py --weights mobilenet_v2.safetensors

The folder of frames holds PETS09-S2L1, TUD-Campus and TUD-Stadtmitte as MOT folders; it must lie in
the folder real_footage of the data sets. The weights are ImageNet weights of MobileNetV2, see
tools/convert_backbone.py. Finished parts in the output folder are used again. Config overrides at
the end apply to all trainings.
"""

import argparse
import json
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from person_search.cli import run_program
from person_search.training_series import (
    ROOT,
    console,
    mean_and_spread,
    parse_series,
    results_in,
    run_logged,
    series_parser,
)

CONFIG = "configs/PSDiff/tiny/psdiff_mnv2_real_footage.yaml"
TWO_STAGE = "configs/TwoStage/twostage_mnv2_real_footage.yaml"
# Frozen tiny diffusion model of drawn scenes; images larger than those of its config.
DIFFPS = "configs/DiffPS/tiny/diffps_tiny_synthetic.yaml"
DIFFPS_KEYS = (
    "MODEL.DIFFPS.INPUT.SIZE '[448, 576]' MODEL.ANCHOR_GENERATOR.SIZES '[[28, 48, 84, 144]]' "
    "SOLVER.IMS_PER_BATCH 4 SOLVER.MAX_ITER 1000"
)
DEMO_WEIGHTS = "projects/PSDiff/weights/psdiff_slim_synthetic.safetensors"
PROTOCOLS = {
    "identity": "--split identity --test-share 0.5",
    "scene": "--split sequence --test-sequences TUD-Campus TUD-Stadtmitte",
}
TRAININGS = {
    "recommended": "",
    "imitation": "MODEL.PSDIFF.CDL.REID_INPUT imitation",
    "cascaded": "MODEL.PSDIFF.CDL.PREDICTION cascaded",
    "parallel": "MODEL.PSDIFF.CDL.PREDICTION parallel",
    "diffps": "",
}
# Parts of a training, each from the weights of the one before; the config itself is the last.
EARLY = "MODEL.PSDIFF.MATCHER_TOP_IOUS 48 MODEL.PSDIFF.LOSS.REID 5.0 SOLVER.BASE_LR 0.001 "
PARTS = (
    EARLY + "INPUT.MIN_SIZE_TRAIN '(320, 384, 448)' INPUT.CROP.SIZE '[0.65, 0.65]' "
    "MODEL.PSDIFF.TRUE_BOXES 0.0 SOLVER.MAX_ITER 900 SOLVER.STEPS '(600, 800)'",
    EARLY + "MODEL.PSDIFF.TRUE_BOXES 0.25 SOLVER.MAX_ITER 1100 SOLVER.STEPS '(700, 950)'",
    "",
)
EVALUATIONS = {
    "steps1": ("1 step", "MODEL.PSDIFF.STEPS 1"),
    "steps4": ("4 steps", ""),
    "steps8": ("8 steps", "MODEL.PSDIFF.STEPS 8"),
    "student": (
        "4 steps, without the teacher",
        "MODEL.PSDIFF.FROZEN_SHARE 0.0 MODEL.ALLOW_PARTIAL_LOAD True",
    ),
}
TWO_STAGES = ("MobileNetV2, not trained", "teacher of PSDiff")
DUMP = "TEST.PERSON_SEARCH.DUMP_PREDICTIONS True TEST.PERSON_SEARCH.VARIANTS \"['gt']\""

# results[row] is a list over the seeds of metrics by names like "search/mAP"
Results = dict[str, list[dict[str, float]]]


def write_start(weights: Path, path: Path) -> None:
    """Writes the initial weights: the backbone, and head and FPN outputs of the demo's weights."""
    from detectron2.modeling import build_model
    from safetensors.torch import save

    from person_search.config import build_config
    from person_search.utils.files import write_atomically
    from person_search.utils.weight_files import read_weights

    cfg = build_config(ROOT / CONFIG, ["MODEL.WEIGHTS", "", "MODEL.TIMM.WEIGHTS", str(weights)])
    model = build_model(cfg)
    demo = read_weights(ROOT / DEMO_WEIGHTS)
    fitting = ("head.", "backbone.fpn_output")
    model.load_state_dict(
        {k: v.float() for k, v in demo.items() if k.startswith(fitting)}, strict=False
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, save({k: v.contiguous() for k, v in model.state_dict().items()}))


class Runner:
    """Runs the missing parts of one protocol.

    Args:
        args: Options of the program.
        protocol: Key of ``PROTOCOLS``.
    """

    def __init__(self, args: argparse.Namespace, protocol: str) -> None:
        self.protocol, self.weights = protocol, args.weights.resolve()
        self.frames, self.output = args.frames.resolve(), args.output.resolve()
        self.data = self.frames.parent
        self.env = {**os.environ, "DETECTRON2_DATASETS": str(self.data.parent)}
        self.overrides = shlex.join(args.opts)
        self.teacher = self.output / f"teacher_{protocol}"
        sets = (
            f"DATASETS.TRAIN \"('real_{protocol}_train',)\" "
            f"DATASETS.TEST \"('real_{protocol}_test',)\" "
        )
        self.registered = (
            f"{sets} DATASETS.PERSON_SEARCH_JSON "
            f"\"[['real_{protocol}_train','real_footage/{protocol}_train.json'],"
            f"['real_{protocol}_test','real_footage/{protocol}_test.json']]\""
        )
        self.sets = f"{sets} MODEL.PSDIFF.TEACHER.EMBEDDINGS {self.teacher}/embeddings.safetensors"

    def make(self, target: Path, command: str) -> None:
        """Runs a Python command that writes a file, unless the file exists."""
        if not target.exists():
            console.print(f"{target} ...", soft_wrap=True)
            name = f"{self.protocol}_{target.parent.name}_{target.stem}"
            run_logged(command, self.output / "logs" / f"{name}.log", self.env)

    def prepare(self) -> None:
        """Makes data set, initial weights, teacher and embeddings."""
        self.make(
            self.data / f"{self.protocol}_test.json",
            f"tools/convert_dataset.py mot {shlex.quote(str(self.frames))} --every 5 "
            f"--output {shlex.quote(str(self.data))} --name {self.protocol} "
            f"{PROTOCOLS[self.protocol]}",
        )
        if not (self.output / "start.safetensors").exists():
            write_start(self.weights, self.output / "start.safetensors")
        keys = f"--config-file {CONFIG} --num-gpus 0 {self.sets} OUTPUT_DIR {self.teacher}"
        self.make(
            self.teacher / "teacher.safetensors",
            f"projects/PSDiff/tools/train_teacher.py {keys} "
            f"MODEL.PSDIFF.TEACHER.BACKBONE_WEIGHTS {self.weights} MODEL.PSDIFF.TEACHER.WEIGHTS ''",
        )
        self.make(
            self.teacher / "embeddings.safetensors",
            f"projects/PSDiff/tools/compute_embeddings.py {keys} "
            f"MODEL.PSDIFF.TEACHER.WEIGHTS {self.teacher}/teacher.safetensors",
        )

    def psdiff(self, name: str, seed: int) -> Results:
        """Trains PSDiff and evaluates it; returns results by row."""
        folder = self.output / f"psdiff_{self.protocol}_{name}_seed{seed}"
        keys = (
            f"--config-file {CONFIG} --num-gpus 0 {self.sets} SEED {seed} {TRAININGS[name]} "
            f"MODEL.PSDIFF.TEACHER.WEIGHTS {self.teacher}/teacher.safetensors"
        )
        start = self.output / "start.safetensors"
        for number, options in enumerate(PARTS, start=1):
            target = folder / f"part{number}" / "model_final_ema.pth"
            self.make(
                target,
                f"train_net.py --resume {keys} OUTPUT_DIR {target.parent} MODEL.WEIGHTS {start} "
                f"{options} {self.overrides}",
            )
            start = target
        rows = {}
        for file, (row, options) in EVALUATIONS.items():
            out = folder / file
            self.make(
                out / "results.json",
                f"train_net.py --eval-only {keys} OUTPUT_DIR {out} MODEL.WEIGHTS {start} "
                f"{options} {DUMP} {self.overrides}",
            )
            rows[f"PSDiff, {name}, {row}"] = [metrics(out)]
        return rows

    def diffps(self, name: str, seed: int) -> Results:
        """Trains DiffPS and evaluates it; returns the results as one row."""
        out = self.output / f"{name}_{self.protocol}_seed{seed}"
        keys = f"--config-file {DIFFPS} --num-gpus 0 SEED {seed} {DIFFPS_KEYS} {self.registered}"
        cache = f"MODEL.DIFFPS.BACKBONE.CACHE.DIR {self.output}/diffps_cache"
        weights = out / "model_final_ema.pth"
        self.make(
            weights,
            f"train_net.py --resume {keys} {cache} OUTPUT_DIR {out} {self.overrides}",
        )
        self.make(
            out / "test" / "results.json",
            f"train_net.py --eval-only {keys} {cache} OUTPUT_DIR {out}/test "
            f"MODEL.WEIGHTS {weights} {DUMP} {self.overrides}",
        )
        return {"DiffPS, tiny": [metrics(out / "test")]}

    def chance(self, name: str, seed: int) -> Results:
        """Gives random embeddings to the detections of the recommended PSDiff with 4 steps."""
        found = self.output / f"psdiff_{self.protocol}_recommended_seed{seed}" / "steps4"
        out = self.output / f"chance_{self.protocol}_seed{seed}"
        predictions = found / "inference" / f"real_{self.protocol}_test_predictions.npz"
        self.make(
            out / "chance.json",
            f"tools/visualize_search.py --config-file {CONFIG} --predictions {predictions} "
            f"--output {out} {self.sets}",
        )
        values = json.loads((out / "chance.json").read_text())
        known = {f"search/{metric}": values[metric] for metric in ("mAP", "top1")}
        nothing = dict.fromkeys(("gt/mAP", "gt/top1"), float("nan"))
        return {name: [{**metrics(found), **known, **nothing}]}

    def two_stage(self, name: str, seed: int) -> Results:
        """Evaluates a re-ID network on the detections of the recommended PSDiff with 4 steps."""
        found = self.output / f"psdiff_{self.protocol}_recommended_seed{seed}" / "steps4"
        file = found / "inference" / f"real_{self.protocol}_test_predictions.npz"
        is_teacher = name.startswith("teacher")
        out = self.output / f"two_stage_{self.protocol}_{name[:7]}_seed{seed}"
        reid = (
            f"PSDiffTeacher MODEL.TWO_STAGE.REID_WEIGHTS {self.teacher}/teacher.safetensors"
            if is_teacher
            else f"timm/mobilenetv2_100 MODEL.TWO_STAGE.REID_WEIGHTS {self.weights}"
        )
        self.make(
            out / "results.json",
            f"train_net.py --eval-only --config-file {TWO_STAGE} --num-gpus 0 {self.sets} "
            f"OUTPUT_DIR {out} MODEL.TWO_STAGE.DETECTOR predictions/{file} "
            f"MODEL.TWO_STAGE.REID {reid} {DUMP}",
        )
        return {f"TwoStage, {name}": [metrics(out)]}


def metrics(folder: Path) -> dict[str, float]:
    """Returns the metrics of an evaluation, with those on true boxes as ``gt/<metric>``."""
    result = json.loads((folder / "results.json").read_text())
    true_boxes = result["search_all_gt"]
    return results_in(folder) | {f"gt/{name}": true_boxes[name] for name in ("mAP", "top1")}


def markdown(results: dict[str, Results]) -> str:
    """Returns the table of all protocols and rows."""
    names = ("search/mAP", "search/top1", "detection/AP50", "gt/mAP", "gt/top1")
    lines = [
        "| protocol | model | seeds | mAP | top-1 | AP50 | mAP, true boxes | top-1, true boxes |",
        "|---|---|--:|--:|--:|--:|--:|--:|",
    ]
    for protocol, rows in results.items():
        for row, runs in rows.items():
            cells = [mean_and_spread([run[name] for run in runs]) for name in names]
            lines.append(f"| {protocol} | {row} | {len(runs)} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def work(args: argparse.Namespace) -> None:
    """Runs all missing parts and writes the table after each."""
    os.chdir(ROOT)
    results: dict[str, Results] = {protocol: {} for protocol in args.protocols}
    for seed in range(42, 42 + args.seeds):  # 42 is the seed of the configs
        for protocol in args.protocols:
            runner = Runner(args, protocol)
            runner.prepare()
            parts = [
                (runner.diffps if name == "diffps" else runner.psdiff, name)
                for name in args.trainings
            ]
            if "recommended" in args.trainings:
                parts += [(runner.two_stage, name) for name in TWO_STAGES]
                parts.append((runner.chance, "chance"))
            for run, name in parts:
                for row, values in run(name, seed).items():
                    results[protocol].setdefault(row, []).extend(values)
                (args.output / "table.md").write_text(markdown(results))
    console.print(markdown(results))


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the program."""
    parser = series_parser(__doc__, "output/real_footage", seeds=1, trained="model")
    add = parser.add_argument
    add("--frames", type=Path, default=Path("datasets/real_footage/frames"), metavar="DIR",
        help="folder of the three sequences (default: %(default)s)")  # fmt: skip
    add("--weights", type=Path, required=True, metavar="FILE",
        help="ImageNet weights of MobileNetV2")  # fmt: skip
    add("--protocols", nargs="+", choices=PROTOCOLS, default=list(PROTOCOLS),
        help="protocols (default: all)")  # fmt: skip
    add("--trainings", nargs="+", choices=TRAININGS, default=["recommended"],
        help="trainings (default: recommended)")  # fmt: skip
    args = parse_series(parser, argv)
    return run_program(work, args, log=False, resume_hint="The same command continues.")


if __name__ == "__main__":
    sys.exit(main())
