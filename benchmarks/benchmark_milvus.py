#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Measures a gallery in Milvus against one in a folder, or kills its writer and its server.

    python benchmarks/benchmark_milvus.py --persons 200000                  # loading, recall, time
    python benchmarks/benchmark_milvus.py --kills 20 --server-kills 10      # at random moments

The server is that of the wheel ``milvus``, started on loopback for this run (Linux). Embeddings are
those of ``benchmark_search.py``. The exact search of the folder and the search of the server
alternate query by query, so that both see the same load of the machine.

Shape shorthand: N persons, D length of an embedding, Q queries.
"""

import argparse
import multiprocessing
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
from benchmark_search import PER_IMAGE, TOP, draw_embeddings, draw_people, load_test_module

from person_search.cli import program_parser, run_program
from person_search.search.entries import Entry

KINDS = ("IVF_FLAT", "HNSW")
WRITERS = 2
RARE = 100
"""One of so many images is of the camera that the filter selects."""
TOGETHER = 8
"""Steps of a run with kills that are acknowledged together."""
STEPS_PER_KILL = 30


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parses the command line."""
    parser = program_parser(__doc__)
    for name, default, what in (
        ("persons", 200_000, "persons in the gallery"),
        ("dim", 256, "length of an embedding"),
        ("queries", 100, "queries"),
        ("kills", 0, "kills of a writer, instead of measuring"),
        ("server-kills", 0, "kills of the server, instead of measuring"),
        ("seed", 0, "seed"),
    ):
        parser.add_argument(
            f"--{name}", type=int, metavar="N", default=default, help=f"{what} (default: {default})"
        )
    parser.add_argument(
        "--folder", type=Path, metavar="DIR",
        help="parent of the temporary galleries (default: the system's temporary folder)",
    )  # fmt: skip
    args = parser.parse_args(argv)
    least = {"persons": WRITERS * PER_IMAGE * RARE, "dim": 1, "queries": 1}
    for name in ("persons", "dim", "queries", "kills", "server_kills", "seed"):
        if getattr(args, name) < least.get(name, 0):
            option = name.replace("_", "-")
            parser.error(
                f"--{option} is {getattr(args, name)}; it must be at least {least.get(name, 0)}"
            )
    return args


def run_benchmark(args: argparse.Namespace) -> int:
    """Measures or kills in a temporary folder; returns the exit status."""
    folder = Path(tempfile.mkdtemp(prefix="benchmark_milvus_", dir=args.folder))
    try:
        (folder / "server").mkdir()
        with load_test_module("milvus_process").MilvusProcess(folder / "server") as server:
            with suppress(OSError):  # without root, a program forwards each request
                server.enter()
            if args.kills or args.server_kills:
                return kill_and_compare(folder, server, args)
            measure(folder, f"milvus://127.0.0.1:{server.port}/measured", args)
            return 0
    finally:
        shutil.rmtree(folder)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the program and returns the exit status."""
    return run_program(run_benchmark, parse_args(argv), log=False)


def processes():
    """Returns the way to start processes: forked from one that has no connection to a server."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["pymilvus", "person_search.search.milvus_store"])
    return context


# ---- loading, recall, time -----------------------------------------------------------------------


def measure(folder: Path, location: str, args: argparse.Namespace) -> None:
    """Prints one line per result."""
    from person_search.search import Gallery, GalleryStore, SearchFilter, milvus_index

    print(f"{args.persons} persons x {args.dim}, {args.queries} queries, top {TOP}, load of the "
          f"machine {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")  # fmt: skip
    for part in range(WRITERS):
        write_part(folder / "gallery", part, args)
    open_store(location, args.dim).close()
    context = processes()
    barrier, spans = context.Barrier(WRITERS), context.Queue()
    writers = [
        context.Process(target=write_part, args=(location, part, args, barrier, spans))
        for part in range(WRITERS)
    ]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    if any(writer.exitcode for writer in writers):
        raise RuntimeError("a writer failed; see above")
    starts, ends = zip(*(spans.get() for _ in writers), strict=True)
    seconds = max(ends) - min(starts)
    print(f"{WRITERS} writers: {args.persons / seconds:.0f} persons a second ({seconds:.1f} s)")

    rng = np.random.default_rng((args.seed, WRITERS))
    people = draw_people(np.random.default_rng(args.seed), args.persons, args.dim)
    queries = draw_embeddings(rng, people, rng.integers(0, len(people[1]), args.queries))
    exact, store = Gallery.open(folder / "gallery"), GalleryStore.open(location)
    for kind in KINDS:
        milvus_index.SIZES = ((kind, 0),)
        start = time.perf_counter()
        made = store.build_index()
        print(f"{made}; built in {time.perf_counter() - start:.1f} s")
        gallery = store.gallery()
        for name, wanted in (
            ("without a filter", SearchFilter()),
            (f"filter of 1/{RARE}", SearchFilter(cameras=frozenset({"rare"}))),
        ):
            compare(f"{kind}, {name}", exact, gallery, queries, wanted)


def compare(name: str, exact, gallery, queries: np.ndarray, wanted) -> None:
    """Alternates both searches."""
    from timing import timed

    times, hits, total = [], 0, 0
    for number, query in enumerate([*queries[:3], *queries]):
        options = {"wanted": wanted, "per_image": False}
        (ours, _), expected = timed(exact.search, query, TOP, method="exact", **options)
        (theirs, _), found = timed(gallery.search, query, TOP, **options)
        if number >= 3:
            times.append((1e3 * ours, 1e3 * theirs))
            total += len(expected)
            hits += len({m.box for m in expected} & {m.box for m in found})  # boxes are unique
    ours, theirs = np.median(times, axis=0)
    print(f"{name}: recall of the top {TOP} {hits / total:.4f}; p50 {theirs:.2f} ms, exact search "
          f"of the folder {ours:.2f} ms, ratio {theirs / ours:.2f}")  # fmt: skip


def open_store(location: object, dim: int):
    """Opens or creates a gallery."""
    from person_search.search import GalleryStore, ModelIdentity

    return GalleryStore.open_or_create(location, dim, ModelIdentity("drawn", "0" * 64))


def write_part(location: object, part: int, args: argparse.Namespace, barrier=None, spans=None):
    """Writes the images of one writer, starting together with the others."""
    rng = np.random.default_rng((args.seed, part))
    people = draw_people(np.random.default_rng(args.seed), args.persons, args.dim)
    count = args.persons // WRITERS // PER_IMAGE
    feats = draw_embeddings(rng, people, rng.integers(0, len(people[1]), count * PER_IMAGE))
    boxes = rng.uniform(0, 999, (len(feats), 4)).astype(np.float32)
    store = open_store(location, args.dim)
    with store.writing() as run:
        root = store.add_root(Path("/nowhere"))
        name = store.ensure_writers(WRITERS)[part]
        with store.writer(name, durable=False) as writer:
            if barrier:
                barrier.wait()
            start = time.time()
            for i in range(count):
                rows = slice(i * PER_IMAGE, (i + 1) * PER_IMAGE)
                camera = "rare" if i % RARE == 0 else "north"
                entry = Entry(run, root, f"{part}_{i}.jpg", 1, 1, time=float(i), camera=camera)
                writer.append(entry, boxes[rows], np.ones(PER_IMAGE), feats[rows])
    if spans:
        spans.put((start, time.time()))
    store.close()


# ---- kills ---------------------------------------------------------------------------------------


def kill_and_compare(folder: Path, server, args: argparse.Namespace) -> int:
    """Kills writer and server at random moments, and compares with an uninterrupted run.

    Images are added, replaced and removed. A writer notes how many steps the gallery has
    acknowledged; the next one goes on after them.

    Returns:
        The exit status: 0 if nothing is lost and the galleries are equal, else 1.
    """
    from person_search.search import compact, verify

    rng = np.random.default_rng(args.seed)
    order = rng.permutation([False] * args.kills + [True] * args.server_kills).tolist()
    count = STEPS_PER_KILL * len(order)
    steps = [(int(rng.integers(count // 2)), rng.random() < 0.1) for _ in range(count)]
    address = f"milvus://127.0.0.1:{server.port}"
    complete, killed = f"{address}/complete", f"{address}/killed"
    start = time.monotonic()
    follow(complete, steps, folder / "complete", args.dim)
    seconds = time.monotonic() - start
    context = processes()

    def started():
        ready = context.Event()
        writer = context.Process(
            target=follow, args=(killed, steps, folder / "killed", args.dim, ready)
        )
        writer.start()
        while writer.is_alive() and not ready.wait(0.1):
            pass
        return writer

    writer, died, server_died, lost = started(), 0, 0, 0
    for is_server in order:
        while not writer.is_alive() and acknowledged(folder / "killed") < count:
            writer = started()  # the one before was killed, or has given up
        time.sleep(rng.uniform(0, 1.6 * seconds / len(order)))
        if not writer.is_alive():
            break
        if is_server:
            server.kill()
            server.start()
            server_died += 1
        else:
            writer.kill()
            writer.join()
            died += 1
        with paused(writer):
            lost += missing(killed, steps, acknowledged(folder / "killed"), args.dim)
    already = acknowledged(folder / "killed")
    writer.join()
    while acknowledged(folder / "killed") < count:
        writer = started()
        writer.join()
    seen = [contents(location, args.dim) for location in (killed, complete)]
    store = open_store(killed, args.dim)
    problems = [text for text in verify(store) if "persons" in text]
    left = compact(store).dropped_rows
    store.close()
    same = seen[0] == seen[1] == contents(killed, args.dim)
    print(f"{count} steps; a writer was killed {died} times and the server {server_died} times, "
          f"with {already} steps done after the last kill")  # fmt: skip
    print(f"images lost or older after they were acknowledged: {lost}")
    print(f"rows of killed writers removed by 'compact': {left}")
    print(f"equal to an uninterrupted run: {'yes' if same else 'NO'}; damage: {problems or 'none'}")
    return int(bool(lost or problems or not same))


def follow(location: str, steps: Sequence, noted: Path, dim: int, ready=None) -> None:
    """Takes the steps that are not acknowledged yet, a few in each commit."""
    from person_search.search.errors import GalleryError

    try:
        store = open_store(location, dim)
        with store.writing() as run, store.writer("0") as writer, open(noted, "ab", 0) as notes:
            root = store.add_root(Path("/nowhere"))
            if ready:
                ready.set()
            for number in range(acknowledged(noted), len(steps)):
                image, removed = steps[number]
                entry = Entry(run, root, f"{image}.jpg", number + 1, 1, camera=f"c{image % 3}")
                if removed:
                    writer.append(replace(entry, removed=True))
                else:
                    rng = np.random.default_rng(number)
                    boxes = rng.uniform(0, 999, (int(rng.integers(5)), 4)).astype(np.float32)
                    feats = rng.normal(size=(len(boxes), dim)).astype(np.float32)
                    feats /= np.linalg.norm(feats, axis=1, keepdims=True)
                    writer.append(entry, boxes, np.ones(len(boxes)), feats)
                if (number + 1) % TOGETHER == 0 or number + 1 == len(steps):
                    writer.flush()
                    notes.write(b"%d\n" % (number + 1))
        store.close()
    except GalleryError as e:  # the server has been away for too long
        sys.exit(f"writer: {e}")


@contextmanager
def paused(writer) -> Iterator[None]:
    """Stops a writer: a server that has just started shows older versions of what it replaces."""
    if writer.is_alive():
        os.kill(writer.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        if writer.is_alive():
            os.kill(writer.pid, signal.SIGCONT)


def acknowledged(noted: Path) -> int:
    """Returns the number of steps that are acknowledged."""
    lines = noted.read_text().split() if noted.exists() else []
    return int(lines[-1]) if lines else 0


def missing(location: str, steps: Sequence, done: int, dim: int) -> int:
    """Returns the number of images that are older than what has been acknowledged."""
    store = open_store(location, dim)
    sizes = {entry.path: entry.size for entry in store.entries()}
    store.close()
    allowed: dict[int, set[int]] = {}
    for number, (image, removed) in enumerate(steps):
        state = 0 if removed else number + 1
        later = allowed.get(image, {0}) if number >= done else set()  # may be done already
        allowed[image] = later | {state}
    return sum(sizes.get(f"{image}.jpg", 0) not in states for image, states in allowed.items())


def contents(location: str, dim: int) -> tuple[list, list]:
    """Returns the images with their persons, and what a search for everything finds."""
    store = open_store(location, dim)
    rows = sorted((e.path, e.size, e.crc, boxes.tobytes(), feats.tobytes())
                  for e, boxes, feats in store.persons())  # fmt: skip
    query = np.eye(dim, dtype=np.float32)[0]
    matches = store.gallery().search(query, None, per_image=False, every_frame=True)
    store.close()
    return rows, sorted((m.path, m.box) for m in matches)


if __name__ == "__main__":
    sys.exit(main())
