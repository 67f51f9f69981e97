# SPDX-License-Identifier: Apache-2.0
"""Small random test sets with predictions, in memory, with many ties and corner cases."""

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import Boxes, BoxMode, Instances
from slow_reference import ImageDetections

from person_search.evaluation.predictions import PooledPredictions, pool_predictions
from person_search.schema import NO_QUERY_ID, Query, SearchProtocol

EMBED_DIM = 4
# Unit vectors whose dot products are exact in floating point, so that equal similarities abound.
TIED_DIRECTIONS = np.concatenate(
    [np.eye(4), -np.eye(4), [[0.5, 0.5, 0.5, 0.5], [0.5, -0.5, 0.5, -0.5], [0.5, 0.5, -0.5, -0.5]]]
)


@dataclass
class Case:
    """A test set: records, the predictions for each image, and protocols."""

    records: list[dict[str, Any]]
    dets: dict[int, ImageDetections]
    query_feats: dict[int, list[float]]
    protocols: dict[str, SearchProtocol] = field(default_factory=dict)

    @property
    def gt(self) -> dict[int, list[list[float]]]:
        return {r["image_id"]: [a["bbox"] for a in r["annotations"]] for r in self.records}

    def pooled(self) -> PooledPredictions:
        found = list(self.dets.values())
        dim = len(next(iter(self.query_feats.values())))
        part = {
            "image_ids": np.array(list(self.dets)),
            "det_counts": np.array([len(d.boxes) for d in found]),
            "boxes": np.array([b for d in found for b in d.boxes], "f").reshape(-1, 4),
            "scores": np.array([s for d in found for s in d.scores], "f"),
            "reid_feats": np.array([f for d in found for f in d.feats], "f").reshape(-1, dim),
            "query_ids": np.array(list(self.query_feats)),
            "query_feats": np.array(list(self.query_feats.values()), "f"),
        }
        return pool_predictions([part], part["image_ids"], {"dataset": "case", "score_thresh": 0.0})

    def on_gt_boxes(self) -> dict[int, ImageDetections]:
        """The ground truth boxes as detections of score 1, each with its own embedding."""
        gt = self.gt
        return {i: ImageDetections(gt[i], [1.0] * len(gt[i]), _gt_feats(i, len(gt[i]))) for i in gt}

    def inputs(self, with_gt: bool = False) -> list[dict[str, Any]]:
        """Inputs as from the test mapper, without pixels."""
        return [
            {
                "image_id": r["image_id"],
                "file_name": r["file_name"],
                "queries": _queries(r, with_gt),
            }
            for r in self.records
        ]

    def output(self, image_id: int, with_gt: bool = False) -> dict[str, Any]:
        """Output of a person search model for an image."""
        found = self.dets[image_id]
        record = next(r for r in self.records if r["image_id"] == image_id)
        feats = [self.query_feats[q["query_id"]] for q in record["queries"]]
        if with_gt:
            feats += self.on_gt_boxes()[image_id].feats
        dim = len(next(iter(self.query_feats.values())))
        instances = Instances((record["height"], record["width"]))
        instances.pred_boxes = Boxes(torch.tensor(found.boxes).reshape(-1, 4))
        instances.scores = torch.tensor(found.scores)
        instances.pred_classes = torch.zeros(len(found.scores), dtype=torch.int64)
        instances.reid_feats = torch.tensor(found.feats).reshape(-1, dim)
        return {"instances": instances, "query_feats": torch.tensor(feats).reshape(-1, dim)}


class ReplayModel(torch.nn.Module):
    """A module that returns known detections by image id."""

    def __init__(self, case: Case) -> None:
        super().__init__()
        self.case = case
        self.was_training: list[bool] = []

    def forward(self, batched_inputs: list[dict[str, Any]]) -> list[dict[str, Any]]:
        self.was_training.append(self.training)
        return [
            self.case.output(one["image_id"], with_gt=NO_QUERY_ID in one["queries"].query_ids)
            for one in batched_inputs
        ]


@contextmanager
def registered(case: Case, name: str = "evaluation_case") -> Iterator[str]:
    """Registers a case as a data set within a ``with`` block."""
    DatasetCatalog.register(name, lambda: case.records)
    metadata = MetadataCatalog.get(name)
    metadata.evaluator_type = "person_search"
    metadata.search_protocols = {key: (lambda p=p: p) for key, p in case.protocols.items()}
    metadata.default_search_protocols = (next(iter(case.protocols)),)
    try:
        yield name
    finally:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def make_record(
    image_id: int, boxes: list, pids: list[int], queries: list, size: int = 200
) -> dict[str, Any]:
    """A data set record; ``queries`` holds (query_id, box)."""
    return {
        "file_name": f"image_{image_id}.jpg",
        "image_id": image_id,
        "height": size,
        "width": size,
        "cam_id": None,
        "annotations": [
            {
                "bbox": [float(v) for v in box],
                "bbox_mode": BoxMode.XYXY_ABS,
                "category_id": 0,
                "person_id": pid,
            }
            for box, pid in zip(boxes, pids, strict=True)
        ],
        "queries": [
            {"query_id": query_id, "bbox": list(box), "bbox_mode": BoxMode.XYXY_ABS}
            for query_id, box in queries
        ],
    }


def random_case(seed: int, *, ties: bool = True, num_images: int = 8, num_pids: int = 3) -> Case:
    """Draws a test set with the protocols ``listed``, ``all`` and ``others``.

    It holds images without boxes or detections, persons smaller than the adaptive IoU rule's limit,
    two boxes of a person in one image, images that a gallery lists twice, queries without a match,
    several detections on a person, and, with ``ties``, many equal similarities and scores.
    """
    rng = np.random.default_rng(seed)
    records, dets = [], {}
    image_ids = rng.permutation(100)[:num_images].tolist()
    for image_id in image_ids:
        boxes = _random_boxes(rng, int(rng.integers(0, 5)))
        pids = rng.integers(-1, num_pids, len(boxes)).tolist()
        records.append(make_record(image_id, boxes, pids, []))
        dets[image_id] = _random_detections(rng, boxes, ties)
    owners = [(r, a) for r in records for a in r["annotations"]]
    if not owners:
        return random_case(seed + 10_000, ties=ties, num_images=num_images, num_pids=num_pids)
    queries = []
    for query_id in range(10, 14):
        record, annotation = owners[rng.integers(len(owners))]
        record["queries"].append(
            {"query_id": query_id, "bbox": annotation["bbox"], "bbox_mode": BoxMode.XYXY_ABS}
        )
        box, pid = tuple(annotation["bbox"]), annotation["person_id"]
        queries.append(Query(query_id, record["image_id"], box, pid))
    feats = {q.query_id: _random_feat(rng, ties) for q in queries}
    return Case(records, dets, feats, _random_protocols(rng, records, queries))


def _random_protocols(
    rng: np.random.Generator, records: list[dict], queries: list[Query]
) -> dict[str, SearchProtocol]:
    image_ids = [r["image_id"] for r in records]
    listed = rng.choice(image_ids, (len(queries), len(image_ids) - 2)).astype(np.int32)
    listed[rng.random(listed.shape) < 0.1] = -1
    own = np.array([[q.image_id, -1] for q in queries], np.int32)
    with_more = np.concatenate([own, rng.choice(image_ids, (len(queries), 2))], axis=1)
    subset = queries[::2]
    return {
        "listed": _protocol("listed", records, queries, gallery=listed),
        "all": _protocol("all", records, queries, excluded=own),
        "others": _protocol("others", records, subset, excluded=with_more[::2].astype(np.int32)),
    }


def _protocol(
    name: str,
    records: list[dict],
    queries: list[Query],
    gallery: np.ndarray | None = None,
    excluded: np.ndarray | None = None,
) -> SearchProtocol:
    """All labelled boxes of the query's identity are positives, one row per listing and box."""
    by_id = {r["image_id"]: r for r in records}
    rows = []
    for number, query in enumerate(queries):
        if gallery is None:
            images = [i for i in by_id if i not in excluded[number]]
        else:
            images = [int(i) for i in gallery[number] if i != -1]
        for image_id in images:
            rows += [
                (number, image_id, a["bbox"])
                for a in by_id[image_id]["annotations"]
                if a["person_id"] == query.person_id >= 0
            ]
    optional = {} if excluded is None else {"excluded": excluded}
    return SearchProtocol(
        name=name,
        queries=queries,
        gallery=gallery,
        positive_query=np.array([r[0] for r in rows], np.int32),
        positive_image=np.array([r[1] for r in rows], np.int32),
        positive_box=np.array([r[2] for r in rows], np.float32).reshape(-1, 4),
        **optional,
    )


def _random_boxes(rng: np.random.Generator, count: int) -> list[list[float]]:
    corners = rng.integers(0, 120, (count, 2))
    # every second person is small enough for the adaptive IoU rule
    sides = np.where(rng.random((count, 1)) < 0.5, 8, 40) + rng.integers(0, 20, (count, 2))
    return np.concatenate([corners, corners + sides], axis=1).astype(float).tolist()


def _random_detections(rng: np.random.Generator, gt: list, ties: bool) -> ImageDetections:
    boxes = []
    for box in gt:
        for _ in range(rng.choice([0, 1, 1, 2])):  # missed, found, found twice
            shift = rng.integers(-5, 6, 4) if rng.random() < 0.7 else np.zeros(4)
            if not ties:
                shift = shift + rng.normal(0, 0.1, 4)
            boxes.append((np.array(box) + shift).astype(np.float32).tolist())
    boxes += _random_boxes(rng, int(rng.integers(0, 3)))
    order = rng.permutation(len(boxes))
    boxes = [boxes[i] for i in order] if rng.random() < 0.85 else []
    scores = [
        float(rng.choice([0.25, 0.5, 0.75])) if ties else float(np.float32(rng.random()))
        for _ in boxes
    ]
    return ImageDetections(boxes, scores, [_random_feat(rng, ties) for _ in boxes])


def _random_feat(rng: np.random.Generator, ties: bool) -> list[float]:
    if ties:
        return TIED_DIRECTIONS[rng.integers(len(TIED_DIRECTIONS))].tolist()
    feat = rng.standard_normal(EMBED_DIM)
    return (feat / np.linalg.norm(feat)).astype(np.float32).tolist()


def _gt_feats(image_id: int, count: int) -> list[list[float]]:
    rng = np.random.default_rng(image_id)
    return [_random_feat(rng, ties=False) for _ in range(count)]


def _queries(record: dict[str, Any], with_gt: bool = False) -> Instances:
    boxes = [q["bbox"] for q in record["queries"]]
    ids = [q["query_id"] for q in record["queries"]]
    if with_gt:
        boxes += [a["bbox"] for a in record["annotations"]]
        ids += [NO_QUERY_ID] * len(record["annotations"])
    queries = Instances((record["height"], record["width"]))
    queries.pred_boxes = Boxes(torch.tensor(boxes).reshape(-1, 4))
    queries.query_ids = torch.tensor(ids, dtype=torch.int64)
    return queries


def with_gt(case):
    """The case's predictions with embeddings of the ground truth boxes."""
    found = list(case.on_gt_boxes().values())
    return dataclasses.replace(
        case.pooled(),
        gt_offsets=np.cumsum([0] + [len(d.boxes) for d in found]),
        gt_boxes=np.array([b for d in found for b in d.boxes], "f").reshape(-1, 4),
        gt_feats=np.array([f for d in found for f in d.feats], "f").reshape(-1, 4),
    )
