#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Measures time and memory of the evaluator on random test sets of the size of CUHK-SYSU and PRW.

    python benchmarks/benchmark_evaluator.py                       # all parts
    python benchmarks/benchmark_evaluator.py --parts prw --dim 512
    python benchmarks/benchmark_evaluator.py --parts conversion    # TestG4000.mat to arrays

Parts, each in a process of its own:

* cuhk_sysu: detection, the six gallery sizes and the two subsets from one set of predictions
* prw: detection, regular and multi-view gallery, each plain and with CBGM
* conversion: writes a protocol file of the real size (2,900 galleries of 4,000 images) to a
  temporary folder, as MATLAB does, and converts it to arrays. Takes minutes and a few hundred MB.

The reference of the search is a plain loop in the same run: one product for each query and gallery
image, then a sort per query. It runs on a few queries, which must get equal results; its time is
extrapolated to all queries. The reference of the cached arrays is the conversion. Seconds are
wall-clock time, followed by CPU time. Peak memory includes Python and all libraries.
"""

import argparse
import resource
import subprocess
import sys
import tempfile
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from person_search.cli import program_parser, run_program

PARTS = ("cuhk_sysu", "prw", "conversion")
CUHK_SYSU_SIZES = {f"g{size}": size for size in (100, 50, 500, 1000, 2000, 4000)}
SUBSETS = {"occlusion": 187, "low_resolution": 290}
NUM_QUERIES, LARGEST_GALLERY = 2900, 4000
MOST_POSITIVES = 13
"""Maximum number of positive images of a query; a gallery must hold all of them."""


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parses the command line."""
    parser = program_parser(__doc__)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS),
                        help="parts to run (default: all)")  # fmt: skip
    parser.add_argument("--dim", type=int, metavar="D", default=256,
                        help="length of an embedding (default: 256)")  # fmt: skip
    parser.add_argument("--seed", type=int, metavar="N", default=0, help="seed (default: 0)")
    parser.add_argument("--plain-queries", type=int, metavar="N", default=10,
                        help="number of queries for the plain loops (default: 10)")  # fmt: skip
    parser.add_argument("--shrink", type=int, metavar="N", default=1,
                        help="divide all sizes by N for a trial, at most 100")  # fmt: skip
    args = parser.parse_args(argv)
    for name, least in (("dim", 1), ("seed", 0), ("plain_queries", 1), ("shrink", 1)):
        value = getattr(args, name)
        if value < least or (name == "shrink" and value > 100):
            allowed = f"at least {least}" if name != "shrink" else "from 1 to 100"
            parser.error(f"--{name.replace('_', '-')} is {value}; it must be {allowed}")
    return args


def run_parts(args: argparse.Namespace) -> int:
    """Runs each part in a process of its own, so that its peak memory is its own."""
    if len(args.parts) > 1:
        options = ["--dim", args.dim, "--plain-queries", args.plain_queries, "--seed", args.seed]
        options += ["--shrink", args.shrink, *(["--traceback"] if args.traceback else [])]
        for part in args.parts:
            command = [sys.executable, __file__, "--parts", part, *map(str, options)]
            code = subprocess.run(command).returncode
            if code:
                return code
        return 0
    (part,) = args.parts
    {"cuhk_sysu": time_cuhk_sysu, "prw": time_prw, "conversion": time_conversion}[part](args)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"{part + ': peak memory':<44} {peak:8.0f} MiB\n", flush=True)
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the program and returns the exit status."""
    return run_program(run_parts, parse_args(argv), log=False)


def time_cuhk_sysu(args: argparse.Namespace) -> None:
    """Times the evaluation of a test set like CUHK-SYSU."""
    from simulation import listed_protocols, simulate_cuhk_sysu

    from person_search.evaluation import SearchOptions

    s = args.shrink
    data = simulate_cuhk_sysu(
        args.seed, num_images=6978 // s, num_boxes=40871 // s, num_queries=2900 // s, dim=args.dim
    )
    sizes = CUHK_SYSU_SIZES | dict.fromkeys(SUBSETS, 100)
    sizes = {name: max(size // s, MOST_POSITIVES) for name, size in sizes.items()}
    counts = {name: count // s for name, count in SUBSETS.items()}
    protocols = listed_protocols(data, sizes, counts)
    describe("CUHK-SYSU", data)
    total = time_detection(data)
    plain = SearchOptions()
    title = "search, 6 gallery sizes and 2 subsets"
    seconds, scores = time_search(title, data, [(p, plain) for p in protocols])
    for protocol, one in zip(protocols, scores, strict=True):
        print(f"    {protocol.name:<20} {summary_of(one)}")
    report("cuhk_sysu: all but the optional", (total[0] + seconds[0], total[1] + seconds[1]))
    for variant in ("cbgm", "cws", "gt"):
        jobs = [(p, plain.with_variant(variant)) for p in protocols]
        time_search(f"the same search, {variant} instead", data, jobs)
    compare_with_plain_loops(data, protocols, scores, args.plain_queries, seconds)


def time_prw(args: argparse.Namespace) -> None:
    """Times the evaluation of a test set like PRW."""
    from simulation import open_protocols, simulate_prw

    from person_search.evaluation import SearchOptions

    s = args.shrink
    data = simulate_prw(
        args.seed, num_images=6112 // s, num_boxes=25062 // s, num_labeled=16344 // s,
        num_pids=450 // s, num_queries=2057 // s, dim=args.dim,
    )  # fmt: skip
    describe("PRW", data)
    total = time_detection(data)
    plain = SearchOptions(cbgm_k1=30, cbgm_k2=4)
    protocols = open_protocols(data)
    jobs = [(p, options) for p in protocols for options in (plain, plain.with_variant("cbgm"))]
    seconds, scores = time_search("search, regular, multi-view, CBGM of both", data, jobs)
    for (protocol, options), one in zip(jobs, scores, strict=True):
        print(f"    {protocol.name + ' ' + options.matching:<20} {summary_of(one)}")
    report("prw: all but the optional", (total[0] + seconds[0], total[1] + seconds[1]))
    seconds, scores = time_search(
        "search, regular and multi-view alone", data, [(p, plain) for p in protocols]
    )
    compare_with_plain_loops(data, protocols, scores, args.plain_queries, seconds)


def describe(name: str, data) -> None:
    """Prints the sizes of a test set."""
    p = data.predictions
    print(
        f"{name}: {len(p.image_ids)} images, {len(data.boxes)} boxes, {len(p.boxes)} detections, "
        f"{len(data.query_rows)} queries, D = {p.embed_dim}"
    )


def time_detection(data) -> tuple[float, float]:
    """Prints detection metrics; returns wall-clock and CPU seconds."""
    from timing import timed

    from person_search.evaluation.coco_ap import coco_average_precision, coco_summary
    from person_search.evaluation.detection_metrics import evaluate_detection

    p = data.predictions
    arrays = (data.boxes, data.offsets, p.boxes, p.scores, p.det_offsets)
    own, metrics = timed(evaluate_detection, *arrays)
    report("detection AP, recall", own, f"AP {metrics['AP']:.2f}")
    coco, ap50 = timed(coco_average_precision, *arrays)
    report("COCO AP50", coco, f"AP50 {ap50:.2f}")
    sizes, metrics = timed(coco_summary, *arrays)
    report("COCO AP, 10 thresholds, by size (optional)", sizes, f"AP {metrics['AP']:.2f}")
    return own[0] + coco[0], own[1] + coco[1]


def time_search(title: str, data, jobs: list) -> tuple[tuple[float, float], list]:
    """Times the searches of several protocols; returns their seconds and scores."""
    from timing import timed

    from person_search.evaluation.search_metrics import evaluate_searches

    seconds, scores = timed(evaluate_searches, data.predictions, jobs)
    report(title, seconds, summary_of(scores[0]))
    return seconds, scores


def summary_of(scores) -> str:
    """Returns mAP and top-1 accuracy as text."""
    metrics = scores.summary((1,))
    return f"mAP {metrics['mAP']:.2f} top1 {metrics['top1']:.2f}"


def compare_with_plain_loops(
    data, protocols: list, scores: list, num_queries: int, fast: tuple[float, float]
) -> None:
    """Runs plain loops on the first queries of each protocol and prints ratio and difference."""
    from timing import timed

    wall, cpu, whole, difference = 0.0, 0.0, 0.0, 0.0
    for protocol, one in zip(protocols, scores, strict=True):
        count = min(num_queries, len(protocol.queries))
        seconds, slow = timed(plain_search, data.predictions, protocol, count)
        wall, cpu = wall + seconds[0], cpu + seconds[1]
        whole += seconds[1] / count * len(protocol.queries)
        difference = max(difference, np.abs(one.ap[:count] - slow).max())
    note = f"{whole:.0f} s of CPU time, extrapolated to all"
    report(f"plain loops, {num_queries} queries of each protocol", (wall, cpu), note)
    print(
        f"the evaluator is {whole / max(fast[1], 1e-9):.1f} times as fast as plain loops (CPU "
        f"time); maximum difference of an AP {difference:.1e}"
    )


def plain_search(p, protocol, num_queries: int) -> np.ndarray:
    """Returns the average precision of the first queries, by a loop over gallery images."""
    from person_search.evaluation.box_metrics import adaptive_iou_threshold, aligned_iou

    aps = []
    for number in range(num_queries):
        feat = p.query_feats[protocol.queries[number].query_id].astype(np.float64)
        rows = np.flatnonzero(protocol.positive_query == number)
        box_of = {int(protocol.positive_image[r]): protocol.positive_box[r] for r in rows}
        if protocol.gallery is not None:
            images = [i for i in protocol.gallery[number].tolist() if i >= 0]
        else:
            excluded = set(protocol.excluded_images(number).tolist())
            images = [i for i in range(len(p.image_ids)) if i not in excluded]
        sims, right = [], []
        for image in images:
            dets = slice(p.det_offsets[image], p.det_offsets[image + 1])
            own = (p.reid_feats[dets].astype(np.float64) @ feat).astype(np.float32).tolist()
            flags = [False] * len(own)
            if image in box_of:
                box = box_of[image]
                iou = aligned_iou(box, p.boxes[dets])
                threshold = adaptive_iou_threshold(box[None].astype(np.float64))[0]
                for det in np.argsort(-np.array(own), kind="stable"):
                    if iou[det] >= threshold:
                        flags[det] = True
                        break
            sims.extend(own)
            right.extend(flags)
        order = sorted(range(len(sims)), key=lambda i: -sims[i])
        found, total = 0, 0.0
        for rank, entry in enumerate(order, start=1):
            if right[entry]:
                found += 1
                total += found / rank
        aps.append(total / max(len(box_of), 1))
    return np.array(aps)


def time_conversion(args: argparse.Namespace) -> None:
    """Times the first and the second reading of the largest protocol file."""
    from timing import timed

    from person_search.data.datasets.cuhk_sysu_files import protocol_path, read_protocol

    num_queries, size = NUM_QUERIES // args.shrink, LARGEST_GALLERY // args.shrink
    with tempfile.TemporaryDirectory() as folder:
        path = protocol_path(folder, f"g{size}")
        path.parent.mkdir(parents=True)
        seconds, raw = timed(write_protocol_file, path, f"TestG{size}", num_queries, size)
        note = (
            f"{path.stat().st_size / 2**20:.0f} MiB compressed, {raw / 2**20:.0f} MiB uncompressed"
        )
        report(f"writing {path.name}", seconds, note)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        first, arrays = timed(read_protocol, folder, f"g{size}")
        assert arrays["gallery"].shape == (num_queries, size)
        report("conversion to arrays", first, f"peak before: {before:.0f} MiB")
        seconds, again = timed(read_protocol, folder, f"g{size}")
        assert all((arrays[name] == again[name]).all() for name in arrays)
        kept = sum(values.nbytes for values in again.values()) / 2**20
        report("from the cache", seconds, f"{kept:.0f} MiB")
        ratio = first[1] / max(seconds[1], 1e-9)
        print(f"the cache is {ratio:.1f} times as fast as the conversion (CPU time)")


def write_protocol_file(path: Path, variable: str, num_queries: int, size: int) -> int:
    """Writes a protocol file as MATLAB does (format 5, compressed), one query at a time.

    Each gallery has two positives; its other images are listed without a box.

    Args:
        path: File to write.
        variable: Name of the variable.
        num_queries: Number of queries.
        size: Number of images in each gallery.

    Returns:
        Bytes of the variable before compression.
    """
    rng = np.random.default_rng(0)
    names = [f"s{number:05d}.jpg".encode() for number in range(6978)]
    box = matrix(9, (1, 4), part(2, bytes([9, 8, 70, 180])))
    flag, nothing = matrix(9, (1, 1), part(2, b"\1")), matrix(6, (1, 0), part(9, b""))
    located, empty = box + flag, nothing + nothing
    characters = [matrix(4, (1, len(name)), part(16, name)) for name in names]

    def element(number: int) -> bytes:
        images = rng.permutation(len(names))[: size + 1]
        person = matrix(4, (1, 6), part(16, f"p{number:05d}".encode()))
        query = structure(QUERY_FIELDS, 1, characters[images[0]] + located + person)
        entries = [characters[i] + (located if n < 2 else empty) for n, i in enumerate(images[1:])]
        return query + structure(QUERY_FIELDS[:3], size, b"".join(entries))

    # all elements have the same length, so that the header can be written first
    length = len(element(0))
    head = structure_head(("Query", "Gallery"), num_queries, variable.encode())
    raw = len(head) + num_queries * length
    packer = zlib.compressobj(1)
    with open(path, "wb") as file:
        file.write(b"MATLAB 5.0 MAT-file".ljust(124) + b"\0\1IM" + bytes(8))
        file.write(packer.compress(np.array([14, raw], "<u4").tobytes() + head))
        for number in range(num_queries):
            file.write(packer.compress(element(number)))
        file.write(packer.flush())
        packed = file.tell() - 136
        file.seek(128)
        file.write(np.array([15, packed], "<u4").tobytes())
    return raw


QUERY_FIELDS = ("imname", "idlocate", "ishard", "idname")


def part(kind: int, content: bytes) -> bytes:
    """Returns an element of a MATLAB file: type, length, content, padded to eight bytes."""
    tag = np.array([kind, len(content)], "<u4").tobytes()
    return tag + content + bytes(-len(content) % 8)


def matrix(kind: int, shape: tuple[int, int], content: bytes, name: bytes = b"") -> bytes:
    """Returns a matrix of a MATLAB class."""
    flags = part(6, np.array([kind, 0], "<u4").tobytes())
    return part(14, flags + part(5, np.array(shape, "<i4").tobytes()) + part(1, name) + content)


def structure_head(fields: tuple[str, ...], count: int, name: bytes = b"") -> bytes:
    """Returns the header of a (1, count) struct array."""
    names = b"".join(field.encode().ljust(32, b"\0") for field in fields)
    width = np.array([4 << 16 | 5, 32], "<u4").tobytes()
    flags = part(6, np.array([2, 0], "<u4").tobytes())
    sizes = part(5, np.array([1, count], "<i4").tobytes())
    return flags + sizes + part(1, name) + width + part(1, names)


def structure(fields: tuple[str, ...], count: int, elements: bytes) -> bytes:
    """Returns a (1, count) struct array with the given elements."""
    return part(14, structure_head(fields, count) + elements)


def report(name: str, seconds: tuple[float, float], note: str = "") -> None:
    """Prints one row: name, wall-clock and CPU seconds, note."""
    print(f"{name:<44} {seconds[0]:8.2f} s  ({seconds[1]:.2f} s CPU)   {note}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
