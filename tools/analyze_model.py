#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Counts the parameters and operations of a model, part by part.

    python tools/analyze_model.py --config-file configs/PSDiff/psdiff_r50_fpn_cuhk_sysu.yaml
    python tools/analyze_model.py --config-file ... --size 480 640 --steps 1 8 --json cost.json

One GFLOP is 10^9 operations; a multiply-add counts as two (rules: person_search/utils/flops.py).
The image is padded as in the model, for example 800 x 1333 pixels to 800 x 1344. The weights are
random; no weight file is read. Image resizing, NMS and the arithmetic of the sampler are not
counted; operators without a rule are listed.

Exit status: 0; 1 if an operator was not counted that may be costly; 2 for wrong input.
"""

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from person_search.cli import program_parser, run_program

# the first match counts; other parameters belong to the part of their first name
PARTS = (
    ("backbone: bottom-up", "backbone.bottom_up."),
    ("backbone: FPN", "backbone."),
    ("RoI pooling", "head.pooler."),
    ("CDL: self-attention (SA)", "head.cdl.sa."),
    ("CDL: dynamic convolution (DC)", "head.cdl.dc."),
    ("CDL: cross-attention (CA)", "head.cdl.ca."),
    ("time", "head.time_embedding."),
    ("time", "head.cdl.time_mlp."),
    ("CDL: rest", "head.cdl."),
    ("re-ID branch", "head.reid_branch."),
    ("class branch", "head.cls_branch."),
    ("box branch", "head.box_branch."),
)
# Table II of PSDiff, ResNet-50 with FPN at 1333 x 800: steps -> GFLOPs.
PAPER_GFLOPS = {1: 301, 2: 309, 4: 333, 8: 390}
PAPER_SIZE, PAPER_PROPOSALS = [800, 1333], 300


@dataclass
class Cost:
    """Content of the JSON file. Operations are in GFLOPs."""

    config: str
    image_size: list[int]
    padded_size: list[int]
    parameters: dict[str, int]
    trainable: int
    frozen: int
    proposals: int = 0
    backbone: float = 0.0
    step: dict[str, float] = field(default_factory=dict)
    total: dict[int, float] = field(default_factory=dict)
    paper: dict[int, float] = field(default_factory=dict)
    uncounted: dict[str, int] = field(default_factory=dict)
    suspicious: list[str] = field(default_factory=list)


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Reads the command line."""
    parser = program_parser(__doc__, config=True)
    parser.add_argument(
        "--size", type=int, nargs=2, default=PAPER_SIZE, metavar=("HEIGHT", "WIDTH"),
        help="size of the model's input image in pixels, at least 32 (default: 800 1333)",
    )  # fmt: skip
    parser.add_argument(
        "--steps", type=int, nargs="+", default=[1, 2, 4, 8], metavar="N",
        help="numbers of denoising steps (PSDiff), at least 1 (default: 1 2 4 8)",
    )  # fmt: skip
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the counts as JSON")
    parser.add_argument(
        "--markdown", type=Path, metavar="FILE", help="also write the tables as Markdown"
    )
    args = parser.parse_args(argv)
    if min(args.size) < 32:
        parser.error(f"--size is {args.size}, each side must be at least 32 pixels")
    if min(args.steps) < 1:
        parser.error(f"--steps is {args.steps}, each must be at least 1")
    args.steps = sorted(set(args.steps))
    return args


def analyze(args: argparse.Namespace) -> Cost:
    """Builds the model of a config and counts its parameters and operations."""
    import torch
    from detectron2.modeling import build_model

    from person_search.config import build_config

    cfg = build_config(
        args.config_file, ["MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", "none", *args.opts]
    )
    torch.manual_seed(0)
    model = build_model(cfg).eval()
    parameters = count_parameters(model)
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    divisor = model.backbone.size_divisibility if hasattr(model, "backbone") else 0
    padded = [-(-side // divisor) * divisor if divisor else side for side in args.size]
    cost = Cost(
        config=args.config_file,
        image_size=list(args.size),
        padded_size=padded,
        parameters=parameters,
        trainable=trainable,
        frozen=sum(parameters.values()) - trainable,
    )
    if cfg.MODEL.META_ARCHITECTURE == "PSDiff":
        count_psdiff(cost, model, cfg, args.steps)
    else:
        count_whole(cost, model)
    return cost


def count_parameters(model) -> dict[str, int]:
    """Returns ``{part: number of parameters}``, in the order of ``PARTS``, then the others."""
    counts = {part: 0 for part, _ in PARTS}
    for name, parameter in model.named_parameters():
        found = (part for part, prefix in PARTS if name.startswith(prefix))
        part = next(found, name.split(".")[0])
        counts[part] = counts.get(part, 0) + parameter.numel()
    return {part: count for part, count in counts.items() if count}


# ---- operations --------------------------------------------------------------------------------
def count_psdiff(cost: Cost, model, cfg, steps: list[int]) -> None:
    """Counts the backbone, one step by parts, and their sums for several numbers of steps."""
    import torch

    from person_search.utils.flops import count_flops, group_flops

    channels, (height, width) = len(cfg.MODEL.PIXEL_MEAN), cost.padded_size
    image = torch.zeros(1, channels, height, width)
    backbone = count_flops(traceable(model.backbone, lambda m, x: m(x)), (image,))
    features = {
        name: torch.zeros(1, shape.channels, height // shape.stride, width // shape.stride)
        for name, shape in model.backbone.output_shape().items()
        if name in model.head.in_features
    }
    proposals = cfg.MODEL.PSDIFF.NUM_PROPOSALS_TEST or cfg.MODEL.PSDIFF.NUM_PROPOSALS
    noise = torch.randn(proposals, 4 + cfg.MODEL.REID.EMBED_DIM)
    boxes = model.head.codec.decode_boxes(noise[:, :4], tuple(cost.image_size))[None]
    inputs = (boxes, noise[None, :, 4:], torch.tensor([999]), *features.values())

    def denoise(head, boxes, reid_signal, t, *maps):
        return head(dict(zip(features, maps, strict=True)), boxes, reid_signal, t)

    step = count_flops(traceable(model.head, denoise), inputs)

    groups: dict[str, tuple[str, ...]] = {}
    for name in dict.fromkeys(part for part, prefix in PARTS if prefix.startswith("head.")):
        prefixes = [prefix for part, prefix in PARTS if part == name]
        groups[name] = tuple(f"module.{p.removeprefix('head.').rstrip('.')}" for p in prefixes)
    cdl = groups.pop("CDL: rest")[0]
    parts = group_flops(step, groups)
    inside = sum(v for k, v in parts.items() if k.startswith("CDL: "))
    inside += step.by_module.get("module.cdl.time_mlp", 0.0)
    parts["CDL: rest"] = step.by_module.get(cdl, 0.0) - inside
    parts["rest"] -= parts["CDL: rest"]

    cost.proposals = proposals
    cost.backbone = backbone.total / 1e9
    cost.step = {k: v / 1e9 for k, v in parts.items() if v > 0}
    cost.total = {k: (backbone.total + k * step.total) / 1e9 for k in steps}
    if cfg.MODEL.BACKBONE.NAME == "build_resnet_fpn_backbone" and cfg.MODEL.RESNETS.DEPTH == 50:
        same = cost.image_size == PAPER_SIZE and proposals == PAPER_PROPOSALS
        cost.paper = {k: PAPER_GFLOPS[k] for k in steps if same and k in PAPER_GFLOPS}
    for count in (backbone, step):
        for name, calls in count.uncounted.items():
            cost.uncounted[name] = cost.uncounted.get(name, 0) + calls
        cost.suspicious += count.suspicious


def count_whole(cost: Cost, model) -> None:
    """Counts any other model: its inference on one random image as a whole."""
    import torch

    from person_search.utils.flops import count_flops

    def detect(model, image):
        height, width = (int(side) for side in image.shape[1:])
        return model([{"image": image, "height": height, "width": width}])

    image = torch.randint(0, 256, (3, *cost.image_size)).float()
    count = count_flops(traceable(model, detect), (image,))
    cost.total = {1: count.total / 1e9}
    cost.uncounted, cost.suspicious = count.uncounted, count.suspicious


def flat_tensors(value) -> Iterator:
    """Yields all tensors in nested dicts, sequences and objects with attributes."""
    import torch

    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from flat_tensors(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from flat_tensors(item)
    elif hasattr(value, "get_fields"):
        yield from flat_tensors(value.get_fields())
    elif hasattr(value, "__dict__"):
        yield from flat_tensors(vars(value))


def traceable(module, call):
    """Wraps a module for tracing: ``call(module, *tensors)``, all tensors of its output out."""
    from torch import nn

    class Wrapper(nn.Module):
        def __init__(self):
            super().__init__()
            self.module = module

        def forward(self, *inputs):
            return tuple(flat_tensors(call(self.module, *inputs)))

    return Wrapper()


# ---- output ------------------------------------------------------------------------------------
Rows = list[tuple[str, ...]]


def tables(cost: Cost) -> list[tuple[str, Rows]]:
    """Returns (title, rows) of all tables; the first row is the header."""
    total = sum(cost.parameters.values())
    rows: Rows = [("part", "parameters"), *((k, f"{v:,}") for k, v in cost.parameters.items())]
    rows += [("total", f"{total:,}"), ("trainable", f"{cost.trainable:,}")]
    rows += [("frozen", f"{cost.frozen:,}")]
    result = [("Parameters", rows)]
    size = f"{cost.image_size[1]} x {cost.image_size[0]}"
    if cost.padded_size != cost.image_size:
        size += f" (padded {cost.padded_size[1]} x {cost.padded_size[0]})"
    if cost.step:
        rows = [("part of one step", "GFLOPs"), *((k, f"{v:.3f}") for k, v in cost.step.items())]
        rows.append(("one step", f"{sum(cost.step.values()):.3f}"))
        result.append((f"One denoising step, {cost.proposals} boxes", rows))
        rows = [("steps", "backbone", "head", "total", "paper")]
        for steps, gflops in cost.total.items():
            paper = str(cost.paper.get(steps, "-"))
            head = gflops - cost.backbone
            rows.append((str(steps), f"{cost.backbone:.1f}", f"{head:.1f}", f"{gflops:.1f}", paper))
        result.append((f"GFLOPs, image of {size}", rows))
    else:
        rows = [("model", "GFLOPs"), ("whole", f"{cost.total[1]:.3f}")]
        result.append((f"GFLOPs, image of {size}", rows))
    return result


def describe_uncounted(cost: Cost) -> str:
    """Lists operators without a rule, the possibly costly ones first."""
    lines = []
    if cost.suspicious:
        names = ", ".join(sorted(set(cost.suspicious)))
        lines.append(f"NOT COUNTED although possibly costly: {names}")
    others = [k for k in sorted(cost.uncounted) if k not in cost.suspicious]
    names = ", ".join(f"{k.removeprefix('aten::')} ({cost.uncounted[k]})" for k in others)
    lines.append(f"Not counted, elementwise or copies (calls): {names or '-'}")
    return "\n".join(lines)


def render(cost: Cost, table_format: str) -> str:
    """Returns the tables in a format of ``tabulate``, and the operators without a rule."""
    from tabulate import tabulate

    parts = []
    for title, (head, *rows) in tables(cost):
        align = ("left", *["right"] * (len(head) - 1))
        table = tabulate(rows, head, table_format, colalign=align, disable_numparse=True)
        parts.append(f"**{title}**\n\n{table}\n")
    return "\n".join([*parts, describe_uncounted(cost), ""])


def report(args: argparse.Namespace) -> int:
    """Prints and writes the counts; returns 1 if operators that may be costly were not counted."""
    from person_search.utils.files import write_atomically

    cost = analyze(args)
    print(render(cost, "simple"))
    if args.json:
        write_atomically(args.json, (json.dumps(asdict(cost), indent=2) + "\n").encode())
    if args.markdown:
        write_atomically(args.markdown, render(cost, "pipe").encode())
    return 1 if cost.suspicious else 0


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the program and returns its exit status."""
    return run_program(report, parse_args(argv), log=False)


if __name__ == "__main__":
    sys.exit(main())
