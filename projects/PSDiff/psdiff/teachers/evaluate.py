# SPDX-License-Identifier: Apache-2.0
"""Evaluates a teacher alone: ground-truth boxes as detections, its embeddings for re-ID.

Shape shorthand in this file: n boxes and q queries of a scene, D embedding dimension.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.evaluation import DatasetEvaluator
from detectron2.structures import Boxes, Instances
from torch import Tensor
from tqdm import tqdm

from person_search.schema import PERSON_CATEGORY_ID
from psdiff.teachers.crops import training_boxes
from psdiff.teachers.embed import embed_scenes
from psdiff.teachers.reid_net import TeacherNet


def boxes_and_queries(record: dict) -> list[list[float]]:
    """Returns the XYXY boxes of the n annotations of a test record, then of its q queries."""
    return training_boxes(record) + [query["bbox"] for query in record["queries"]]


def embed_test_set(net: TeacherNet, records: Sequence[dict], cfg: CfgNode) -> Iterator[Tensor]:
    """Yields the embeddings (n + q, D) of each record in the order of boxes_and_queries."""
    return embed_scenes(net, records, cfg, boxes_and_queries, mirrored=False)


def evaluate_on_ground_truth(
    evaluator: DatasetEvaluator, records: Sequence[dict], feats: Iterable[Tensor]
) -> dict[str, Any]:
    """Evaluates embeddings of ground-truth boxes, each a detection with score 1.

    Args:
        evaluator: ``PersonSearchEvaluator`` of the data set.
        records: All records of the data set.
        feats: Embeddings of each record, see :func:`embed_test_set`; NaN for unreadable images,
            whose persons count as missed.

    Returns:
        Results of the evaluator. The detection metrics are those of the ground-truth boxes.
    """
    evaluator.reset()
    pairs = zip(records, feats, strict=True)
    for record, scene in tqdm(pairs, desc="teacher on test set", unit="scene", total=len(records)):
        boxes = torch.tensor(training_boxes(record), dtype=torch.float32).view(-1, 4)
        n = len(boxes)
        unreadable = bool(scene.isnan().any())
        if unreadable:  # the evaluator drops the detections, and requires unit vectors
            scene = torch.full_like(scene, scene.shape[1] ** -0.5)
        instances = Instances(
            (record["height"], record["width"]),
            pred_boxes=Boxes(boxes),
            scores=torch.ones(n),
            pred_classes=torch.full((n,), PERSON_CATEGORY_ID, dtype=torch.int64),
            reid_feats=scene[:n],
        )
        output = {"instances": instances, "query_feats": scene[n:]}
        evaluator.process([{**record, "bad_image": unreadable}], [output])
    return evaluator.evaluate()
