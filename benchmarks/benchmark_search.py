#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Times the search in a large gallery, and kills the making of a small one.

    python benchmarks/benchmark_search.py --persons 1000000          # speed, recall, memory
    python benchmarks/benchmark_search.py --kills 50                 # kills at random moments

The embeddings are drawn: each person has a look (one of N / 1000) and an identity (one of N / 10);
an embedding is sqrt(0.3) look + sqrt(0.4) identity + sqrt(0.3) noise, each a random direction, and
then of unit length. So two images of a person have a similarity of about 0.7, two people of the
same look 0.3, any others 0. Queries are further images of identities of the gallery. Real
embeddings have clusters, too; without any, no index of this kind would help.

Exact search and FAISS's flat index take turns, query by query, so that both see the same load of
the machine. Times are of the wall clock, with the time of the processor in brackets.

Shape shorthand: N persons, D length of an embedding, Q queries.
"""

import argparse
import importlib.util
import os
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

TOP = 10
PER_IMAGE = 5
LOOK, IDENTITY, NOISE = 0.3, 0.4, 0.3
TESTS = Path(__file__).resolve().parents[1] / "tests" / "helpers"


def main() -> None:
    """Runs what is asked for."""
    args = parse_args()
    folder = Path(tempfile.mkdtemp(prefix="benchmark_search_", dir=args.folder))
    try:
        if args.kills:
            kill_and_compare(folder, args.kills, args.seed)
        else:
            measure(folder, args)
    finally:
        shutil.rmtree(folder)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--persons", type=int, default=100_000, help="in the gallery (N)")
    parser.add_argument("--dim", type=int, default=256, help="length of the embedding (D)")
    parser.add_argument("--queries", type=int, default=100, help="number of queries (Q)")
    parser.add_argument("--folder", type=Path, help="where the gallery is made for the time being")
    parser.add_argument("--kills", type=int, default=0, help="instead: kill indexing so many times")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


# ---- speed, recall, memory -----------------------------------------------------------------------


def measure(folder: Path, args: argparse.Namespace) -> None:
    """Prints one line per figure."""
    from person_search.search import Gallery
    from person_search.search.approximate import build_index

    rng = np.random.default_rng(args.seed)
    raw = 4 * args.persons * args.dim
    print(f"{args.persons} persons x {args.dim}, {args.queries} queries, {TOP} best, "
          f"{os.environ.get('OMP_NUM_THREADS', 'all')} thread(s)")  # fmt: skip
    people = draw_people(rng, args.persons, args.dim)
    seconds, store = timed(lambda: write_gallery(folder / "gallery", rng, people, args))
    print(f"written in {seconds:.1f} s")
    queries = draw_embeddings(rng, people, rng.integers(0, len(people[1]), args.queries))

    private = private_memory()
    seconds, gallery = timed(lambda: Gallery(store))
    extra = private_memory() - private
    print(f"opened in {seconds:.2f} s")
    print(f"memory, exact: {(raw + extra) / raw:.3f} x the vectors "
          f"({extra / 1e6:.0f} MB beside {raw / 1e6:.0f} MB mapped)")  # fmt: skip
    exact = compare_exact(gallery, queries)

    with store.writing():
        seconds, made = timed(
            lambda: build_index(store.folder, store.manifest.segments, gallery.vectors)
        )
    del gallery
    private = private_memory()
    gallery = Gallery(store)
    extra = private_memory() - private
    size = (store.folder / made.file).stat().st_size
    print(f"index built in {seconds:.1f} s: {made.cells} cells, {made.probes} looked into")
    print(f"memory, approximate: {(size + extra) / raw:.3f} x the vectors "
          f"({extra / 1e6:.0f} MB beside {size / 1e6:.0f} MB mapped)")  # fmt: skip
    found = report_times("approximate search", gallery, queries, "approximate")
    wanted = [{m.box for m in gallery.search(q, TOP, method="exact", per_image=False)}
              for q in queries]  # fmt: skip
    hits = sum(
        len(boxes & {m.box for m in gallery.search(q, TOP, method="approximate", per_image=False)})
        for q, boxes in zip(queries, wanted, strict=True)
    )
    print(f"recall of the {TOP} best: {hits / (TOP * len(queries)):.4f}")
    print(f"approximate search is {exact[0] / found[0]:.1f} times as fast as exact search "
          f"(processor: {exact[1] / found[1]:.1f} times)")  # fmt: skip
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    print(f"peak memory of this program, mapped files included: {peak:.2f} GB")


def draw_people(rng: np.random.Generator, persons: int, dim: int) -> tuple[np.ndarray, np.ndarray]:
    """Looks and identities as directions; identity i has look i % number of looks."""
    looks, identities = max(persons // 1000, 1), max(persons // 10, 1)
    return directions(rng, looks, dim), directions(rng, identities, dim)


def draw_embeddings(
    rng: np.random.Generator, people: tuple[np.ndarray, np.ndarray], ids: np.ndarray
) -> np.ndarray:
    """One embedding for each of the given identities."""
    looks, identities = people
    noise = directions(rng, len(ids), looks.shape[1])
    feats = LOOK**0.5 * looks[ids % len(looks)]
    feats = feats + IDENTITY**0.5 * identities[ids] + NOISE**0.5 * noise
    return (feats / np.linalg.norm(feats, axis=1, keepdims=True)).astype(np.float32)


def directions(rng: np.random.Generator, count: int, dim: int) -> np.ndarray:
    """Random unit vectors."""
    vectors = rng.standard_normal((count, dim), np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def write_gallery(
    folder: Path,
    rng: np.random.Generator,
    people: tuple[np.ndarray, np.ndarray],
    args: argparse.Namespace,
):
    """A gallery with five persons in each image, and its store."""
    from person_search.search import GalleryStore, ModelIdentity
    from person_search.search.segment import Entry

    store = GalleryStore.create(folder, args.dim, ModelIdentity("drawn", "0" * 64))
    with store.writing() as run:
        store.add_root(folder.parent)
        (name,) = store.ensure_segments(1)
        with store.segment_writer(name, durable=False) as writer:
            for start in range(0, args.persons, 50_000):
                count = min(50_000, args.persons - start)
                ids = rng.integers(0, len(people[1]), count)
                feats = draw_embeddings(rng, people, ids)
                boxes = rng.uniform(0, 999, (count, 4)).astype(np.float32)  # tells persons apart
                scores = rng.uniform(0.5, 1, count)
                for at in range(0, count, PER_IMAGE):
                    rows = slice(at, at + PER_IMAGE)
                    path = f"camera_{start % 7}/picture_{start + at:09d}.jpg"
                    entry = Entry(run, 0, path, 1, 1, time=float(start + at), camera="north")
                    writer.append(entry, boxes[rows], scores[rows], feats[rows])
    return store


def compare_exact(gallery, queries: np.ndarray) -> tuple[float, float]:
    """Ours and FAISS's flat index in turns; returns the medians of ours (wall, processor)."""
    from person_search.search.approximate import faiss_module

    flat = faiss_module().IndexFlatIP(queries.shape[1])
    for part in gallery.vectors:
        flat.add(part)
    ours, bare = [], []
    for query in queries[:3]:  # into the memory
        gallery.search(query, TOP, method="exact", per_image=False)
        flat.search(query[None], TOP)
    for query in queries:
        time_of, matches = timed_twice(
            lambda query=query: gallery.search(query, TOP, method="exact", per_image=False)
        )
        ours.append(time_of)
        time_of, (sims, _) = timed_twice(lambda query=query: flat.search(query[None], TOP))
        bare.append(time_of)
        assert np.allclose([m.sim for m in matches], sims[0], atol=1e-5), "both find the same"
    print_times("exact search", ours)
    print_times("FAISS flat index", bare)
    (a, b), (c, d) = np.median(ours, axis=0), np.median(bare, axis=0)
    print(f"exact search takes {a / c:.2f} times as long as FAISS's flat index (processor: "
          f"{b / d:.2f} times)")  # fmt: skip
    return float(a), float(b)


def report_times(name: str, gallery, queries: np.ndarray, method: str) -> tuple[float, float]:
    """Times all queries; returns the medians (wall, processor)."""
    times = []
    for query in [*queries[:3], *queries]:
        times.append(
            timed_twice(
                lambda query=query: gallery.search(query, TOP, method=method, per_image=False)
            )[0]
        )
    print_times(name, times[3:])
    wall, processor = np.median(times[3:], axis=0)
    return float(wall), float(processor)


def print_times(name: str, times: list[tuple[float, float]]) -> None:
    (p50, cpu50), (p95, cpu95) = np.percentile(times, [50, 95], axis=0) * 1000
    print(f"{name}: p50 {p50:.2f} ms ({cpu50:.2f}), p95 {p95:.2f} ms ({cpu95:.2f})")


def timed(work: Callable):
    start = time.perf_counter()
    result = work()
    return time.perf_counter() - start, result


def timed_twice(work: Callable):
    """((wall, processor) seconds, result)."""
    wall, processor = time.perf_counter(), time.process_time()
    result = work()
    return (time.perf_counter() - wall, time.process_time() - processor), result


def private_memory() -> int:
    """Bytes of this process that are not mapped from files."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return 1024 * int(line.split()[1])
    raise OSError("/proc/self/status does not name RssAnon; memory is measured on Linux only.")


# ---- kills ---------------------------------------------------------------------------------------


def kill_and_compare(folder: Path, kills: int, seed: int) -> None:
    """Kills indexing with a real tiny model at random moments, and compares with a whole run."""
    import torch
    from detectron2.modeling import build_model

    from person_search.search import Gallery, PersonEmbedder, find_sources, index_images, verify
    from person_search.search.store import GalleryStore

    torch.set_num_threads(1)  # children are forked: threads of the parent would be missing there
    tiny = load_test_module("tiny_model")
    count = 4 * kills
    tiny.write_tiny_dataset(folder / "pictures", count)
    torch.manual_seed(seed)
    cfg = tiny.tiny_cfg(folder / "run", "unused")
    embedder = PersonEmbedder(
        build_model(cfg), image_format=cfg.INPUT.FORMAT, min_size=96, max_size=200, score_thresh=0.2
    )
    listing = find_sources([folder / "pictures"])

    def index(name: str):
        return index_images(embedder, folder / name, listing, progress=False)

    seconds, report = timed(lambda: index("whole"))
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
    same = read_entries(folder / "killed") == read_entries(folder / "whole")
    arrays = [Gallery(GalleryStore(folder / name)) for name in ("killed", "whole")]
    same &= all(
        np.array_equal(np.concatenate(getattr(arrays[0], part)),
                       np.concatenate(getattr(arrays[1], part)))
        for part in ("vectors", "boxes")
    )  # fmt: skip
    problems = verify(GalleryStore(folder / "killed"))
    print(f"{report.pictures} images with {report.persons} persons; {died} of {kills} runs were "
          f"killed at work, with {already} images done after the last kill")  # fmt: skip
    print(f"entries lost after they had been seen: {lost}")
    print(f"equal to an uninterrupted run: {'yes' if same else 'NO'}; damage: {problems or 'none'}")
    if lost or problems or not same:
        sys.exit(1)


def read_entries(folder: Path) -> list[tuple]:
    """What the log says of each image, without the number of the run; [] before there is one."""
    from person_search.search.segment import read_segment

    contents = read_segment(folder / "segments" / "0001")
    return [(e.path, e.size, e.mtime_ns, e.first, e.rows, e.crc) for e in contents.entries]


def load_test_module(name: str):
    """A module of the tests; loaded once, since it registers its model."""
    if name in sys.modules:
        return sys.modules[name]
    path = TESTS / f"{name}.py"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} is no Python module")
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


if __name__ == "__main__":
    main()
