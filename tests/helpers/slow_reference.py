# SPDX-License-Identifier: Apache-2.0
"""Literal implementation of the evaluation rules, the reference for the fast one.

Simple on purpose: images are visited one by one, boxes are compared one by one, and every ranked
list is sorted. Hundreds of times slower than the fast implementation.
"""

import itertools
import math
from dataclasses import dataclass

import numpy as np

from person_search.schema import Query, SearchProtocol


@dataclass
class ImageDetections:
    """Detections of one image as parallel lists."""

    boxes: list[list[float]]
    scores: list[float]
    feats: list[list[float]]


def iou(a: list[float], b: list[float]) -> float:
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    intersection = max(width, 0.0) * max(height, 0.0)
    union = area(a) + area(b) - intersection
    return intersection / union if union > 0 else 0.0


def area(box: list[float]) -> float:
    return max(box[2] - box[0], 0.0) * max(box[3] - box[1], 0.0)


def similarity_of(a: list[float], b: list[float], weight: float) -> float:
    """Dot product; rounded to float32 as the last step, so that equal vectors are equal."""
    return float(np.float32(math.fsum(x * y for x, y in zip(a, b, strict=True)) * weight))


def ranked_ap(entries: list[tuple[float, bool]], num_gt: int) -> float:
    """Average precision times recall: step through the distinct values from the highest down."""
    total, seen, seen_positive = 0.0, 0, 0
    for value in sorted({value for value, _ in entries}, reverse=True):
        step = [positive for entry_value, positive in entries if entry_value == value]
        seen += len(step)
        seen_positive += sum(step)
        total += sum(step) * (seen_positive / seen)
    return total / num_gt if num_gt else 0.0


def detection_reference(
    gt: dict[int, list[list[float]]], dets: dict[int, ImageDetections], iou_thresh: float = 0.5
) -> dict[str, float]:
    entries, num_gt = [], 0
    for image_id, found in dets.items():
        truth = gt[image_id]
        num_gt += len(truth)
        best_det = []
        for g in truth:
            best, best_iou = None, -1.0
            for d, box in enumerate(found.boxes):
                if iou(g, box) > best_iou:
                    best, best_iou = d, iou(g, box)
            best_det.append(best)
        for d, box in enumerate(found.boxes):
            best, best_iou = None, -1.0
            for g, truth_box in enumerate(truth):
                if iou(truth_box, box) > best_iou:
                    best, best_iou = g, iou(truth_box, box)
            positive = best is not None and best_iou >= iou_thresh and best_det[best] == d
            entries.append((found.scores[d], positive))
    num_tp = sum(positive for _, positive in entries)
    return {
        "AP": 100 * ranked_ap(entries, num_gt),
        "recall": 100 * num_tp / num_gt,
        "precision": 100 * num_tp / len(entries) if entries else 0.0,
    }


def search_reference(
    dets: dict[int, ImageDetections],
    query_feats: dict[int, list[float]],
    protocol: SearchProtocol,
    similarity: str = "cosine",
    duplicates: str = "seqnet",
    query_source: str = "gt_box",
    topk: tuple[int, ...] = (1, 5, 10),
    cbgm: tuple[int, int, str] | None = None,
    overlap: tuple[str, float] = ("adaptive", 0.5),
) -> dict[str, float]:
    """``dets`` is in the order of the data set; ``cbgm``: k1, k2, mode; ``overlap``: rule, IoU."""
    aps, recalls, hits = [], [], {k: [] for k in topk}
    for number, query in enumerate(protocol.queries):
        feat, feat_det = query_feats.get(query.query_id), None
        if query_source == "best_det":
            feat, best_iou = None, -1.0
            own = dets[query.image_id]
            for d, (box, candidate) in enumerate(zip(own.boxes, own.feats, strict=True)):
                if iou(list(query.box), box) > best_iou:
                    feat, feat_det, best_iou = candidate, d, iou(list(query.box), box)
        ap, recall, flags = 0.0, 0.0, []
        if feat is not None:
            context = None
            if cbgm is not None:
                k1, k2, mode = cbgm
                context = (k1, mode, companions(dets[query.image_id], query, k2, feat_det))
            entries, num_gt, num_tp = rank_gallery(
                dets, feat, protocol, number, similarity, duplicates, context, overlap
            )
            ap = ranked_ap(entries, num_gt)
            recall = num_tp / num_gt if num_gt else 0.0
            # sorted() is stable: equal values keep the order of gallery and detections
            flags = [positive for _, positive in sorted(entries, key=lambda e: -e[0])]
        aps.append(ap)
        recalls.append(recall)
        for k in topk:
            hits[k].append(any(flags[:k]))
    metrics = {"mAP": aps, **{f"top{k}": hits[k] for k in topk}, "recall": recalls}
    return {name: 100 * sum(values) / len(values) for name, values in metrics.items()}


def rank_gallery(
    dets: dict[int, ImageDetections],
    feat: list[float],
    protocol: SearchProtocol,
    number: int,
    similarity: str,
    duplicates: str,
    context: tuple[int, str, list[list[float]]] | None = None,
    overlap: tuple[str, float] = ("adaptive", 0.5),
) -> tuple[list[tuple[float, bool]], int, int]:
    """(similarity, is positive) of every entry in gallery order; num_gt; images with a positive."""
    if protocol.gallery is None:
        excluded = list(protocol.excluded[number]) if protocol.excluded.size else []
        gallery = [image_id for image_id in dets if image_id not in excluded]
    else:
        gallery = [int(image_id) for image_id in protocol.gallery[number] if image_id != -1]
    person_boxes: dict[int, list[list[float]]] = {}
    for p in range(len(protocol.positive_query)):
        if protocol.positive_query[p] == number:
            box = [float(v) for v in protocol.positive_box[p]]
            person_boxes.setdefault(int(protocol.positive_image[p]), []).append(box)
    all_sims = {}
    for image_id in gallery:
        if image_id not in all_sims:
            found = dets[image_id]
            weights = found.scores if similarity == "cws" else [1.0] * len(found.scores)
            all_sims[image_id] = [
                similarity_of(feat, f, w) for f, w in zip(found.feats, weights, strict=True)
            ]
    if context is not None:
        apply_cbgm(all_sims, dets, context, similarity)
    entries, visited, num_gt, num_tp = [], set(), 0, 0
    for image_id in gallery:
        if image_id in visited:
            continue
        visited.add(image_id)
        boxes = person_boxes.get(image_id, [])
        num_gt += min(len(boxes), 1) if duplicates == "strict" else len(boxes)
        found = dets[image_id]
        sims = all_sims[image_id]
        positive = None
        if boxes:
            w, h = boxes[0][2] - boxes[0][0], boxes[0][3] - boxes[0][1]
            rule, threshold = overlap
            if rule == "adaptive":
                threshold = min(threshold, (w * h) / ((w + 10) * (h + 10)))
            for d in sorted(range(len(sims)), key=lambda d: -sims[d]):
                if iou(found.boxes[d], boxes[0]) >= threshold:
                    positive = d
                    break
        num_tp += positive is not None
        entries.extend((sim, d == positive) for d, sim in enumerate(sims))
    return entries, num_gt, num_tp


def companions(
    found: ImageDetections, query: Query, k2: int, query_det: int | None
) -> list[list[float]]:
    """Embeddings of the other persons in the query image, the most certain first."""
    others = [
        d
        for d, box in enumerate(found.boxes)
        if iou(list(query.box), box) <= 0.5 and d != query_det
    ]
    others.sort(key=lambda d: -found.scores[d])
    return [found.feats[d] for d in others[: k2 - 1]]


def apply_cbgm(
    all_sims: dict[int, list[float]],
    dets: dict[int, ImageDetections],
    context: tuple[int, str, list[list[float]]],
    similarity: str,
) -> None:
    """Changes the similarities in place; every possible matching is tried."""
    k1, mode, others = context
    ranked = sorted(
        ((sim, image_id) for image_id, sims in all_sims.items() for sim in sims),
        key=lambda entry: -entry[0],
    )
    for image_id in {image_id for _, image_id in ranked[:k1]}:
        found, sims = dets[image_id], all_sims[image_id]
        weights = found.scores if similarity == "cws" else [1.0] * len(found.scores)
        rows = [sims] + [
            [similarity_of(o, f, w) for f, w in zip(found.feats, weights, strict=True)]
            for o in others
        ]
        pairs = best_matching(rows)
        for row, column in pairs:
            if row == 0:
                largest = max(rows[r][c] for r, c in pairs)
                sims[column] = largest if mode == "max" else (largest + sims[column]) / 2


def best_matching(weights: list[list[float]]) -> list[tuple[int, int]]:
    """The complete matching of greatest total weight, by brute force: (row, column) pairs."""
    rows, columns = range(len(weights)), range(len(weights[0]))
    if len(rows) <= len(columns):
        choices = itertools.permutations(columns, len(rows))
        options = [list(zip(rows, choice, strict=True)) for choice in choices]
    else:
        choices = itertools.permutations(rows, len(columns))
        options = [list(zip(choice, columns, strict=True)) for choice in choices]
    return max(options, key=lambda pairs: math.fsum(weights[r][c] for r, c in pairs))
