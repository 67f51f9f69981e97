#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Measures PSDiff's inference, optimized and not, against the cost of SeqNet.

    OMP_NUM_THREADS=1 python benchmarks/benchmark_inference.py --repeats 3

SeqNet is represented by a model of the same operations built from torchvision layers, with random
weights, at the test size that it uses (864 x 1504): ResNet-50 to stage 4, an RPN head, a head that
runs stage 5 on 300 RoIs of 14 x 14, and a second one for the detections (--detections).
PSDiff (R50-FPN) runs at 768 x 1344. Each repeat times all variants in turn; the table shows medians
and the range of the ratios, and the peak memory beyond weights and image.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from person_search.cli import program_parser, run_program

CONFIG = Path(__file__).parents[1] / "configs" / "PSDiff" / "psdiff_r50_fpn_prw.yaml"
SEQNET_SIZE, PSDIFF_SIZE = (864, 1504), (768, 1344)


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parses the command line."""
    parser = program_parser(__doc__)
    parser.add_argument(
        "--repeats", type=int, default=3, help="repeats of all variants (default: 3)"
    )
    parser.add_argument("--steps", type=int, nargs="+", default=[1, 8], help="denoising steps")
    parser.add_argument(
        "--scale", type=float, default=1.0, help="factor on all image sizes, for a quick check"
    )
    parser.add_argument(
        "--clock",
        choices=("cpu", "wall"),
        default="cpu",
        help="process time of one thread (default), or elapsed time, as needed on a GPU",
    )
    parser.add_argument(
        "--detections",
        type=int,
        default=20,
        help="boxes that reach SeqNet's second head, at most 300 (default: 20)",
    )
    parser.add_argument("--device", default="cpu", help="device of the models (default: cpu)")
    args = parser.parse_args(argv)
    if args.repeats < 1:
        parser.error(f"--repeats is {args.repeats}; it must be at least 1")
    return args


def seqnet_cost_model(detections: int):
    """Returns a module with the operations of SeqNet's inference and random weights.

    Args:
        detections: Number of boxes that reach the second head.
    """
    import torch
    from torch import nn
    from torchvision.models import resnet50
    from torchvision.ops import roi_align

    class SeqNetCost(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            net = resnet50()
            self.stem = nn.Sequential(net.conv1, net.bn1, net.relu, net.maxpool)
            self.stages = nn.Sequential(net.layer1, net.layer2, net.layer3)
            self.rpn = nn.Sequential(nn.Conv2d(1024, 1024, 3, padding=1), nn.ReLU())
            self.rpn_outputs = nn.Conv2d(1024, 15 * 5, 1)
            self.heads = nn.ModuleList([net.layer4, resnet50().layer4])

        def forward(self, image: torch.Tensor) -> torch.Tensor:
            features = self.stages(self.stem(image))
            self.rpn_outputs(self.rpn(features))
            height, width = image.shape[-2:]
            scale = torch.tensor([width, height, width, height], device=image.device)
            for head, count in zip(self.heads, (300, detections), strict=True):
                corner = torch.rand(count, 2, device=image.device) * 0.5
                boxes = torch.cat([corner, corner + 0.3], 1) * scale
                rois = roi_align(features.float(), [boxes], 14, 1 / 16, sampling_ratio=2)
                embedding = head(rois.to(features.dtype)).mean((2, 3))
            return embedding

    return SeqNetCost().eval()


def benchmark(args: argparse.Namespace) -> None:
    """Times the variants and prints the table."""
    import torch
    from detectron2.modeling import build_model
    from peak_memory import peak_bytes
    from rich.console import Console
    from rich.table import Table
    from timing import Timing, time_interleaved

    from person_search.config import build_config
    from person_search.modeling.optimize import optimize_for_inference, supported_precisions

    torch.manual_seed(0)
    cfg = build_config(CONFIG, ["MODEL.DEVICE", args.device, "MODEL.WEIGHTS", ""])
    psdiff = build_model(cfg).eval()
    seqnet = seqnet_cost_model(args.detections).to(args.device)
    best = supported_precisions(args.device)[0]

    def image(size: tuple[int, int]) -> torch.Tensor:
        height, width = (max(64, round(side * args.scale / 32) * 32) for side in size)
        return torch.rand(3, height, width, device=args.device)

    seqnet_image, psdiff_image = image(SEQNET_SIZE)[None], image(PSDIFF_SIZE)
    seqnet_low = seqnet_cost_model(args.detections).to(args.device)
    seqnet_low.to(dtype=torch.bfloat16, memory_format=torch.channels_last)
    low_image = seqnet_image.to(torch.bfloat16, memory_format=torch.channels_last)
    variants: dict[str, Callable[[], object]] = {
        "SeqNet, eager float32": lambda: seqnet(seqnet_image)
    }
    if best == "bfloat16":
        variants["SeqNet, bfloat16"] = lambda: seqnet_low(low_image)
    for steps in args.steps:
        for precision in dict.fromkeys(("eager", "float32", best)):
            model = psdiff if precision == "eager" else optimize_for_inference(psdiff, precision)
            name = f"PSDiff, {steps} steps, " + (
                "eager float32" if precision == "eager" else f"optimized {precision}"
            )
            variants[name] = partial(model.inference, [{"image": psdiff_image}], steps=steps)
    with torch.no_grad():
        times = time_interleaved(variants, args.repeats, args.device, args.clock)
        peaks = {name: peak_bytes(run, args.device) / 1e6 for name, run in variants.items()}
    table = Table(title=f"Inference of one image on {args.device}, {args.clock} time")
    for column in (
        "variant",
        "ms",
        "SeqNet / this (same precision)",
        "eager / this time",
        "peak MB",
    ):
        table.add_column(column, justify="left" if column == "variant" else "right")
    seqnet_best = min((n for n in times if "SeqNet" in n), key=lambda n: sum(times[n]))
    for name, values in times.items():
        seqnet_name = "SeqNet, eager float32" if "float32" in name else seqnet_best
        eager = f"{name.rsplit(', ', 1)[0]}, eager float32"
        references = (seqnet_name, eager if "PSDiff" in name else name)
        ratios = [Timing(name, values, times[reference]).ratios for reference in references]
        table.add_row(
            name,
            f"{Timing(name, values, values).median:.0f}",
            *(f"{middle:.2f} ({low:.2f}-{high:.2f})" for middle, low, high in ratios),
            f"{peaks[name]:.0f}",
        )
    Console(width=120, highlight=False).print(table)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the benchmark; returns the exit status."""
    return run_program(benchmark, parse_args(argv), log=False)


if __name__ == "__main__":
    sys.exit(main())
