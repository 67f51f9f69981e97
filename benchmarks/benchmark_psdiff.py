#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Measures the speed of PSDiff for several numbers of steps, and the memory of its training.

    python benchmarks/benchmark_psdiff.py
    python benchmarks/benchmark_psdiff.py --device cuda --precision fp16
    python benchmarks/benchmark_psdiff.py --size 480 640 --no-memory MODEL.PSDIFF.ETA 1.0

The backbone runs once per image and the head once per step. Each repeat measures each number of
steps once, in changing order, so that other load on the machine affects all of them equally. Ratios
are computed within a repeat; the medians over the repeats are shown. Weights are random, and the
score threshold is 0, so that all boxes go through NMS.

Memory is measured on a GPU. On a CPU it is calculated by running the training step on tensors
without data (training_memory.py), with all boxes pooled from the finest level and without the
losses, whose tensors have a few numbers per box.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import TypeVar

from person_search.cli import program_parser, run_program

CONFIG = Path(__file__).parents[1] / "configs" / "PSDiff" / "psdiff_r50_fpn_cuhk_sysu.yaml"
# Table II of PSDiff: images per second on a V100, relative to one step (31, 27, 21, 14).
PAPER_SPEED = {1: 1.0, 2: 0.87, 4: 0.68, 8: 0.45}
GPU_GIB = 24
# CUDA context, workspaces of libraries and fragmentation.
RESERVE_GIB = 2.0
PERSONS_PER_IMAGE = 8

T = TypeVar("T")


@dataclass
class Benchmark:
    """Median times in milliseconds; ``speed`` is relative to the smallest number of steps."""

    device: str
    precision: str
    image_size: list[int]
    proposals: int
    repeats: int
    backbone_ms: float = 0.0
    pool_ms: float = 0.0
    denoise_ms: float = 0.0
    select_ms: float = 0.0
    image_ms: dict[int, float] = field(default_factory=dict)
    speed: dict[int, float] = field(default_factory=dict)
    memory_gib: dict[str, dict[str, float]] = field(default_factory=dict)


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Reads the command line."""
    parser = program_parser(__doc__)
    parser.add_argument(
        "--config-file", default=str(CONFIG), metavar="FILE",
        help="YAML config (default: the recommended one for CUHK-SYSU)",
    )  # fmt: skip
    parser.add_argument(
        "--size", type=int, nargs=2, default=[800, 1333], metavar=("HEIGHT", "WIDTH"),
        help="size of the model input in pixels (default: 800 1333)",
    )  # fmt: skip
    parser.add_argument(
        "--steps", type=int, nargs="+", default=[1, 2, 4, 8], metavar="N",
        help="numbers of denoising steps (default: 1 2 4 8)",
    )  # fmt: skip
    parser.add_argument(
        "--repeats", type=int, default=7, metavar="N", help="measurements (default: %(default)s)"
    )
    parser.add_argument(
        "--device", default="", help="device (default: cuda if available, else cpu)"
    )
    parser.add_argument(
        "--precision", choices=("fp32", "fp16", "bf16"), default="fp32",
        help="precision of the model (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--clock", choices=("wall", "cpu"), default="wall",
        help="wall time, or CPU time of this process, for a busy machine; the latter requires the "
        "CPU and one thread (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--batch", type=int, default=8, metavar="N",
        help="number of images per training step (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument("--no-memory", action="store_true", help="omit the memory of training")
    parser.add_argument("--profile", action="store_true", help="list the operators of a step")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the results as JSON")
    parser.add_argument(
        "opts", nargs=argparse.REMAINDER, metavar="KEY VALUE",
        help="config overrides, after all options",
    )  # fmt: skip
    args = parser.parse_args(argv)
    for name in ("steps", "size"):
        if min(getattr(args, name)) < 1:
            parser.error(f"--{name} is {getattr(args, name)}; each must be at least 1")
    for name in ("repeats", "batch"):
        if getattr(args, name) < 1:
            parser.error(f"--{name} is {getattr(args, name)}; it must be at least 1")
    args.steps = sorted(set(args.steps))
    return args


def build(args: argparse.Namespace):
    """Builds the model of the config with random weights."""
    import torch
    from detectron2.modeling import build_model

    from person_search.config import build_config

    device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    cfg = build_config(args.config_file, ["MODEL.DEVICE", device, *args.opts])
    if cfg.MODEL.META_ARCHITECTURE != "PSDiff":
        raise ValueError(
            f"{args.config_file}: MODEL.META_ARCHITECTURE is {cfg.MODEL.META_ARCHITECTURE}; this "
            "benchmark is for PSDiff."
        )
    torch.manual_seed(0)
    model = build_model(cfg).eval()
    model.set_inference(score_thresh=0.0, latency_budget_ms=0.0)
    return model


# ---- time --------------------------------------------------------------------------------------
class Stopwatch:
    """Measures calls in milliseconds; synchronizes the GPU before and after each.

    Args:
        device: Device of the model.
        clock: ``wall``, or ``cpu`` for the CPU time of this process.
    """

    def __init__(self, device, clock: str) -> None:
        import torch

        if clock == "cpu" and (device.type != "cpu" or torch.get_num_threads() > 1):
            raise ValueError(
                "--clock cpu requires one thread on a CPU, but there are "
                f"{torch.get_num_threads()} threads on {device}. Set OMP_NUM_THREADS=1."
            )
        self.clock = clock
        self._wait = torch.cuda.synchronize if device.type == "cuda" else (lambda: None)
        self.wall = self.cpu = 0.0

    def __call__(self, function: Callable[[], T]) -> tuple[float, T]:
        """Returns the milliseconds of a call, and its result."""
        self._wait()
        wall, cpu = time.perf_counter(), time.process_time()
        result = function()
        self._wait()
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        self.wall, self.cpu = self.wall + wall, self.cpu + cpu
        return 1e3 * (cpu if self.clock == "cpu" else wall), result


def measure_time(model, args: argparse.Namespace) -> Benchmark:
    """Measures backbone, the parts of a step, NMS, and whole images."""
    import torch

    from psdiff.sampler import sampling_times

    result = Benchmark(
        str(model.device), args.precision, list(args.size), model.num_proposals, args.repeats
    )
    size, watch = tuple(args.size), Stopwatch(model.device, args.clock)
    image = torch.randint(256, (3, *size), dtype=torch.uint8)
    noise = torch.randn(1, model.num_proposals, 4 + model.embed_dim).to(model.device)
    boxes = model.codec.decode_boxes(noise[0, :, :4], size)[None]
    t = torch.tensor([sampling_times(1)[0]], device=model.device)

    def encode() -> dict:
        return model.backbone(model.preprocess_image([{"image": image}]).tensor)

    times: dict[object, list[float]] = {}

    def add(name: object, function: Callable[[], T]) -> T:
        milliseconds, value = watch(function)
        times.setdefault(name, []).append(milliseconds)
        return value

    processes = {k: model.reverse_process(model.settings.changed(steps=k)) for k in args.steps}
    with torch.inference_mode(), precision(args, model.device):
        for repeat in range(-1, args.repeats):
            features = add("backbone", encode)
            pooled = add("pool", partial(model.head.pool, features, boxes))
            output = add("denoise", partial(model.head.denoise, pooled, boxes, noise[..., 4:], t))
            predictions = output.boxes[0], output.logits[0], output.reid_feats[0]
            add("select", partial(processes[args.steps[0]].select, *predictions, size))
            turn = repeat % len(args.steps)
            for k in args.steps[turn:] + args.steps[:turn]:
                add(k, partial(processes[k].detect, features, [size], [0]))
            if repeat < 0:  # warm-up
                times.clear()
                watch.wall = watch.cpu = 0.0
    busy = watch.wall > 1.5 * watch.cpu
    if model.device.type == "cpu" and args.clock == "wall" and busy:
        print(f"(The machine is busy: {watch.cpu:.1f} s of CPU time in {watch.wall:.1f} s.")
        print(" With OMP_NUM_THREADS=1, --clock cpu measures the time of this process only.)")
    for name in ("backbone", "pool", "denoise", "select"):
        setattr(result, f"{name}_ms", statistics.median(times[name]))
    images = {k: [a + b for a, b in zip(times["backbone"], times[k], strict=True)]
              for k in args.steps}  # fmt: skip
    first = images[args.steps[0]]
    for k, values in images.items():
        result.image_ms[k] = statistics.median(values)
        result.speed[k] = statistics.median(a / b for a, b in zip(first, values, strict=True))
    return result


def precision(args: argparse.Namespace, device):
    """Returns the autocast context of ``--precision``."""
    import torch

    types = {"fp16": torch.float16, "bf16": torch.bfloat16}
    if args.precision == "fp32":
        return nullcontext()
    return torch.autocast(device.type, types[args.precision])


def print_profile(model, args: argparse.Namespace) -> None:
    """Prints the operators of one step by time."""
    import torch
    from torch.profiler import ProfilerActivity, profile

    size = tuple(args.size)
    image = torch.zeros(3, *size, dtype=torch.uint8)
    process = model.reverse_process(model.settings.changed(steps=1))
    activities = [ProfilerActivity.CPU]
    if model.device.type == "cuda":
        activities.append(ProfilerActivity.CUDA)
    with torch.inference_mode(), precision(args, model.device):
        features = model.backbone(model.preprocess_image([{"image": image}]).tensor)
        process.detect(features, [size], [0])
        with profile(activities=activities) as profiler:
            process.detect(features, [size], [0])
    key = f"self_{model.device.type}_time_total"
    print(profiler.key_averages().table(sort_by=key, row_limit=15, max_name_column_width=45))


# ---- memory ------------------------------------------------------------------------------------
def measure_memory(model, args: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Returns the GiB of a training step in float32 and with AMP, measured on a GPU only."""
    measure = measured_memory if model.device.type == "cuda" else calculated_memory
    model.train()
    return {name: measure(model, args, amp) for name, amp in (("fp32", False), ("AMP", True))}


def calculated_memory(model, args: argparse.Namespace, amp: bool) -> dict[str, float]:
    """Calculates the parts of the memory."""
    from training_memory import psdiff_training_memory

    memory = psdiff_training_memory(model, args.batch, tuple(args.size), amp=amp)
    parts = {name: value / 2**30 for name, value in asdict(memory).items()}
    return parts | {"total": memory.total / 2**30}


def measured_memory(model, args: argparse.Namespace, amp: bool) -> dict[str, float]:
    """Measures the peak memory of two training steps on the GPU."""
    import torch

    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-6)
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(model.device)
    for _ in range(2):  # the state of the optimizer exists from the second step on
        loss = training_loss(model, args, torch.float16 if amp else torch.float32)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    torch.cuda.synchronize(model.device)
    return {"total": torch.cuda.max_memory_allocated(model.device) / 2**30}


def training_loss(model, args: argparse.Namespace, dtype):
    """Returns the loss of random images with a few random persons each; ``dtype`` is AMP's."""
    import torch
    from detectron2.structures import Boxes, Instances

    size, batch = tuple(args.size), []
    limits = torch.tensor([size[1], size[0]])
    for _ in range(args.batch):
        corners = torch.rand(PERSONS_PER_IMAGE, 2, 2).sort(dim=1).values * limits
        reid_feats = torch.randn(PERSONS_PER_IMAGE, model.embed_dim)
        target = Instances(
            size,
            gt_boxes=Boxes(corners.flatten(1)),
            gt_classes=torch.zeros(PERSONS_PER_IMAGE, dtype=torch.int64),
            gt_pids=torch.arange(PERSONS_PER_IMAGE),
            gt_reid_feats=torch.nn.functional.normalize(reid_feats, dim=1),
        )
        image = torch.randint(256, (3, *size), dtype=torch.uint8)
        batch.append({"image": image, "instances": target})
    with torch.autocast(model.device.type, dtype, enabled=dtype != torch.float32):
        return sum(model(batch).values())


# ---- output ------------------------------------------------------------------------------------
def show(result: Benchmark, args: argparse.Namespace) -> None:
    """Prints the tables."""
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False, width=None if sys.stdout.isatty() else 120)
    height, width = result.image_size
    console.print(
        f"\n[bold]{result.device}, {result.precision}, image of {width} x {height}, "
        f"{result.proposals} boxes, medians of {result.repeats} repeats"
    )
    table = Table()
    for name in ("steps", "ms per image", "images/s", "speed", "paper (V100)"):
        table.add_column(name, justify="right")
    for k, value in result.image_ms.items():
        paper = f"{PAPER_SPEED[k]:.2f}" if k in PAPER_SPEED and min(args.steps) == 1 else "-"
        speed = f"{result.speed[k]:.3f}"
        table.add_row(str(k), f"{value:.1f}", f"{1e3 / value:.2f}", speed, paper)
    console.print(table)
    console.print(
        f"backbone {result.backbone_ms:.1f} ms; a step {result.pool_ms + result.denoise_ms:.1f} ms "
        f"(RoI pooling {result.pool_ms:.1f}, the rest {result.denoise_ms:.1f}); "
        f"NMS {result.select_ms:.2f} ms"
    )
    if not result.memory_gib:
        return
    how = "measured" if result.device.startswith("cuda") else "calculated"
    console.print(f"\n[bold]Memory of training, {args.batch} images per step, {how}, GiB")
    table = Table()
    names = list(next(iter(result.memory_gib.values())))
    for name in ("", *names, f"fits in {GPU_GIB} GB"):
        table.add_column(name, justify="right" if name else "left")
    for name, parts in result.memory_gib.items():
        needed = parts["total"] + RESERVE_GIB
        fits = "yes" if needed * 2**30 <= GPU_GIB * 1e9 else "no"
        table.add_row(name, *(f"{v:.2f}" for v in parts.values()), fits)
    console.print(table)
    console.print(f"{RESERVE_GIB:.0f} GiB are reserved for the CUDA context and fragmentation.")


def benchmark(args: argparse.Namespace) -> None:
    """Runs all measurements."""
    model = build(args)
    result = measure_time(model, args)
    if args.profile:
        print_profile(model, args)
    if not args.no_memory:
        result.memory_gib = measure_memory(model, args)
    show(result, args)
    if args.json:
        args.json.write_text(json.dumps(asdict(result), indent=2) + "\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the program."""
    return run_program(benchmark, parse_args(argv), log=False)


if __name__ == "__main__":
    sys.exit(main())
