# SPDX-License-Identifier: Apache-2.0
"""All that a model said about a test set, as a few flat arrays; pooling, saving and loading them.

Shape shorthand: I images, N detections, Q queries, M ground truth boxes, D length of the embedding.

The search figures of every protocol can be computed from these arrays alone, without the model. To
score *other* boxes in the same way, put them in place of the detections, as
:meth:`PooledPredictions.on_gt_boxes` does. The format of the file is described in
``docs/predictions_format.md``.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from person_search.evaluation.box_metrics import expand_ranges


@dataclass(frozen=True)
class PooledPredictions:
    """Detections and query embeddings of a whole test set, in the order of the data set.

    Args:
        image_ids: (I,) int64, the order of the data set's records.
        det_offsets: (I + 1,) int64; image i holds rows ``det_offsets[i]:det_offsets[i + 1]``.
        boxes: (N, 4) XYXY, pixels of the original image.
        scores: (N,).
        reid_feats: (N, D), unit length.
        query_ids: (Q,) int64, ascending.
        query_feats: (Q, D), unit length.
        info: what else is known, of types that JSON holds (data set name, score threshold, ...).
        image_names: (I,) str, names of the image files without folder, or None.
        gt_offsets: (I + 1,) int64 or None; image i has the true boxes ``gt_offsets[i]`` up to
            ``gt_offsets[i + 1]``, in the order of its record's annotations.
        gt_boxes: (M, 4) XYXY, or None.
        gt_feats: (M, D) unit embeddings of the true boxes, or None.
    """

    image_ids: np.ndarray
    det_offsets: np.ndarray
    boxes: np.ndarray
    scores: np.ndarray
    reid_feats: np.ndarray
    query_ids: np.ndarray
    query_feats: np.ndarray
    info: dict[str, Any] = field(default_factory=dict)
    image_names: np.ndarray | None = None
    gt_offsets: np.ndarray | None = None
    gt_boxes: np.ndarray | None = None
    gt_feats: np.ndarray | None = None

    def __post_init__(self) -> None:
        num_images, num_dets, num_queries = map(len, (self.image_ids, self.boxes, self.query_ids))
        dim = self.reid_feats.shape[-1]
        expected: dict[str, tuple[int, ...]] = {
            "det_offsets": (num_images + 1,),
            "boxes": (num_dets, 4),
            "scores": (num_dets,),
            "reid_feats": (num_dets, dim),
            "query_feats": (num_queries, dim),
        }
        if self.image_names is not None:
            expected["image_names"] = (num_images,)
        given = [x is not None for x in (self.gt_offsets, self.gt_boxes, self.gt_feats)]
        if any(given) and not all(given):
            raise ValueError("predictions: gt_offsets, gt_boxes and gt_feats belong together")
        gt = self.gt_arrays
        if gt is not None:
            num_gt = len(gt[1])
            expected |= {"gt_offsets": (num_images + 1,), "gt_boxes": (num_gt, 4)}
            expected["gt_feats"] = (num_gt, dim)
        for name, shape in expected.items():
            found = getattr(self, name)
            if found is None or found.shape != shape:
                raise ValueError(
                    f"predictions: '{name}' has shape {getattr(found, 'shape', None)}, expected "
                    f"{shape} (images {num_images}, detections {num_dets}, queries {num_queries}, "
                    f"embeddings of length {dim})"
                )
        _check_offsets("det_offsets", self.det_offsets, num_dets)
        if gt is not None:
            _check_offsets("gt_offsets", gt[0], len(gt[1]))

    @property
    def embed_dim(self) -> int:
        """Length of the embedding (D)."""
        return self.reid_feats.shape[1]

    @property
    def gt_arrays(self) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
        """``gt_offsets``, ``gt_boxes``, ``gt_feats``; None if the true boxes were not embedded."""
        if self.gt_offsets is None or self.gt_boxes is None or self.gt_feats is None:
            return None
        return self.gt_offsets, self.gt_boxes, self.gt_feats

    def on_gt_boxes(self) -> "PooledPredictions":
        """The same with the true boxes, of score 1, in place of the detections.

        Raises:
            ValueError: the true boxes were not embedded.
        """
        if self.gt_arrays is None:
            raise ValueError(
                "these predictions hold no embeddings of the ground truth boxes; the evaluation "
                "that makes them needs 'gt' in cfg.TEST.PERSON_SEARCH.VARIANTS (or GALLERY_BOXES)"
            )
        offsets, boxes, feats = self.gt_arrays
        scores = np.ones(len(boxes), np.float32)
        return replace(self, det_offsets=offsets, boxes=boxes, scores=scores, reid_feats=feats)

    def above(self, score_thresh: float) -> "PooledPredictions":
        """The same predictions without the detections below a score."""
        keep = self.scores >= score_thresh
        kept_before = np.concatenate([[0], np.cumsum(keep)])
        return replace(
            self,
            det_offsets=kept_before[self.det_offsets],
            boxes=self.boxes[keep],
            scores=self.scores[keep],
            reid_feats=self.reid_feats[keep],
            info={**self.info, "score_thresh": score_thresh},
        )

    def image_rows(self, image_ids: np.ndarray, where: str) -> np.ndarray:
        """Positions of ``image_ids`` in the data set; ValueError naming ``where`` if unknown."""
        return find_rows(self.image_ids, image_ids, "image_id", where)

    def query_rows(self, query_ids: np.ndarray, where: str) -> np.ndarray:
        """Positions of ``query_ids`` among the queries; ValueError naming ``where`` if missing."""
        return find_rows(self.query_ids, query_ids, "query_id", where)


def _check_offsets(name: str, offsets: np.ndarray, total: int) -> None:
    if offsets[0] != 0 or offsets[-1] != total or (np.diff(offsets) < 0).any():
        raise ValueError(f"predictions: '{name}' must rise from 0 to {total}, the number of boxes")


_LOOKED_UP_AT_ONCE = 1 << 20


def find_rows(
    table: np.ndarray,
    wanted: np.ndarray | Sequence[int],
    what: str,
    where: str,
    dtype: type[np.integer] = np.int64,
) -> np.ndarray:
    """Looks up the position of each wanted number in a table of distinct integers.

    Returns:
        An array of the shape of ``wanted`` and of the given type. Besides it, memory is needed only
        for some millions of numbers at a time.

    Raises:
        ValueError: some are not there; the first ones, ``what`` and ``where`` are named.
    """
    wanted = np.asarray(wanted)
    rows = np.zeros(wanted.shape, dtype)
    order = np.argsort(table, kind="stable")
    flat, flat_rows, unknown = wanted.reshape(-1), rows.reshape(-1), [np.zeros(0, np.int64)]
    for first in range(0, len(flat), _LOOKED_UP_AT_ONCE):
        part = slice(first, first + _LOOKED_UP_AT_ONCE)
        values = flat[part].astype(np.int64)
        known = np.zeros(len(values), bool)
        if len(table):
            slot = np.searchsorted(table, values, sorter=order).clip(0, len(table) - 1)
            flat_rows[part] = order[slot]
            known = table[order[slot]] == values
        unknown.append(np.unique(values[~known]))
    missing = np.unique(np.concatenate(unknown))
    if len(missing):
        raise ValueError(
            f"{where}: {len(missing)} {what}(s) are not there, first ones: {missing[:5].tolist()}"
        )
    return rows


def pool_predictions(
    parts: Sequence[dict[str, np.ndarray]],
    dataset_image_ids: np.ndarray,
    info: dict[str, Any],
    *,
    image_names: np.ndarray | None = None,
    gt_boxes: np.ndarray | None = None,
) -> PooledPredictions:
    """Joins what several processes have seen into arrays in the order of the data set.

    Args:
        parts: one dict per process: ``image_ids`` (i,), ``det_counts`` (i,), ``boxes``, ``scores``,
            ``reid_feats``, ``query_ids``, ``query_feats``, all in the order of arrival; also
            ``gt_counts`` (i,) and ``gt_feats`` where the true boxes were embedded.
        dataset_image_ids: (I,) every image of the test set, in its order.
        info, image_names: see :class:`PooledPredictions`.
        gt_boxes: (M, 4) of the data set, if the parts hold ``gt_feats``.

    Raises:
        ValueError: an image came twice or never, or the embeddings differ in length.
    """
    dims = {
        part[name].shape[1]
        for part in parts
        for name in ("reid_feats", "query_feats", "gt_feats")
        if len(part.get(name, ()))
    }
    if len(dims) > 1:
        raise ValueError(f"embeddings of different length: {sorted(dims)}; all must be equal")
    dim = dims.pop() if dims else 0
    joined = {
        name: np.concatenate(
            # a process without images knows neither the length of an embedding nor of true boxes
            [p[name] if len(p.get(name, ())) else _no_rows(name, dim) for p in parts]
        )
        for name in dict.fromkeys(name for part in parts for name in part)
    }
    image_ids = joined["image_ids"]
    _check_image_set(image_ids, dataset_image_ids)
    arrival = find_rows(image_ids, dataset_image_ids, "image_id", "predictions")
    dets, offsets = _in_order(joined["det_counts"], arrival)
    more = {}
    if gt_boxes is not None:
        rows, gt_offsets = _in_order(joined["gt_counts"], arrival)
        more = {
            "gt_feats": joined["gt_feats"][rows],
            "gt_offsets": gt_offsets,
            "gt_boxes": np.asarray(gt_boxes, np.float32),
        }
    by_query = np.argsort(joined["query_ids"], kind="stable")
    return PooledPredictions(
        image_ids=np.asarray(dataset_image_ids, np.int64),
        det_offsets=offsets,
        boxes=joined["boxes"][dets],
        scores=joined["scores"][dets],
        reid_feats=joined["reid_feats"][dets],
        query_ids=joined["query_ids"][by_query],
        query_feats=joined["query_feats"][by_query],
        info=info,
        image_names=image_names,
        **more,
    )


def _in_order(counts: np.ndarray, arrival: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows in the order of the data set, and their (I + 1,) offsets, from counts as they came."""
    starts = (np.cumsum(counts) - counts)[arrival]
    _, rows = expand_ranges(starts, counts[arrival])
    return rows, np.concatenate([[0], np.cumsum(counts[arrival])]).astype(np.int64)


def _no_rows(name: str, dim: int) -> np.ndarray:
    """An empty array of the type that ``name`` has."""
    if name.endswith(("_ids", "_counts")):
        return np.zeros(0, np.int64)
    widths = {"boxes": (4,), "scores": ()}
    return np.zeros((0, *widths.get(name, (dim,))), np.float32)


def _check_image_set(seen: np.ndarray, expected: np.ndarray) -> None:
    ids, times = np.unique(seen, return_counts=True)
    if (times > 1).any():
        raise ValueError(
            f"image_id {ids[times > 1][:5].tolist()} came more than once; every test image must be "
            "processed exactly once (was reset() called between two runs?)"
        )
    missing = np.setdiff1d(expected, seen)
    if len(missing):
        raise ValueError(
            f"{len(missing)} of {len(expected)} test images were never processed, first image_ids: "
            f"{missing[:5].tolist()}. Search figures need the whole test set."
        )
