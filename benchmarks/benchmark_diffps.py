#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Measures the cost of the frozen part of DiffPS, compared with computing it as in the release.

    OMP_NUM_THREADS=1 python benchmarks/benchmark_diffps.py --clock cpu
    python benchmarks/benchmark_diffps.py --device cuda --dtype float16 --size 1280 --repeats 10
    python benchmarks/benchmark_diffps.py --parts step memory --size 320

The release encodes every image with the VAE, runs the UNet to its end, and replaces every attention
of the UNet by an explicit softmax, of which it keeps one layer's map with all heads and tokens
(plain_diffusion.py). Both run with the same random weights of the shape of Stable Diffusion 2.1 on
the same images, without a download, and their features must agree.

In each repeat every variant runs once, in changing order, so that other load of the machine affects
all alike. Ratios are taken within a repeat; the tables show medians, and the lowest and highest
ratio.

Parts: ``frozen`` times the frozen part; ``low`` times it in bfloat16 against the release's way in
float32; ``memory`` measures its peak memory at several sizes and
extrapolates to 1280 x 1280; ``step`` times forward and backward of a training step with the real
heads. Below 1280 x 1280 the step has fewer RoIs and proposals, in proportion to the area, so that
frozen and trainable part keep their shares. The optimizer step, which does not depend on the image,
is not included. Caches are read from the page cache of the operating system.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path

from person_search.cli import program_parser, run_program

CONFIG = Path(__file__).parents[1] / "configs" / "DiffPS" / "diffps_sd21_prw.yaml"
PARTS = ("frozen", "low", "memory", "step")
FULL_SIZE = 1280
TOLERANCE = {"float32": 1e-3, "float16": 5e-2, "bfloat16": 0.2}
"""Maximum relative difference between both implementations, in norm."""
PERSONS_PER_IMAGE = 6


@dataclass
class Result:
    """All results."""

    device: str
    dtype: str
    size: int
    rows: list[dict] = field(default_factory=list)
    differences: dict[str, float] = field(default_factory=dict)
    cache_mb: dict[str, float] = field(default_factory=dict)
    memory: list[dict] = field(default_factory=list)
    teraflops: dict[str, float] = field(default_factory=dict)


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Parses the command line."""
    parser = program_parser(__doc__)
    add = parser.add_argument
    add("--config-file", default=str(CONFIG), metavar="FILE", help="YAML config (default: PRW)")
    add("--parts", nargs="+", choices=PARTS, default=["frozen", "memory"],
        help="what to measure (default: frozen memory)")  # fmt: skip
    add("--family", default="sd21",
        help="shape of the model: sd15, sd21 or, for a trial, tiny (default: sd21)")  # fmt: skip
    add("--size", type=int, default=512, help="side of the image in pixels (default: 512)")
    add("--repeats", type=int, default=3, help="repeats of each measurement (default: 3)")
    add("--device", default="", help="torch device (default: cuda if available, otherwise cpu)")
    add("--dtype", choices=tuple(TOLERANCE), default="float32",
        help="type of the frozen weights (default: float32)")  # fmt: skip
    add("--clock", choices=("wall", "cpu"), default="wall",
        help="cpu: time of this process, for a busy machine; one thread on a CPU only "
        "(default: wall)")  # fmt: skip
    add("--memory-sizes", type=int, nargs="+", default=[384, 512, 640],
        help="sides for the memory curve, at least three (default: 384 512 640)")  # fmt: skip
    add("--profile", action="store_true", help="list the operators of the UNet by time")
    add("--json", type=Path, metavar="FILE", help="also write all results to this file")
    add("opts", nargs=argparse.REMAINDER, metavar="KEY VALUE",
        help="config overrides, after all options")  # fmt: skip
    args = parser.parse_args(argv)
    sides = [args.size, *args.memory_sizes]
    if min(sides) < 64 or any(side % 64 for side in sides):
        parser.error(f"sizes are {sides}; each must be a multiple of 64")
    if args.repeats < 1:
        parser.error(f"--repeats is {args.repeats}; it must be at least 1")
    if "memory" in args.parts and len(set(args.memory_sizes)) < 3:
        parser.error("--memory-sizes needs three different sizes: the curve has three coefficients")
    return args


# ---- models ------------------------------------------------------------------------------------
def build_cfg(args: argparse.Namespace):
    """Returns the config of DiffPS with random weights and without data."""
    import random_diffusion  # noqa: F401  registers the backbone
    import torch
    from timing import check_clock

    from person_search.config import build_config

    args.device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    options = ["MODEL.BACKBONE.NAME", "build_random_diffusion_backbone"]
    options += ["MODEL.DEVICE", args.device, "MODEL.DIFFPS.BACKBONE.FAMILY", args.family]
    options += ["MODEL.DIFFPS.BACKBONE.DTYPE", args.dtype, "MODEL.DIFFPS.HEAD.RES5_WEIGHTS", ""]
    options += ["MODEL.DIFFPS.BACKBONE.VAE_SAMPLE", "False", "MODEL.REID.NUM_PIDS", "483"]
    check_clock(args.clock, args.device)
    return build_config(args.config_file, [*options, *args.opts])


def random_image(args: argparse.Namespace, size: int):
    """Returns an image, (1, 3, size, size) in [-1, 1]."""
    import torch

    generator = torch.Generator().manual_seed(0)
    return (torch.rand(1, 3, size, size, generator=generator) * 2 - 1).to(args.device)


def check_equal(plain: dict, fast: dict, dtype: str) -> dict[str, float]:
    """Returns the relative differences; raises RuntimeError if one exceeds the tolerance."""
    differences = {
        name: float((fast[name] - x).norm() / x.norm())
        for name, x in plain.items()
        if name != "attn"
    }
    if max(differences.values()) > TOLERANCE[dtype]:
        raise RuntimeError(f"the features of both implementations differ: {differences}")
    return differences


# ---- time --------------------------------------------------------------------------------------
def measure_frozen(cfg, args: argparse.Namespace, result: Result) -> None:
    """Times the frozen part without and with caches."""
    from detectron2.modeling import build_backbone
    from random_diffusion import build_plain_backbone
    from timing import Timing, time_interleaved

    image = random_image(args, args.size)
    with tempfile.TemporaryDirectory() as folder:
        plain = build_plain_backbone(cfg).to(args.device)
        compact_cfg = with_cache(cfg, "compact", folder)
        fast, compact = (build_backbone(c).to(args.device) for c in (cfg, compact_cfg))
        caches = open_caches(folder) | {"compact": compact.cache}
        run = partial(run_with_caches, fast, image)
        # everything runs once before it is timed, and fills its cache
        latents = plain.encode(image)
        result.differences = check_equal(plain.run_unet(latents), run(caches), args.dtype)
        run_compact = partial(run_with_caches, compact, image)
        run_compact(caches | {"feature": caches["compact"]})
        times = time_interleaved(
            {
                "plain VAE": lambda: plain.encode(image),
                "plain UNet": lambda: plain.run_unet(latents),
                "none": lambda: run({}),
                "latent": lambda: run({"latent": caches["latent"]}),
                "feature": lambda: run({"feature": caches["feature"]}),
                "compact": lambda: run_compact({"feature": caches["compact"]}),
            },
            *(args.repeats, args.device, args.clock),
            warm_up=False,
        )
        result.cache_mb = {name: cache.bytes / 1e6 for name, cache in caches.items()}
    whole = [a + b for a, b in zip(times["plain VAE"], times["plain UNet"], strict=True)]
    rows = [
        Timing("UNet alone, whole, explicit attention", times["plain UNet"], times["plain UNet"]),
        Timing("UNet alone, here (a)", times["latent"], times["plain UNet"]),
        Timing("VAE and UNet, as in the release", whole, whole),
        Timing("VAE and UNet, here, no cache (b)", times["none"], whole),
        Timing("with the latent cache (c)", times["latent"], whole),
        Timing("with the compact feature cache", times["compact"], whole),
        Timing("with the feature cache (d)", times["feature"], whole),
    ]
    show_rows(f"Frozen part, image of {args.size} x {args.size}", rows, result)
    if args.profile:
        print_profile(lambda: run({"latent": caches["latent"]}), args)


def measure_low(cfg, args: argparse.Namespace, result: Result) -> None:
    """Times the frozen part in bfloat16 against the way of the release in float32."""
    from detectron2.modeling import build_backbone
    from random_diffusion import build_plain_backbone
    from timing import Timing, time_interleaved

    cfg, low_cfg = cfg.clone(), cfg.clone()
    for config, dtype in ((cfg, "float32"), (low_cfg, "bfloat16")):
        config.defrost()
        config.MODEL.DIFFPS.BACKBONE.DTYPE = dtype
    image = random_image(args, args.size)
    plain, low = build_plain_backbone(cfg).to(args.device), build_backbone(low_cfg).to(args.device)
    latents = plain.encode(image)
    check_equal(plain.run_unet(latents), low(image), "bfloat16")
    times = time_interleaved(
        {
            "plain": lambda: plain.run_unet(plain.encode(image)),
            "low": lambda: low(image),
        },
        *(args.repeats, args.device, args.clock),
        warm_up=False,
    )
    rows = [
        Timing("VAE and UNet, as in the release, float32", times["plain"], times["plain"]),
        Timing("VAE and UNet, here, bfloat16", times["low"], times["plain"]),
    ]
    show_rows(f"Both precisions, image of {args.size} x {args.size}", rows, result)


def run_with_caches(backbone, image, caches: dict) -> dict:
    """Returns the features of an image with these caches, by kind, and no others."""
    backbone.latent_cache, backbone.feature_cache = caches.get("latent"), caches.get("feature")
    return backbone(image, keys=["ab" * 20])


def with_cache(cfg, kind: str, folder: str):
    """Returns the config with a cache."""
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.DIFFPS.BACKBONE.CACHE.KIND, cfg.MODEL.DIFFPS.BACKBONE.CACHE.DIR = kind, folder
    # it runs only once, to fill the cache, so its UNet shares the plain weights
    cfg.MODEL.DIFFPS.BACKBONE.WINOGRAD = False
    return cfg


def open_caches(folder: str) -> dict:
    """Returns empty caches of latents and of features."""
    from diffps.cache import TensorCache

    return {kind: TensorCache(folder, kind, {"of": "this"}) for kind in ("latent", "feature")}


def print_profile(function: Callable[[], object], args: argparse.Namespace) -> None:
    """Prints the operators of a call by time."""
    import torch
    from torch.profiler import ProfilerActivity, profile

    activities = [ProfilerActivity.CPU]
    if args.device.startswith("cuda"):
        activities.append(ProfilerActivity.CUDA)
    with torch.no_grad(), profile(activities=activities) as profiler:
        function()
    key = f"self_{args.device.partition(':')[0]}_time_total"
    print(profiler.key_averages().table(sort_by=key, row_limit=15, max_name_column_width=45))


# ---- training step -----------------------------------------------------------------------------
def measure_step(cfg, args: argparse.Namespace, result: Result) -> None:
    """Times forward and backward of the whole model with four sources of the features."""
    import torch
    from detectron2.modeling import build_model
    from detectron2.utils.events import EventStorage
    from diffusion_cost import frozen_teraflops, teraflops
    from random_diffusion import build_plain_backbone
    from timing import Timing, time_interleaved

    torch.manual_seed(0)
    model = build_model(scaled_to_area(cfg, args.size)).train()
    fast, plain = model.backbone, build_plain_backbone(cfg).to(args.device)
    inputs, amp = [training_input(args.size)], args.dtype != "float32"

    def step() -> None:
        with torch.autocast(args.device.partition(":")[0], torch.float16, enabled=amp):
            loss = sum(model(inputs).values())
        loss.backward()
        model.zero_grad(set_to_none=True)

    with tempfile.TemporaryDirectory() as folder, EventStorage():
        caches = open_caches(folder)

        def step_with(backbone, kind: str = "") -> None:
            model.backbone = backbone
            fast.latent_cache = caches.get(kind) if kind == "latent" else None
            fast.feature_cache = caches.get(kind) if kind == "feature" else None
            step()

        variants = {
            "none, as in the release": partial(step_with, plain),
            "none": partial(step_with, fast),
            "latent cache": partial(step_with, fast, "latent"),
            "feature cache": partial(step_with, fast, "feature"),
        }
        times = time_interleaved(variants, args.repeats, args.device, args.clock)
        trainable = teraflops(variants["feature cache"])
    rows = [Timing(name, values, times["none"]) for name, values in times.items()]
    rows[0].against = rows[0].times
    release = times["none, as in the release"]
    rows += [Timing(f"{r.name}, against the release", r.times, release) for r in rows[1:]]
    show_rows(f"Training step, forward and backward, {args.size} x {args.size}", rows, result)
    result.teraflops = frozen_teraflops(args.family, FULL_SIZE)
    result.teraflops["trainable part, both"] = trainable * (FULL_SIZE / args.size) ** 2
    show_flops(result.teraflops)


def scaled_to_area(cfg, size: int):
    """Returns the config with RoIs and proposals in proportion to the area of the image."""
    cfg = cfg.clone()
    cfg.defrost()
    share = min(1.0, (size / FULL_SIZE) ** 2)
    model = cfg.MODEL
    for node, key, least in (
        (model.ROI_HEADS, "BATCH_SIZE_PER_IMAGE", 4),
        (model.DIFFPS.REID, "BATCH_SIZE_PER_IMAGE", 4),
        (model.RPN, "BATCH_SIZE_PER_IMAGE", 16),
        (model.RPN, "PRE_NMS_TOPK_TRAIN", 64),
        (model.RPN, "POST_NMS_TOPK_TRAIN", 32),
    ):
        node[key] = max(least, 2 * round(node[key] * share / 2))
    return cfg


def training_input(size: int) -> dict:
    """Returns a random image with random persons."""
    import torch
    from detectron2.structures import Boxes, Instances

    generator = torch.Generator().manual_seed(0)
    corners = torch.rand(PERSONS_PER_IMAGE, 2, 2, generator=generator).sort(dim=1).values * size
    target = Instances(
        (size, size),
        gt_boxes=Boxes(corners.flatten(1)),
        gt_classes=torch.zeros(PERSONS_PER_IMAGE, dtype=torch.int64),
        gt_pids=torch.arange(PERSONS_PER_IMAGE),
    )
    image = torch.randint(256, (3, size, size), generator=generator, dtype=torch.uint8)
    return {"image": image, "instances": target, "image_digest": "cd" * 20}


# ---- memory ------------------------------------------------------------------------------------
def measure_memory(cfg, args: argparse.Namespace, result: Result) -> None:
    """Measures peaks at several sizes, and extrapolates to 1280 x 1280."""
    from detectron2.modeling import build_backbone
    from peak_memory import peak_bytes
    from random_diffusion import build_plain_backbone

    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.DIFFPS.BACKBONE.WINOGRAD = False  # as in half precision
    plain, fast = (build(cfg).to(args.device) for build in (build_plain_backbone, build_backbone))
    for size in (64, *sorted(set(args.memory_sizes))):
        image = random_image(args, size)
        latents = plain.encode(image)
        with tempfile.TemporaryDirectory() as folder:
            cache = open_caches(folder)["latent"]
            cache.put("ab" * 20, {"moments": latents[0].repeat(2, 1, 1)})  # of the right shape
            for name, run in {
                "VAE": partial(plain.encode, image),
                "UNet, as in the release": partial(plain.run_unet, latents),
                "UNet, here": partial(run_with_caches, fast, image, {"latent": cache}),
            }.items():
                peak = peak_bytes(run, args.device)
                if size > 64:  # in the first calls, libraries allocate memory of their own
                    result.memory.append({"part": name, "size": size, "gb": peak / 1e9})
    show_memory(args, result)


# ---- output ------------------------------------------------------------------------------------
def console():
    """Returns the console for the tables."""
    from rich.console import Console

    return Console(highlight=False, width=None if sys.stdout.isatty() else 120)


def show_rows(title: str, rows: list, result: Result) -> None:
    """Prints times and ratios."""
    from rich.table import Table

    table = Table()
    for name in ("", "ms", "times as fast", "lowest", "highest"):
        table.add_column(name, justify="right" if name else "left")
    for row in rows:
        table.add_row(row.name, f"{row.median:.0f}", *(f"{ratio:.2f}" for ratio in row.ratios))
        values = {"table": title, "median": row.median, "ratios": row.ratios}
        result.rows.append(values | asdict(row))
    out = console()
    out.print(f"\n[bold]{title}, {result.device}, {result.dtype}")
    out.print(table)
    if "Frozen" in title:
        worst = max(result.differences.values())
        out.print(f"Largest relative difference between both features: {worst:.1e}")
        sizes = ", ".join(f"{name} {mb:.2f} MB" for name, mb in result.cache_mb.items())
        out.print(f"Cache entries of this image: {sizes}")


def show_flops(teraflops: dict[str, float]) -> None:
    """Prints the operations of a step at full size and the speed-up that they allow."""
    out = console()
    out.print(f"\n[bold]Operations per image of {FULL_SIZE} x {FULL_SIZE}, in 1e12 (counted)")
    for name, value in teraflops.items():
        out.print(f"  {name:40} {value:6.2f}")
    vae, unet, cut, rest = teraflops.values()
    whole = vae + unet + rest
    for name, cost in (
        ("no cache", vae + cut + rest),
        ("latent cache", cut + rest),
        ("feature cache", rest),
    ):
        frozen = f", frozen part alone {(vae + unet) / (cost - rest):.2f}" if cost > rest else ""
        out.print(f"  whole UNet and VAE against {name}: {whole / cost:.2f} times{frozen}")


def show_memory(args: argparse.Namespace, result: Result) -> None:
    """Prints measurements, curves, and their values at full size."""
    from diffusion_cost import MemoryCurve
    from rich.table import Table

    sizes = sorted({row["size"] for row in result.memory})
    table = Table()
    for name in ("GB", *map(str, sizes), f"{FULL_SIZE}, {args.dtype}", f"{FULL_SIZE}, float16"):
        table.add_column(name, justify="left" if name == "GB" else "right")
    full = {}
    for part in dict.fromkeys(row["part"] for row in result.memory):
        measured = [row["gb"] for row in result.memory if row["part"] == part]
        curve = MemoryCurve.fit(sizes, measured, explicit_attention="release" in part)
        halved = curve.from_float32_to_half() if args.dtype == "float32" else curve
        full[part] = halved.at(FULL_SIZE)
        table.add_row(
            part, *(f"{value:.2f}" for value in [*measured, curve.at(FULL_SIZE), full[part]])
        )
        if "release" in part:
            per_pair = 1e9 * curve.bytes_per_pair
    out = console()
    out.print(f"\n[bold]Peak memory per image beyond weights and image, {result.device}")
    out.print(table)
    vae, release, ours = full.values()
    saved = max(release, vae) - max(ours, vae)
    result.memory.append({"part": "saved", "size": FULL_SIZE, "gb": saved})
    out.print(
        f"The columns of {FULL_SIZE} are extrapolated: a + b cells, and c cells^2 where attention "
        f"is explicit;\nc is {per_pair:.1f} bytes. VAE and UNet run one after the other, so the "
        f"larger counts. [bold]{saved:.1f} GB less[/bold]\nthan the release, whose text encoder, "
        "which stays loaded, is not included."
    )


def benchmark(args: argparse.Namespace) -> None:
    """Measures the selected parts."""
    cfg = build_cfg(args)
    result = Result(args.device, args.dtype, args.size)
    for part, measure in (
        ("frozen", measure_frozen),
        ("low", measure_low),
        ("step", measure_step),
        ("memory", measure_memory),
    ):
        if part in args.parts:
            measure(cfg, args, result)
    if args.json:
        args.json.write_text(json.dumps(asdict(result), indent=2) + "\n")


def main(argv: list[str] | None = None) -> int:
    """Runs the program."""
    return run_program(benchmark, parse_args(argv), log=False)


if __name__ == "__main__":
    sys.exit(main())
