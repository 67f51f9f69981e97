# SPDX-License-Identifier: Apache-2.0
"""Random test sets with predictions, of the size of CUHK-SYSU and PRW.

Persons are boxes at random positions, an embedding is a direction per identity plus noise, and a
detector finds 90 % of the persons with slightly shifted boxes. Needs NumPy only.

Shape shorthand: I images, M boxes, N detections, Q queries, D length of the embedding.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from person_search.evaluation.predictions import PooledPredictions
from person_search.schema import UNLABELED_PID, Query, SearchProtocol

FOUND_SHARE = 0.9
NOISE = 1.6
"""Length of the random part of an embedding; the part of the identity has length 1."""
NUM_CAMERAS = 6


@dataclass(frozen=True)
class SimulatedSet:
    """A test set and predictions for it.

    Attributes:
        boxes: Ground truth boxes (M, 4) XYXY; image i has the rows ``offsets[i]:offsets[i + 1]``.
        offsets: First row of each image (I + 1,).
        pids: Identities (M,), ``UNLABELED_PID`` for unknown persons.
        query_rows: Row of the box of each query (Q,).
        predictions: Predictions, including embeddings of queries and ground truth boxes.
    """

    boxes: np.ndarray
    offsets: np.ndarray
    pids: np.ndarray
    query_rows: np.ndarray
    predictions: PooledPredictions

    @property
    def images(self) -> np.ndarray:
        """Image of each box (M,)."""
        return np.repeat(np.arange(len(self.offsets) - 1), np.diff(self.offsets))

    def queries(self) -> list[Query]:
        """Returns one query per entry of ``query_rows``, numbered by position."""
        images = self.images
        return [
            Query(number, int(images[row]), tuple(self.boxes[row].tolist()), int(self.pids[row]))
            for number, row in enumerate(self.query_rows)
        ]


def simulate_cuhk_sysu(
    seed: int = 0,
    *,
    num_images: int = 6978,
    num_boxes: int = 40871,
    num_queries: int = 2900,
    dim: int = 256,
    det_per_image: float = 6.0,
) -> SimulatedSet:
    """Simulates one query per identity, which is in 1 to 13 further images (1.9 on average)."""
    rng = np.random.default_rng(seed)
    times = 2 + np.minimum(rng.poisson(0.88, num_queries), 12)
    people = np.repeat(np.arange(num_queries), times)
    # a start and a step that does not divide the number of images: each image is another one
    starts = np.repeat(rng.integers(0, num_images, num_queries), times)
    place = np.arange(len(people)) - np.repeat(np.cumsum(times) - times, times)
    images = (starts + place * 13) % num_images
    return _simulate(rng, images, people, place == 0, num_images, num_boxes, dim, det_per_image)


def simulate_prw(
    seed: int = 0,
    *,
    num_images: int = 6112,
    num_boxes: int = 25062,
    num_labeled: int = 16344,
    num_pids: int = 450,
    num_queries: int = 2057,
    dim: int = 256,
    det_per_image: float = 8.0,
) -> SimulatedSet:
    """Simulates about 36 boxes and several queries per identity."""
    rng = np.random.default_rng(seed)
    people = rng.integers(0, num_pids, num_labeled)
    images = rng.integers(0, num_images, num_labeled)
    _, once = np.unique(people * num_images + images, return_index=True)  # at most once per image
    people, images = people[once], images[once]
    is_query = np.zeros(len(people), bool)
    is_query[rng.choice(len(people), num_queries, replace=False)] = True
    return _simulate(rng, images, people, is_query, num_images, num_boxes, dim, det_per_image)


def _simulate(
    rng: np.random.Generator,
    images: np.ndarray,
    people: np.ndarray,
    is_query: np.ndarray,
    num_images: int,
    num_boxes: int,
    dim: int,
    det_per_image: float,
) -> SimulatedSet:
    """Places the labeled persons and adds unlabeled ones."""
    num_others = max(num_boxes - len(images), 0)
    images = np.concatenate([images, rng.integers(0, num_images, num_others)])
    pids = np.concatenate([people, np.full(num_others, UNLABELED_PID)])
    is_query = np.concatenate([is_query, np.zeros(num_others, bool)])
    order = np.argsort(images, kind="stable")
    images, pids, is_query = images[order], pids[order], is_query[order]
    heights = rng.uniform(60, 400, len(images))
    sides = np.stack([heights * rng.uniform(0.3, 0.5, len(heights)), heights], axis=1)
    corners = rng.uniform(0, 1, sides.shape) * (np.array([800, 600]) - sides)
    boxes = np.concatenate([corners, corners + sides], axis=1)
    directions = unit(rng.standard_normal((people.max() + 1, dim)))
    feats = _embed(rng, pids, directions)
    query_rows = np.flatnonzero(is_query)
    query_rows = query_rows[np.argsort(pids[query_rows], kind="stable")]
    found = _detect(rng, boxes, images, pids, directions, num_images, det_per_image)
    offsets = np.searchsorted(images, np.arange(num_images + 1))
    predictions = PooledPredictions(
        **found,
        query_ids=np.arange(len(query_rows)),
        query_feats=feats[query_rows],
        gt_offsets=offsets,
        gt_boxes=boxes.astype(np.float32),
        gt_feats=feats,
    )
    return SimulatedSet(boxes, offsets, pids, query_rows, predictions)


def _embed(rng: np.random.Generator, pids: np.ndarray, directions: np.ndarray) -> np.ndarray:
    """Returns unit embeddings (n, D) float32; those of unknown persons are all different."""
    feats = unit(rng.standard_normal((len(pids), directions.shape[1]), np.float32))
    known = pids >= 0
    feats[known] = unit(directions[pids[known]] + NOISE * feats[known])
    return feats


def _detect(
    rng: np.random.Generator,
    boxes: np.ndarray,
    images: np.ndarray,
    pids: np.ndarray,
    directions: np.ndarray,
    num_images: int,
    per_image: float,
) -> dict[str, Any]:
    """Returns shifted boxes for most persons, and false detections up to the wanted number."""
    found = np.flatnonzero(rng.random(len(boxes)) < FOUND_SHARE)
    num_false = max(int(num_images * per_image) - len(found), 0)
    corners = rng.uniform(0, 500, (num_false, 2))
    det_images = np.concatenate([images[found], rng.integers(0, num_images, num_false)])
    moved = boxes[found] + rng.normal(0, 3, (len(found), 4))
    det_boxes = np.concatenate([moved, np.concatenate([corners, corners + [80, 200]], axis=1)])
    det_pids = np.concatenate([pids[found], np.full(num_false, UNLABELED_PID)])
    order = np.argsort(det_images, kind="stable")
    return {
        "image_ids": np.arange(num_images),
        "det_offsets": np.searchsorted(det_images[order], np.arange(num_images + 1)),
        "boxes": det_boxes[order].astype(np.float32),
        "scores": rng.uniform(0.5, 1, len(order)).astype(np.float32),
        "reid_feats": _embed(rng, det_pids[order], directions),
    }


def listed_protocols(
    data: SimulatedSet, sizes: dict[str, int], num_queries: dict[str, int], seed: int = 0
) -> list[SearchProtocol]:
    """Returns protocols with listed galleries as in CUHK-SYSU; a larger one holds the smaller.

    Args:
        data: Test set.
        sizes: Gallery size of each protocol.
        num_queries: Number of queries of a protocol, the first ones; all if it is not listed.
        seed: Seed of the distractors.
    """
    rng = np.random.default_rng(seed)
    images, queries = data.images.astype(np.int32), data.queries()
    others = np.tile(np.arange(len(data.offsets) - 1, dtype=np.int32), (len(queries), 1))
    rng.permuted(others, axis=1, out=others)
    rows = _rows_by_identity(data)
    listed, positives = [], []
    for number, query in enumerate(queries):
        own = rows[query.person_id]
        own = own[images[own] != query.image_id]
        positives.append(own)
        distractors = others[number]
        taken = np.append(images[own], query.image_id)
        distractors = distractors[~np.isin(distractors, taken)]
        listed.append(np.append(images[own], distractors)[: max(sizes.values())].copy())
    protocols = []
    for name, size in sizes.items():
        count = num_queries.get(name, len(queries))
        gallery = np.stack([row[:size] for row in listed[:count]])
        arrays = _positives(data, positives[:count])
        protocols.append(SearchProtocol(name, queries[:count], gallery, *arrays))
    return protocols


def open_protocols(data: SimulatedSet) -> list[SearchProtocol]:
    """Returns ``all`` and ``multi_view`` as in PRW: all images but the own frame, or camera."""
    images, queries, rows = data.images, data.queries(), _rows_by_identity(data)
    camera = np.arange(len(data.offsets) - 1) % NUM_CAMERAS
    frames = [np.flatnonzero(camera == c).astype(np.int32) for c in range(NUM_CAMERAS)]
    longest = max(map(len, frames))
    frames = [np.pad(f, (0, longest - len(f)), constant_values=-1) for f in frames]
    own_images = np.array([query.image_id for query in queries], np.int32)
    excluded: dict[str, dict[str, np.ndarray]] = {
        "all": {"excluded": own_images[:, None]},
        "multi_view": {"excluded": np.stack(frames), "excluded_row": camera[own_images]},
    }
    protocols = []
    for name, left_out in excluded.items():
        positives = []
        for query in queries:
            own = rows[query.person_id]
            same = images[own] == query.image_id
            if name == "multi_view":
                same = camera[images[own]] == camera[query.image_id]
            positives.append(own[~same])
        arrays = _positives(data, positives)
        protocols.append(SearchProtocol(name, queries, None, *arrays, **left_out))
    return protocols


def _rows_by_identity(data: SimulatedSet) -> list[np.ndarray]:
    order = np.argsort(data.pids, kind="stable")
    edges = np.searchsorted(data.pids[order], np.arange(data.pids.max() + 2))
    return [order[a:b] for a, b in zip(edges[:-1], edges[1:], strict=True)]


def _positives(
    data: SimulatedSet, rows: list[np.ndarray]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns ``positive_query``, ``positive_image`` and ``positive_box`` of a protocol."""
    joined = np.concatenate(rows)
    owners = np.repeat(np.arange(len(rows)), [len(r) for r in rows])
    images = data.images[joined].astype(np.int32)
    return owners.astype(np.int32), images, data.boxes[joined].astype(np.float32)


def unit(vectors: np.ndarray) -> np.ndarray:
    """Scales rows to length 1."""
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
