# SPDX-License-Identifier: Apache-2.0
"""Takes over model outputs image by image, checks them and keeps the minimum on the CPU.

Shape shorthand: n detections of one image, q queries of one image, D length of the embedding,
i images seen by this process.
"""

import numpy as np
import torch
from detectron2.structures import Boxes, Instances

UNIT_TOLERANCE = 1e-3
"""How far the length of an embedding may be from 1; float16 arithmetic stays well below."""
REQUIRED_FIELDS = ("pred_boxes", "scores", "reid_feats")


class PredictionCollector:
    """Detections above a score and query embeddings of the images that one process has seen.

    Args:
        score_thresh: detections below it are dropped at once; with hundreds of them per image and
            long embeddings, a test set would not fit into memory.
    """

    def __init__(self, score_thresh: float) -> None:
        self.score_thresh = score_thresh
        self._image_ids: dict[int, None] = {}
        self._det_counts: list[int] = []
        self._boxes: list[torch.Tensor] = []
        self._scores: list[torch.Tensor] = []
        self._reid_feats: list[torch.Tensor] = []
        self._gt_counts: list[int] = []
        self._gt_feats: list[torch.Tensor] = []
        self._query_ids: list[int] = []
        self._query_feats: list[torch.Tensor] = []
        self._embed_dim: int | None = None

    def add(
        self,
        image_id: int,
        instances: Instances,
        query_ids: list[int],
        query_feats: torch.Tensor | None,
        num_gt: int | None = None,
    ) -> None:
        """Takes over the output for one image.

        Args:
            image_id: not seen before.
            instances: n detections: ``pred_boxes``, ``scores``, ``reid_feats`` (n, D).
            query_ids: ids of the image's q queries.
            query_feats: (q, D) in the same order; None is as good as (0, D).
            num_gt: number of true boxes, whose embeddings follow those of the queries; None if they
                were not embedded.

        Raises:
            ValueError: naming the image: it came before, a field is missing or not finite, an
                embedding has another length than before or is not a unit vector, a query has none.
        """
        where = f"image_id {image_id}"
        if image_id in self._image_ids:
            raise ValueError(f"{where} was processed before; every test image must come once")
        detections = self._take_detections(instances, where)
        rows = self._take_queries(query_ids, query_feats, where, num_gt or 0)
        queries, gt_feats = rows[: len(query_ids)], rows[len(query_ids) :]
        self._image_ids[image_id] = None
        self._det_counts.append(len(detections[0]))
        for store, values in zip(
            (self._boxes, self._scores, self._reid_feats), detections, strict=True
        ):
            if len(values):
                store.append(values)
        if num_gt is not None:
            self._gt_counts.append(num_gt)
            if num_gt:
                self._gt_feats.append(gt_feats)
        if len(queries):
            self._query_ids.extend(query_ids)
            self._query_feats.append(queries)

    def arrays(self) -> dict[str, np.ndarray]:
        """Joins everything seen so far, in the order of arrival.

        Returns:
            ``image_ids`` (i,), ``det_counts`` (i,), ``boxes`` (n, 4), ``scores`` (n,),
            ``reid_feats`` (n, D), ``query_ids`` (q,), ``query_feats`` (q, D), n and q over all
            images; D is 0 as long as no embedding was seen. With true boxes also ``gt_counts`` (i,)
            and ``gt_feats`` (m, D).
        """
        dim = self._embed_dim or 0
        more = {}
        if self._gt_counts:
            more["gt_counts"] = np.array(self._gt_counts, np.int64)
            more["gt_feats"] = _join(self._gt_feats, (0, dim))
        return more | {
            "image_ids": np.array(list(self._image_ids), np.int64),
            "det_counts": np.array(self._det_counts, np.int64),
            "boxes": _join(self._boxes, (0, 4)),
            "scores": _join(self._scores, (0,)),
            "reid_feats": _join(self._reid_feats, (0, dim)),
            "query_ids": np.array(self._query_ids, np.int64),
            "query_feats": _join(self._query_feats, (0, dim)),
        }

    def _take_detections(
        self, instances: Instances, where: str
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        missing = [name for name in REQUIRED_FIELDS if not instances.has(name)]
        if missing:
            raise ValueError(f"{where}: the model's instances lack {missing}")
        scores = instances.scores
        if not torch.isfinite(scores).all():
            raise ValueError(f"{where}: a detection score is not finite")
        keep = scores >= self.score_thresh
        boxes = instances.pred_boxes
        boxes = boxes.tensor if isinstance(boxes, Boxes) else boxes
        boxes = _to_cpu(boxes[keep])
        if not torch.isfinite(boxes).all():
            raise ValueError(f"{where}: a detection box is not finite: {boxes.tolist()}")
        feats = self._check_feats(instances.reid_feats[keep], f"{where}, reid_feats")
        return boxes, _to_cpu(scores[keep]), feats

    def _take_queries(
        self, query_ids: list[int], feats: torch.Tensor | None, where: str, num_gt: int
    ) -> torch.Tensor:
        given = 0 if feats is None else len(feats)
        if given != len(query_ids) + num_gt:
            true_boxes = (
                f" and {num_gt} ground truth boxes, which cfg.TEST.PERSON_SEARCH asks for with "
                "'gt' and the mapper hands to the model behind the queries"
            )
            raise ValueError(
                f"{where}: the model gave {given} query_feats for {len(query_ids)} queries "
                f"(query_ids {query_ids}){true_boxes if num_gt else ''}; it must give one per "
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
            raise ValueError(f"{where}: embedding of length {dim}, before it was {self._embed_dim}")
        lengths = torch.linalg.vector_norm(feats, dim=1)
        worst = lengths[(lengths - 1).abs().argmax()].item()
        if abs(worst - 1) > UNIT_TOLERANCE:
            raise ValueError(
                f"{where}: an embedding has the norm {worst:.4g}; the model must return unit "
                "vectors (torch.nn.functional.normalize)"
            )
        return feats


def _to_cpu(values: torch.Tensor) -> torch.Tensor:
    # clone: a slice would keep the model's whole output alive
    return values.detach().to("cpu", torch.float32, copy=True)


def _join(parts: list[torch.Tensor], empty_shape: tuple[int, ...]) -> np.ndarray:
    return torch.cat(parts).numpy() if parts else np.zeros(empty_shape, np.float32)
