# SPDX-License-Identifier: Apache-2.0
"""Collects model outputs image by image, checks them and keeps only what the metrics need.

Shape shorthand: n detections of one image, q queries of one image, D length of the embedding,
i images seen by this process, m ground truth boxes of these images.
"""

import numpy as np
import torch
from detectron2.structures import Boxes, Instances

UNIT_TOLERANCE = 1e-3
"""Allowed deviation of an embedding's norm from 1; float16 arithmetic stays well below."""
SCORE_TOLERANCE = 1e-4
"""Allowed excess of a score over [0, 1], for rounding."""
REQUIRED_FIELDS = ("pred_boxes", "scores", "reid_feats")


class PredictionCollector:
    """Detections above a score and query embeddings of the images that one process has seen.

    Args:
        score_thresh: Detections below this score are dropped at once. With hundreds of them per
            image and long embeddings, a test set would not fit into memory.
    """

    def __init__(self, score_thresh: float) -> None:
        self.score_thresh = score_thresh
        self._image_ids: dict[int, None] = {}
        self._det_counts: list[int] = []
        self._gt_counts: list[int] = []
        self._query_ids: list[int] = []
        self._rows: dict[str, list[torch.Tensor]] = {
            name: [] for name in ("boxes", "scores", "reid_feats", "query_feats", "gt_feats")
        }
        self._embed_dim: int | None = None

    def add(
        self,
        image_id: int,
        instances: Instances,
        query_ids: list[int],
        query_feats: torch.Tensor | None,
        num_gt: int | None = None,
    ) -> None:
        """Stores the output for one image.

        Args:
            image_id: Image, not seen before.
            instances: n detections with ``pred_boxes``, ``scores`` and ``reid_feats`` (n, D).
            query_ids: Ids of the image's q queries.
            query_feats: (q, D) embeddings in the same order; None equals (0, D).
            num_gt: Number of ground truth boxes, whose embeddings follow those of the queries; None
                if they were not embedded.

        Raises:
            ValueError: Naming the image, if it was processed before, a field is missing, not finite
                or out of range, an embedding has another length than before or is not a unit
                vector, or a query has none.
        """
        where = f"image_id {image_id}"
        if image_id in self._image_ids:
            raise ValueError(f"{where} was processed before; every test image must come once")
        detections = self._check_detections(instances, where)
        feats = self._check_queries(query_ids, query_feats, where, num_gt or 0)
        self._image_ids[image_id] = None
        self._det_counts.append(len(detections["scores"]))
        self._query_ids.extend(query_ids)
        if num_gt is not None:
            self._gt_counts.append(num_gt)
        num_queries = len(query_ids)
        queries = {"query_feats": feats[:num_queries], "gt_feats": feats[num_queries:]}
        for name, values in (detections | queries).items():
            if len(values):  # an empty tensor may have another width
                self._rows[name].append(values)

    def arrays(self) -> dict[str, np.ndarray]:
        """Joins everything seen so far, in the order of arrival.

        Returns:
            ``image_ids`` (i,), ``det_counts`` (i,), ``boxes`` (n, 4), ``scores`` (n,),
            ``reid_feats`` (n, D), ``query_ids`` (q,), ``query_feats`` (q, D), n and q over all
            images; D is 0 as long as no embedding was seen. With ground truth boxes also
            ``gt_counts`` (i,) and ``gt_feats`` (m, D).
        """
        widths = {"boxes": (4,), "scores": ()}
        arrays: dict[str, np.ndarray] = {
            "image_ids": np.array(list(self._image_ids), np.int64),
            "det_counts": np.array(self._det_counts, np.int64),
            "query_ids": np.array(self._query_ids, np.int64),
        }
        if self._gt_counts:
            arrays["gt_counts"] = np.array(self._gt_counts, np.int64)
        for name, rows in self._rows.items():
            if name == "gt_feats" and not self._gt_counts:
                continue
            empty = np.zeros((0, *widths.get(name, (self._embed_dim or 0,))), np.float32)
            arrays[name] = torch.cat(rows).numpy() if rows else empty
        return arrays

    def _check_detections(self, instances: Instances, where: str) -> dict[str, torch.Tensor]:
        missing = [name for name in REQUIRED_FIELDS if not instances.has(name)]
        if missing:
            raise ValueError(f"{where}: the model's instances lack {missing}")
        scores = instances.scores
        if not torch.isfinite(scores).all():
            raise ValueError(f"{where}: a detection score is not finite")
        outside = scores[(scores - 0.5).abs() > 0.5 + SCORE_TOLERANCE]
        if len(outside):
            raise ValueError(
                f"{where}: a detection score is {outside[0].item():.6g}, must lie in [0, 1]; the "
                "model must return probabilities, not logits"
            )
        keep = scores >= self.score_thresh
        boxes = instances.pred_boxes
        boxes = boxes.tensor if isinstance(boxes, Boxes) else boxes
        boxes = _to_cpu(boxes[keep])
        if not torch.isfinite(boxes).all():
            raise ValueError(f"{where}: a detection box is not finite: {boxes.tolist()}")
        feats = self._check_feats(instances.reid_feats[keep], f"{where}, reid_feats")
        return {"boxes": boxes, "scores": _to_cpu(scores[keep]), "reid_feats": feats}

    def _check_queries(
        self, query_ids: list[int], feats: torch.Tensor | None, where: str, num_gt: int
    ) -> torch.Tensor:
        given = 0 if feats is None else len(feats)
        if given != len(query_ids) + num_gt:
            gt_boxes = (
                f" and {num_gt} ground truth boxes, which cfg.TEST.PERSON_SEARCH requests by 'gt' "
                "and the mapper passes to the model after the queries"
            )
            raise ValueError(
                f"{where}: the model returned {given} query_feats for {len(query_ids)} queries "
                f"(query_ids {query_ids}){gt_boxes if num_gt else ''}; it must return one per "
                f"query{' and box' if num_gt else ''}, in their order"
            )
        if feats is None:
            return torch.zeros(0, 0)
        return self._check_feats(feats, f"{where}, query_feats (query_ids {query_ids})")

    def _check_feats(self, feats: torch.Tensor, where: str) -> torch.Tensor:
        feats = _to_cpu(feats)
        if len(feats) == 0:
            return feats
        if feats.dim() != 2:
            raise ValueError(f"{where}: shape {tuple(feats.shape)}, expected (n, D)")
        if not torch.isfinite(feats).all():
            rows = (~torch.isfinite(feats).all(dim=1)).nonzero().flatten().tolist()
            raise ValueError(f"{where}: not finite in row(s) {rows[:5]}")
        dim = feats.shape[1]
        if self._embed_dim is None:
            self._embed_dim = dim
        if dim != self._embed_dim:
            raise ValueError(
                f"{where}: embedding of length {dim}, earlier ones have length {self._embed_dim}"
            )
        norms = torch.linalg.vector_norm(feats, dim=1)
        worst = norms[(norms - 1).abs().argmax()].item()
        if abs(worst - 1) > UNIT_TOLERANCE:
            raise ValueError(
                f"{where}: an embedding has the norm {worst:.4g}; the model must return unit "
                "vectors (torch.nn.functional.normalize)"
            )
        return feats


def _to_cpu(values: torch.Tensor) -> torch.Tensor:
    # a copy: a slice would keep the model's whole output alive
    return values.detach().to("cpu", torch.float32, copy=True)
