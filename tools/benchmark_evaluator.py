#!/usr/bin/env python
# SPDX-License-Identifier: Apache-2.0
"""Times the evaluator on a random test set of the size of PRW.

    python tools/benchmark_evaluator.py
    python tools/benchmark_evaluator.py --reference 20     # compare with the literal implementation

The literal implementation of the same rules (``tests/evaluation/slow_reference.py``) runs on the
first few queries only; its time for all queries is extrapolated, and its figures on these queries
must equal the fast ones.

Shape shorthand: I frames, M boxes, N detections, Q queries, D length of the embedding.
"""

import argparse
import importlib.util
import time
from dataclasses import replace
from pathlib import Path

import numpy as np

from person_search.evaluation.coco_ap import coco_average_precision
from person_search.evaluation.detection_metrics import evaluate_detection
from person_search.evaluation.predictions import PooledPredictions
from person_search.evaluation.search_metrics import evaluate_search
from person_search.schema import Query, SearchProtocol

REFERENCE = Path(__file__).parents[1] / "tests" / "evaluation" / "slow_reference.py"
FRAME_HEIGHT, FRAME_WIDTH = 1080, 1920
BOXES_PER_FRAME = 4.1
NOISE = 0.9
"""Length of the random part of an embedding, the identity's own part having length 1."""


def main() -> None:
    """Prints the seconds of each part, and the ratio to the literal implementation if asked."""
    args = parse_args()
    rng = np.random.default_rng(args.seed)
    gt_boxes, gt_offsets, gt_pids = make_ground_truth(rng, args.frames, args.pids)
    protocol, query_feats, directions = make_queries(
        rng, gt_boxes, gt_offsets, gt_pids, args.queries, args.dim
    )
    predictions = make_predictions(
        rng, gt_boxes, gt_offsets, gt_pids, directions, query_feats, args.detections
    )
    print(
        f"{args.frames} frames, {len(gt_boxes)} boxes, {len(predictions.boxes)} detections, "
        f"{args.queries} queries, {len(protocol.positive_query)} positives, D = {args.dim}"
    )
    arrays = (gt_boxes, gt_offsets, predictions.boxes, predictions.scores, predictions.det_offsets)
    seconds, detection = timed(evaluate_detection, *arrays)
    total = report("detection AP, recall", seconds, f"AP {detection['AP']:.2f}")
    seconds, ap50 = timed(coco_average_precision, *arrays)
    total += report("COCO AP50", seconds, f"AP50 {ap50:.2f}")
    seconds, (scores,) = timed(evaluate_search, predictions, [protocol])
    figures = scores.summary()
    total += report("search", seconds, f"mAP {figures['mAP']:.2f} top1 {figures['top1']:.2f}")
    report("all", total, "")
    if args.reference:
        compare_with_reference(predictions, protocol, args.reference, seconds, args.queries)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Times the person search evaluator.")
    parser.add_argument("--frames", type=int, default=6112, help="test frames (I)")
    parser.add_argument("--queries", type=int, default=2057, help="queries (Q)")
    parser.add_argument("--pids", type=int, default=450, help="identities")
    parser.add_argument("--detections", type=float, default=8.0, help="mean number per frame")
    parser.add_argument("--dim", type=int, default=256, help="length of the embedding (D)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--reference", type=int, default=0, metavar="N", help="queries for the literal version"
    )
    return parser.parse_args()


def make_ground_truth(
    rng: np.random.Generator, num_frames: int, num_pids: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Boxes (M, 4), offsets (I + 1,) and identities (M,) with -1 for a third of them."""
    counts = rng.poisson(BOXES_PER_FRAME, num_frames)
    offsets = np.concatenate([[0], np.cumsum(counts)])
    heights = rng.uniform(60, 400, offsets[-1])
    sides = np.stack([heights * rng.uniform(0.3, 0.5, len(heights)), heights], axis=1)
    corners = rng.uniform(0, 1, sides.shape) * (np.array([FRAME_WIDTH, FRAME_HEIGHT]) - sides)
    pids = rng.integers(0, num_pids, offsets[-1])
    pids[rng.random(len(pids)) < 0.35] = -1
    frames = np.repeat(np.arange(num_frames), counts)
    _, first = np.unique(np.stack([frames, pids]), axis=1, return_index=True)
    repeated = np.setdiff1d(np.arange(len(pids)), first)
    pids[repeated] = -1  # no identity twice in a frame
    return np.concatenate([corners, corners + sides], axis=1), offsets, pids


def make_queries(
    rng: np.random.Generator,
    boxes: np.ndarray,
    offsets: np.ndarray,
    pids: np.ndarray,
    num_queries: int,
    dim: int,
) -> tuple[SearchProtocol, np.ndarray, np.ndarray]:
    """A protocol like PRW's (all frames but the own one), query embeddings and identity axes."""
    frames = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
    chosen = rng.choice(np.flatnonzero(pids >= 0), num_queries, replace=False)
    queries = [
        Query(i, int(frames[row]), tuple(boxes[row]), int(pids[row]))
        for i, row in enumerate(chosen)
    ]
    rows = [np.flatnonzero((pids == q.person_id) & (frames != q.image_id)) for q in queries]
    members = np.concatenate(rows)
    directions = unit(rng.standard_normal((pids.max() + 1, dim)))
    protocol = SearchProtocol(
        name="all",
        queries=queries,
        gallery=None,
        positive_query=np.repeat(np.arange(num_queries), [len(r) for r in rows]),
        positive_image=frames[members].astype(np.int32),
        positive_box=boxes[members].astype(np.float32),
        excluded=np.array([[q.image_id] for q in queries], np.int32),
    )
    noise = NOISE * unit(rng.standard_normal((num_queries, dim)))
    return protocol, unit(directions[pids[chosen]] + noise).astype(np.float32), directions


def make_predictions(
    rng: np.random.Generator,
    boxes: np.ndarray,
    offsets: np.ndarray,
    pids: np.ndarray,
    directions: np.ndarray,
    query_feats: np.ndarray,
    per_frame: float,
) -> PooledPredictions:
    """Finds 90 % of the people with boxes a little off, and fills up with false detections."""
    num_frames, dim = len(offsets) - 1, directions.shape[1]
    frames = np.repeat(np.arange(num_frames), np.diff(offsets))
    found = np.flatnonzero(rng.random(len(boxes)) < 0.9)
    num_false = max(int(num_frames * per_frame) - len(found), 0)
    false_corners = rng.uniform(0, 800, (num_false, 2))
    false_boxes = np.concatenate([false_corners, false_corners + [80, 200]], axis=1)
    det_frames = np.concatenate([frames[found], rng.integers(0, num_frames, num_false)])
    det_boxes = np.concatenate([boxes[found] + rng.normal(0, 4, (len(found), 4)), false_boxes])
    feats = unit(rng.standard_normal((len(det_boxes), dim)))
    known = pids[found] >= 0
    axes = directions[pids[found][known]]
    feats[: len(found)][known] = unit(axes + NOISE * feats[: len(found)][known])
    order = np.argsort(det_frames, kind="stable")
    counts = np.bincount(det_frames, minlength=num_frames)
    return PooledPredictions(
        image_ids=np.arange(num_frames),
        det_offsets=np.concatenate([[0], np.cumsum(counts)]),
        boxes=det_boxes[order].astype(np.float32),
        scores=rng.uniform(0.5, 1, len(order)).astype(np.float32),
        reid_feats=feats[order].astype(np.float32),
        query_ids=np.arange(len(query_feats)),
        query_feats=query_feats,
    )


def compare_with_reference(
    predictions: PooledPredictions,
    protocol: SearchProtocol,
    num_queries: int,
    fast_seconds: float,
    all_queries: int,
) -> None:
    """Runs the literal implementation on the first queries and prints ratio and difference."""
    reference = load_reference()
    rows = protocol.positive_query < num_queries
    part = replace(
        protocol,
        queries=protocol.queries[:num_queries],
        positive_query=protocol.positive_query[rows],
        positive_image=protocol.positive_image[rows],
        positive_box=protocol.positive_box[rows],
        excluded=protocol.excluded[:num_queries],
    )
    p = predictions
    dets = {}
    for i, image_id in enumerate(p.image_ids.tolist()):
        own = slice(p.det_offsets[i], p.det_offsets[i + 1])
        columns = [values[own].tolist() for values in (p.boxes, p.scores, p.reid_feats)]
        dets[image_id] = reference.ImageDetections(*columns)
    feats = dict(zip(p.query_ids.tolist(), p.query_feats.tolist(), strict=True))
    seconds, slow = timed(reference.search_reference, dets, feats, part)
    fast = evaluate_search(predictions, [part])[0].summary()
    difference = max(abs(fast[name] - slow[name]) for name in slow)
    estimate = seconds / num_queries * all_queries
    report(f"plain loops, {num_queries} queries", seconds, f"all would take {estimate:.0f} s")
    print(
        f"search is {estimate / fast_seconds:.0f} times faster than loops that reuse nothing; "
        f"difference {difference:.1e} points"
    )


def load_reference():
    """Loads the literal implementation from the tests, which are not a package one can import."""
    spec = importlib.util.spec_from_file_location("slow_reference", REFERENCE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def timed(function, *args):
    """Returns the wall-clock seconds and the result; prints CPU time where the machine is busy."""
    wall, cpu = time.perf_counter(), time.process_time()
    result = function(*args)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    if wall > 1.5 * cpu:
        print(f"(the machine is busy: {cpu:.2f} s of CPU time in {wall:.2f} s)")
    return wall, result


def report(name: str, seconds: float, figures: str) -> float:
    print(f"{name:<24} {seconds:8.2f} s   {figures}", flush=True)
    return seconds


if __name__ == "__main__":
    main()
