#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Measures the indexing of JPEGs of 1920 x 1080, compared with the plain way.

    OMP_NUM_THREADS=2 python benchmarks/benchmark_index.py --weights model_final_ema.pth

The plain way is one image at a time, decoded by Pillow, in a model as it is in training
(TEST.PRECISION eager) that has all threads. Each measurement runs in a process of its own, because
allocator settings last for the life of a process; the variants run in turns. Loading the model does
not count. On a busy machine, CPU time (of all threads) is the reliable column.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from unittest import mock

from person_search.cli import program_parser, run_program

CONFIG = "configs/PSDiff/tiny/psdiff_slim_synthetic.yaml"
PLAIN = "plain"
SCENES = 8
"""Number of different images; files are copies of them."""


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parses the command line."""
    parser = program_parser(__doc__)
    add = parser.add_argument
    add("--config-file", default=CONFIG, help=f"config of the model (default: {CONFIG})")
    add("--weights", default="", help="checkpoint (default: MODEL.WEIGHTS)")
    add("--onnx", default="", help="the model as exported by person-search export, also measured")
    add("--precision", nargs="+", default=["float32", "bfloat16"], help="values of TEST.PRECISION")
    add("--images", type=int, default=64, help="number of images (default: 64)")
    add("--size", type=int, nargs=2, default=[1920, 1080], help="their width and height")
    add("--threads", type=int, default=2, help="threads of PyTorch (default: 2)")
    add("--repeats", type=int, default=3, help="repeats of all variants (default: 3)")
    args = parser.parse_args(argv)
    if min(args.images, args.threads, args.repeats) < 1:
        parser.error("--images, --threads and --repeats must be at least 1")
    return args


def write_images(folder: Path, count: int, size: tuple[int, int]) -> None:
    """Writes drawn scenes in another size, with the noise of a camera, as JPEGs."""
    import numpy as np
    from PIL import Image

    from person_search.data.synthetic import SyntheticConfig, write_cuhk_sysu

    few = SyntheticConfig(
        train_images=8, train_ids=4, test_images=SCENES, test_ids=4, gallery_sizes=(), quirks=False
    )
    write_cuhk_sysu(folder / "scenes", few, progress=False)
    rng = np.random.default_rng(0)
    for index, path in enumerate(sorted((folder / "scenes").rglob("s*.jpg"))[:SCENES]):
        with Image.open(path) as scene:
            pixels = np.asarray(scene.resize(size, Image.Resampling.BICUBIC), np.float32)
        noisy = pixels + rng.normal(0, 4, pixels.shape)
        encoded = folder / "images" / f"{index:05d}.jpg"
        encoded.parent.mkdir(exist_ok=True)
        Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(encoded, quality=90)
        for copy in range(index + SCENES, count, SCENES):
            (folder / "images" / f"{copy:05d}.jpg").write_bytes(encoded.read_bytes())
    for path in sorted((folder / "images").iterdir())[count:]:
        path.unlink()


def no_decoder(*_: object) -> None:
    """Leaves the decoding to Pillow."""


def measure(variant: str, args: argparse.Namespace, folder: Path) -> tuple[float, float]:
    """Indexes all images in this process; returns wall-clock and CPU seconds."""
    import tempfile

    import torch
    from timing import timed

    from person_search.config import build_config
    from person_search.data import image_io
    from person_search.search import PersonEmbedder, find_sources, indexing
    from person_search.search.indexing import IndexOptions, index_images
    from person_search.search.sources import Listing

    torch.set_num_threads(args.threads)
    plain = variant == PLAIN
    precision = "eager" if plain or variant == "onnx" else variant
    cfg = build_config(args.config_file, ["TEST.PRECISION", precision])
    weights = args.onnx if variant == "onnx" else args.weights
    embedder = PersonEmbedder.from_config(cfg, weights)
    workers, batch = (1, 1) if plain else (indexing.MAX_WORKERS, indexing.MAX_BATCH)
    listing = find_sources([folder / "images"])
    with (
        mock.patch.multiple(indexing, MAX_WORKERS=workers, MAX_BATCH=batch),
        mock.patch.object(image_io, "decode_jpeg", no_decoder if plain else image_io.decode_jpeg),
        tempfile.TemporaryDirectory() as gallery,
    ):
        # the first calls are slower: kernels are generated and memory is requested
        few = Listing(listing.sources[: 2 * args.threads * indexing.MAX_BATCH])
        index_images(embedder, Path(gallery) / "warm", few, IndexOptions(), False)
        seconds, report = timed(
            index_images, embedder, Path(gallery) / "g", listing, IndexOptions(), False
        )
    assert report.images == args.images
    return seconds


def benchmark(args: argparse.Namespace) -> None:
    """Times the variants and prints the table."""
    import multiprocessing
    import tempfile

    from rich.console import Console
    from rich.table import Table
    from timing import Timing

    variants = [PLAIN, *args.precision, *(["onnx"] if args.onnx else [])]
    times: dict[str, list[tuple[float, float]]] = {variant: [] for variant in variants}
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        write_images(Path(folder), args.images, tuple(args.size))
        for repeat in range(args.repeats):
            turn = repeat % len(variants)
            for variant in variants[turn:] + variants[:turn]:
                with context.Pool(1) as process:
                    times[variant].append(process.apply(measure, (variant, args, Path(folder))))
    title = (
        f"Indexing {args.images} images of {args.size[0]} x {args.size[1]}, {args.threads} threads"
    )
    table = Table(title=title)
    for column in ("variant", "images / s", "x plain", "images / CPU s", "x plain"):
        table.add_column(column, justify="left" if column == "variant" else "right")
    for variant, measured in times.items():
        cells = []
        for clock in (0, 1):
            mine, plain = ([row[clock] for row in rows] for rows in (measured, times[PLAIN]))
            timing = Timing(variant, mine, plain)
            middle, low, high = timing.ratios
            cells += [f"{args.images / timing.median:.1f}", f"{middle:.2f} ({low:.2f}-{high:.2f})"]
        table.add_row(variant, *cells)
    Console(width=110, highlight=False).print(table)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the benchmark; returns the exit status."""
    return run_program(benchmark, parse_args(argv), log=False)


if __name__ == "__main__":
    sys.exit(main())
