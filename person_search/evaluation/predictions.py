# SPDX-License-Identifier: Apache-2.0
"""All that a model said about a test set, as a few flat arrays; pooling, saving and loading them.

Shape shorthand: I images, N detections, Q queries, D length of the embedding.

The search figures of every protocol can be computed from these arrays alone, without the model. To
score *other* boxes in the same way (for instance the ground truth boxes with score 1, the upper
bound of re-ID), put them in place of the detections.
"""

import json
import os
import tempfile
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from person_search.evaluation.box_metrics import expand_ranges

FORMAT = "person_search_predictions"
FORMAT_VERSION = 1
ARRAY_NAMES = (
    "image_ids",
    "det_offsets",
    "boxes",
    "scores",
    "reid_feats",
    "query_ids",
    "query_feats",
)


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
    """

    image_ids: np.ndarray
    det_offsets: np.ndarray
    boxes: np.ndarray
    scores: np.ndarray
    reid_feats: np.ndarray
    query_ids: np.ndarray
    query_feats: np.ndarray
    info: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        num_images, num_dets, num_queries = map(len, (self.image_ids, self.boxes, self.query_ids))
        dim = self.reid_feats.shape[-1]
        expected = {
            "det_offsets": (num_images + 1,),
            "boxes": (num_dets, 4),
            "scores": (num_dets,),
            "reid_feats": (num_dets, dim),
            "query_feats": (num_queries, dim),
        }
        for name, shape in expected.items():
            if getattr(self, name).shape != shape:
                raise ValueError(
                    f"predictions: '{name}' has shape {getattr(self, name).shape}, expected {shape}"
                )
        offsets = self.det_offsets
        if offsets[0] != 0 or offsets[-1] != num_dets or (np.diff(offsets) < 0).any():
            raise ValueError(
                f"predictions: 'det_offsets' must rise from 0 to {num_dets}, the number of boxes"
            )

    @property
    def embed_dim(self) -> int:
        """Length of the embedding (D)."""
        return self.reid_feats.shape[1]

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

    def save(self, path: str | os.PathLike) -> None:
        """Writes one ``.npz`` file: the arrays above under their names, and ``header``.

        ``header`` is a JSON text: ``{"format": "person_search_predictions", "version": 1, "info":
        {...}}``. The file appears under its name only once it is complete.

        Raises:
            OSError: the file cannot be written; nothing is left behind.
        """
        header = {"format": FORMAT, "version": FORMAT_VERSION, "info": self.info}
        arrays = {name: getattr(self, name) for name in ARRAY_NAMES}
        write_atomically(path, lambda f: np.savez(f, header=np.array(json.dumps(header)), **arrays))

    @classmethod
    def load(cls, path: str | os.PathLike) -> "PooledPredictions":
        """Reads what :meth:`save` wrote.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: it is no predictions file, or one of another version.
        """
        try:
            with np.load(path, allow_pickle=False) as file:
                header = json.loads(str(file["header"]))
                arrays = {name: file[name] for name in ARRAY_NAMES}
        except (KeyError, ValueError, TypeError, EOFError, zipfile.BadZipFile) as e:
            raise ValueError(f"{path} is not a complete predictions file (.npz): {e}") from e
        found = (header.get("format"), header.get("version"))
        if found != (FORMAT, FORMAT_VERSION):
            raise ValueError(
                f"{path} has format {found}, expected {(FORMAT, FORMAT_VERSION)}. "
                "Run the evaluation again to write it anew."
            )
        return cls(**arrays, info=header.get("info", {}))


def write_atomically(path: str | os.PathLike, write: Any) -> None:
    """Calls ``write(file)`` on a temporary file beside ``path`` and renames it when complete."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            write(file)
        os.chmod(temporary, 0o644)  # mkstemp allows the owner only
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def find_rows(
    table: np.ndarray, wanted: np.ndarray | Sequence[int], what: str, where: str
) -> np.ndarray:
    """Looks up the position of each wanted number in a table of distinct integers.

    Raises:
        ValueError: some are not there; the first ones, ``what`` and ``where`` are named.
    """
    wanted = np.asarray(wanted, np.int64)
    order = np.argsort(table, kind="stable")
    slot = np.searchsorted(table, wanted, sorter=order).clip(0, max(len(table) - 1, 0))
    rows = order[slot] if len(table) else np.zeros(wanted.shape, np.int64)
    known = table[rows] == wanted if len(table) else np.zeros(wanted.shape, bool)
    if not known.all():
        missing = np.unique(wanted[~known])
        raise ValueError(
            f"{where}: {len(missing)} {what}(s) are not there, first ones: {missing[:5].tolist()}"
        )
    return rows


def pool_predictions(
    parts: Sequence[dict[str, np.ndarray]], dataset_image_ids: np.ndarray, info: dict[str, Any]
) -> PooledPredictions:
    """Joins what several processes have seen into arrays in the order of the data set.

    Args:
        parts: one dict per process: ``image_ids`` (i,), ``det_counts`` (i,), ``boxes``, ``scores``,
            ``reid_feats``, ``query_ids``, ``query_feats``, all in the order of arrival.
        dataset_image_ids: (I,) every image of the test set, in its order.
        info: see :class:`PooledPredictions`.

    Raises:
        ValueError: an image came twice or never, or the embeddings differ in length.
    """
    dims = {
        part[name].shape[1]
        for part in parts
        for name in ("reid_feats", "query_feats")
        if len(part[name])
    }
    if len(dims) > 1:
        raise ValueError(f"embeddings of different length: {sorted(dims)}; all must be equal")
    dim = dims.pop() if dims else 0
    joined = {
        name: np.concatenate(
            [p[name] if len(p[name]) else p[name].reshape(0, *_row_shape(name, dim)) for p in parts]
        )
        for name in parts[0]
    }
    image_ids = joined["image_ids"]
    _check_image_set(image_ids, dataset_image_ids)
    arrival = find_rows(image_ids, dataset_image_ids, "image_id", "predictions")
    counts = joined["det_counts"][arrival]
    starts = (np.cumsum(joined["det_counts"]) - joined["det_counts"])[arrival]
    _, dets = expand_ranges(starts, counts)
    by_query = np.argsort(joined["query_ids"], kind="stable")
    return PooledPredictions(
        image_ids=np.asarray(dataset_image_ids, np.int64),
        det_offsets=np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
        boxes=joined["boxes"][dets],
        scores=joined["scores"][dets],
        reid_feats=joined["reid_feats"][dets],
        query_ids=joined["query_ids"][by_query],
        query_feats=joined["query_feats"][by_query],
        info=info,
    )


def _row_shape(name: str, dim: int) -> tuple[int, ...]:
    return {"boxes": (4,), "reid_feats": (dim,), "query_feats": (dim,)}.get(name, ())


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
