#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Measures the search in a large gallery, or kills the indexing of a small one.

    python benchmarks/benchmark_search.py --persons 1000000   # speed, recall, memory
    python benchmarks/benchmark_search.py --kills 50          # kills at random moments

Embeddings are random: each person has a look (one of N / 1000) and an identity (one of N / 10). An
embedding is sqrt(0.3) look + sqrt(0.4) identity + sqrt(0.3) noise, each a random direction, scaled
to unit length. The similarity is about 0.7 for two images of one person, 0.3 for two persons with
the same look and 0 otherwise. Queries are further images of identities of the gallery. Real
embeddings form clusters, too; without clusters, no approximate index of this kind would help.

The exact search and the reference, a flat index of FAISS, alternate query by query, so that both
see the same load of the machine. Times are wall-clock times, with CPU times in parentheses.

Shape shorthand: N persons, D length of an embedding, Q queries.
"""

import argparse
import os
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import ModuleType

import numpy as np

from person_search.cli import program_parser, run_program

TOP = 10
PER_IMAGE = 5
LOOK, IDENTITY, NOISE = 0.3, 0.4, 0.3
TESTS = Path(__file__).resolve().parents[1] / "tests" / "helpers"


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parses the command line."""
    parser = program_parser(__doc__)
    parser.add_argument(
        "--persons", type=int, metavar="N", default=100_000,
        help="number of persons in the gallery (default: 100000)",
    )  # fmt: skip
    parser.add_argument(
        "--dim", type=int, metavar="D", default=256, help="length of an embedding (default: 256)"
    )
    parser.add_argument(
        "--queries", type=int, metavar="Q", default=100, help="number of queries (default: 100)"
    )
    parser.add_argument(
        "--folder", type=Path, metavar="DIR",
        help="parent of the temporary gallery (default: the system's temporary folder)",
    )  # fmt: skip
    parser.add_argument(
        "--kills", type=int, metavar="N", default=0,
        help="kill the indexing N times and compare the result, instead of measuring the search",
    )  # fmt: skip
    parser.add_argument("--seed", type=int, metavar="N", default=0, help="seed (default: 0)")
    args = parser.parse_args(argv)
    for name, least in (("persons", 1), ("dim", 1), ("queries", 1), ("kills", 0), ("seed", 0)):
        if getattr(args, name) < least:
            parser.error(f"--{name} is {getattr(args, name)}; it must be at least {least}")
    return args


def run_benchmark(args: argparse.Namespace) -> int:
    """Measures or kills in a temporary folder; returns the exit status."""
    folder = Path(tempfile.mkdtemp(prefix="benchmark_search_", dir=args.folder))
    try:
        if args.kills:
            return kill_and_compare(folder, args.kills, args.seed)
        measure(folder, args)
        return 0
    finally:
        shutil.rmtree(folder)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the program and returns the exit status."""
    return run_program(run_benchmark, parse_args(argv), log=False)


# ---- speed, recall, memory -----------------------------------------------------------------------


def measure(folder: Path, args: argparse.Namespace) -> None:
    """Prints one line per result."""
    from timing import timed

    from person_search.search import FolderGallery
    from person_search.search.approximate import build_index

    rng = np.random.default_rng(args.seed)
    raw = 4 * args.persons * args.dim
    print(f"{args.persons} persons x {args.dim}, {args.queries} queries, top {TOP}, "
          f"{os.environ.get('OMP_NUM_THREADS', 'all')} thread(s)")  # fmt: skip
    people = draw_people(rng, args.persons, args.dim)
    seconds, store = timed(write_gallery, folder / "gallery", rng, people, args)
    print(f"written in {seconds[0]:.1f} s")
    queries = draw_embeddings(rng, people, rng.integers(0, len(people[1]), args.queries))

    private = private_memory()
    seconds, gallery = timed(FolderGallery, store)
    extra = private_memory() - private
    print(f"opened in {seconds[0]:.2f} s")
    print(f"memory, exact: {(raw + extra) / raw:.3f} times the vectors "
          f"({extra / 1e6:.0f} MB besides {raw / 1e6:.0f} MB mapped)")  # fmt: skip
    exact = compare_exact(gallery, queries)

    with store.writing():
        seconds, made = timed(build_index, store.folder, store.manifest.segments, gallery.vectors)
    del gallery
    private = private_memory()
    gallery = FolderGallery(store)
    extra = private_memory() - private
    size = (store.folder / made.file).stat().st_size
    print(f"index built in {seconds[0]:.1f} s: {made.cells} cells, {made.probes} probed")
    print(f"memory, approximate: {(size + extra) / raw:.3f} times the vectors "
          f"({extra / 1e6:.0f} MB besides {size / 1e6:.0f} MB mapped)")  # fmt: skip
    found = report_times("approximate search", gallery, queries, "approximate")
    wanted = [{m.box for m in gallery.search(q, TOP, method="exact", per_image=False)}
              for q in queries]  # fmt: skip
    hits = sum(
        len(boxes & {m.box for m in gallery.search(q, TOP, method="approximate", per_image=False)})
        for q, boxes in zip(queries, wanted, strict=True)
    )
    print(f"recall of the top {TOP}: {hits / (TOP * len(queries)):.4f}")
    print(f"approximate search is {exact[0] / found[0]:.1f} times as fast as exact search "
          f"(CPU time: {exact[1] / found[1]:.1f} times)")  # fmt: skip
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    print(f"peak memory of this process, including mapped files: {peak:.2f} GB")


def draw_people(rng: np.random.Generator, persons: int, dim: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the directions of looks and identities; identity i has look i % number of looks."""
    looks, identities = max(persons // 1000, 1), max(persons // 10, 1)
    return directions(rng, looks, dim), directions(rng, identities, dim)


def draw_embeddings(
    rng: np.random.Generator, people: tuple[np.ndarray, np.ndarray], ids: np.ndarray
) -> np.ndarray:
    """Returns one embedding for each of the given identities."""
    looks, identities = people
    noise = directions(rng, len(ids), looks.shape[1])
    feats = LOOK**0.5 * looks[ids % len(looks)]
    feats = feats + IDENTITY**0.5 * identities[ids] + NOISE**0.5 * noise
    return (feats / np.linalg.norm(feats, axis=1, keepdims=True)).astype(np.float32)


def directions(rng: np.random.Generator, count: int, dim: int) -> np.ndarray:
    """Returns random unit vectors (count, dim)."""
    vectors = rng.standard_normal((count, dim), np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def write_gallery(
    folder: Path,
    rng: np.random.Generator,
    people: tuple[np.ndarray, np.ndarray],
    args: argparse.Namespace,
):
    """Writes a gallery with five persons in each image; returns its store."""
    from person_search.search import FolderStore, ModelIdentity
    from person_search.search.segment import Entry

    store = FolderStore.create(folder, args.dim, ModelIdentity("drawn", "0" * 64))
    with store.writing() as run:
        store.add_root(folder.parent)
        (name,) = store.ensure_writers(1)
        with store.writer(name, durable=False) as writer:
            for start in range(0, args.persons, 50_000):
                count = min(50_000, args.persons - start)
                ids = rng.integers(0, len(people[1]), count)
                feats = draw_embeddings(rng, people, ids)
                boxes = rng.uniform(0, 999, (count, 4)).astype(np.float32)  # unique
                scores = rng.uniform(0.5, 1, count)
                for at in range(0, count, PER_IMAGE):
                    rows = slice(at, at + PER_IMAGE)
                    path = f"camera_{start % 7}/image_{start + at:09d}.jpg"
                    entry = Entry(run, 0, path, 1, 1, time=float(start + at), camera="north")
                    writer.append(entry, boxes[rows], scores[rows], feats[rows])
    return store


def compare_exact(gallery, queries: np.ndarray) -> tuple[float, float]:
    """Alternates our exact search and a flat index of FAISS; returns our medians (wall, CPU)."""
    from timing import timed

    from person_search.search.approximate import faiss_module

    flat = faiss_module().IndexFlatIP(queries.shape[1])
    for part in gallery.vectors:
        flat.add(part)
    ours, bare = [], []
    for query in queries[:3]:  # loads the mapped files
        gallery.search(query, TOP, method="exact", per_image=False)
        flat.search(query[None], TOP)
    for query in queries:
        seconds, matches = timed(gallery.search, query, TOP, method="exact", per_image=False)
        ours.append(seconds)
        seconds, (sims, _) = timed(flat.search, query[None], TOP)
        bare.append(seconds)
        assert np.allclose([m.sim for m in matches], sims[0], atol=1e-5), "both find the same"
    print_times("exact search", ours)
    print_times("FAISS flat index", bare)
    (a, b), (c, d) = np.median(ours, axis=0), np.median(bare, axis=0)
    print(f"exact search takes {a / c:.2f} times as long as FAISS's flat index (CPU time: "
          f"{b / d:.2f} times)")  # fmt: skip
    return float(a), float(b)


def report_times(name: str, gallery, queries: np.ndarray, method: str) -> tuple[float, float]:
    """Times all queries; returns the medians (wall, CPU) in seconds."""
    from timing import timed

    times = []
    for query in [*queries[:3], *queries]:
        times.append(timed(gallery.search, query, TOP, method=method, per_image=False)[0])
    print_times(name, times[3:])
    wall, processor = np.median(times[3:], axis=0)
    return float(wall), float(processor)


def print_times(name: str, times: list[tuple[float, float]]) -> None:
    """Prints median and 95th percentile, wall-clock and CPU time."""
    (p50, cpu50), (p95, cpu95) = np.percentile(times, [50, 95], axis=0) * 1000
    print(f"{name}: p50 {p50:.2f} ms ({cpu50:.2f}), p95 {p95:.2f} ms ({cpu95:.2f})")


def private_memory() -> int:
    """Returns the bytes of this process that are not mapped from files (Linux)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return 1024 * int(line.split()[1])
    raise OSError("/proc/self/status has no entry RssAnon; memory is measured on Linux only")


# ---- kills ---------------------------------------------------------------------------------------


def kill_and_compare(folder: Path, kills: int, seed: int) -> int:
    """Kills the indexing with a tiny model at random moments and compares with a complete run.

    Returns:
        The exit status: 0 if the results are equal, else 1.
    """
    import torch
    from detectron2.modeling import build_model
    from timing import timed

    from person_search.search import (
        FolderGallery,
        PersonEmbedder,
        find_sources,
        index_images,
        verify,
    )
    from person_search.search.folder_store import FolderStore

    torch.set_num_threads(1)  # children are forked, without the threads of the parent
    tiny = load_test_module("tiny_model")
    count = 4 * kills
    tiny.write_tiny_dataset(folder / "images", count)
    torch.manual_seed(seed)
    cfg = tiny.tiny_cfg(folder / "run", "unused")
    embedder = PersonEmbedder(
        build_model(cfg), image_format=cfg.INPUT.FORMAT, min_size=96, max_size=200, score_thresh=0.2
    )
    listing = find_sources([folder / "images"])

    def index(name: str):
        return index_images(embedder, folder / name, listing, progress=False)

    (seconds, _), report = timed(index, "complete")
    rng, died, lost = np.random.default_rng(seed), 0, 0
    for _ in range(kills):
        child = os.fork()
        if child == 0:
            try:
                index("killed")
            finally:
                os._exit(0)
        time.sleep(rng.uniform(0, 2.5 * seconds / kills))
        before = read_entries(folder / "killed")
        os.kill(child, signal.SIGKILL)
        died += os.WIFSIGNALED(os.waitpid(child, 0)[1])
        after = read_entries(folder / "killed")
        lost += after[: len(before)] != before
    already = len(read_entries(folder / "killed"))
    index("killed")
    same = read_entries(folder / "killed") == read_entries(folder / "complete")
    arrays = [FolderGallery(FolderStore(folder / name)) for name in ("killed", "complete")]
    # other images shared the calls of the model after a kill, which changes the rounding
    same &= all(
        np.allclose(np.concatenate(getattr(arrays[0], part)),
                    np.concatenate(getattr(arrays[1], part)), rtol=0, atol=tolerance)
        for part, tolerance in (("vectors", 1e-4), ("boxes", 1e-2))
    )  # fmt: skip
    problems = verify(FolderStore(folder / "killed"))
    print(f"{report.images} images with {report.persons} persons; {died} of {kills} runs were "
          f"killed while indexing, with {already} images done after the last kill")  # fmt: skip
    print(f"entries lost after they were visible: {lost}")
    print(f"equal to an uninterrupted run: {'yes' if same else 'NO'}; damage: {problems or 'none'}")
    return int(bool(lost or problems or not same))


def read_entries(folder: Path) -> list[tuple]:
    """Returns the log's entry of each image, without the number of the run; [] without a log."""
    from person_search.search.segment import read_segment

    contents = read_segment(folder / "segments" / "0001")
    return [(e.path, e.size, e.mtime_ns, e.first, e.rows) for e in contents.entries]


def load_test_module(name: str) -> ModuleType:
    """Returns a helper module of the tests; loads it once, because it registers its model."""
    if name not in sys.modules:
        loader = SourceFileLoader(name, str(TESTS / f"{name}.py"))
        module = sys.modules[name] = ModuleType(name)
        module.__file__ = loader.path
        loader.exec_module(module)
    return sys.modules[name]


if __name__ == "__main__":
    sys.exit(main())
