# SPDX-License-Identifier: Apache-2.0
"""Writing and reading the file of predictions; see ``docs/predictions_format.md``.

Anybody's detector may write such a file, so reading checks whatever would turn into a wrong figure
without a word: shapes, numbers that are not finite, box order, embeddings that are no unit vectors.
What needs the data set is checked by :mod:`person_search.evaluation.prediction_fit`.

Shape shorthand: I images, N detections, Q queries, M ground truth boxes, D length of the embedding.
"""

import json
import os
import zipfile
from pathlib import PurePath
from typing import Any

import numpy as np

from person_search.evaluation.predictions import PooledPredictions
from person_search.utils.files import write_atomically

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
OPTIONAL_NAMES = ("image_names", "gt_offsets", "gt_boxes", "gt_feats")
INTEGERS = ("image_ids", "det_offsets", "query_ids", "gt_offsets")
UNIT_TOLERANCE = 0.01
"""How far the length of a stored embedding may be from 1; half precision stays well below."""


def write_predictions(predictions: PooledPredictions, path: str | os.PathLike) -> None:
    """Writes one ``.npz`` file. It appears under its name only once it is complete.

    Raises:
        OSError: the file cannot be written; nothing is left behind.
    """
    header = {"format": FORMAT, "version": FORMAT_VERSION, "info": predictions.info}
    arrays = {name: getattr(predictions, name) for name in (*ARRAY_NAMES, *OPTIONAL_NAMES)}
    arrays = {name: values for name, values in arrays.items() if values is not None}
    write_atomically(path, lambda f: np.savez(f, header=np.array(json.dumps(header)), **arrays))


def read_predictions(path: str | os.PathLike) -> PooledPredictions:
    """Reads a file and checks all that can be checked without the data set.

    Returns:
        The predictions in the order of the file. Where it names its images only by
        ``image_names``, all ``image_ids`` are -1, until ``fit_to_dataset`` puts that right.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no predictions file, or its content cannot be right; what and where.
    """
    header, arrays = _read_arrays(path)
    found = (header.get("format"), header.get("version"))
    if found != (FORMAT, FORMAT_VERSION):
        raise ValueError(
            f"{path} has format {found}, expected {(FORMAT, FORMAT_VERSION)}. "
            "Run the evaluation again to write it anew."
        )
    arrays = {name: _checked(path, name, values) for name, values in arrays.items()}
    if "image_ids" not in arrays:
        arrays["image_ids"] = np.full(len(arrays["image_names"]), -1, np.int64)
    lengths = {n: a.shape[-1] for n, a in arrays.items() if n.endswith("_feats") and len(a)}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"{path}: embeddings of different length: {lengths}; all must be equal")
    dim = next(iter(lengths.values()), 0)
    for name in ("reid_feats", "query_feats", "gt_feats"):
        if name in arrays and not len(arrays[name]):
            arrays[name] = np.zeros((0, dim), np.float32)
    try:
        return PooledPredictions(**arrays, info=dict(header.get("info") or {}))
    except (ValueError, IndexError) as e:
        raise ValueError(f"{path}: {e}") from e


def _read_arrays(path: str | os.PathLike) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    try:
        loaded = np.load(path, allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            raise ValueError("it holds a single array")
        with loaded as file:
            present = set(file.files)
            needed = [name for name in ("header", *ARRAY_NAMES) if name not in present]
            if needed == ["image_ids"] and "image_names" in present:
                needed = []
            if needed:
                raise KeyError(f"the entries {needed} are absent; it holds {sorted(present)}")
            header = json.loads(str(file["header"]))
            wanted = [n for n in (*ARRAY_NAMES, *OPTIONAL_NAMES) if n in present]
            arrays = {name: file[name] for name in wanted}
    except (KeyError, ValueError, TypeError, EOFError, zipfile.BadZipFile) as e:
        raise ValueError(f"{path} is not a complete predictions file (.npz): {e}") from e
    if not isinstance(header, dict):
        raise ValueError(f"{path} is not a complete predictions file: its header is no JSON object")
    return header, arrays


def _checked(path: str | os.PathLike, name: str, values: np.ndarray) -> np.ndarray:
    """One array with the type of :class:`PooledPredictions`; ValueError if it cannot be right."""
    where = f"{path}: '{name}'"
    if name == "image_names":
        if values.dtype.kind != "U":
            raise ValueError(f"{where} must hold text, but has the type {values.dtype}")
        return np.array([PurePath(value).name for value in values.tolist()], np.str_)
    if values.dtype.kind not in ("iu" if name in INTEGERS else "iuf"):
        kind = "whole numbers" if name in INTEGERS else "numbers"
        raise ValueError(f"{where} must hold {kind}, but has the type {values.dtype}")
    if name in INTEGERS:
        values = values.astype(np.int64)
        if name.endswith("_ids"):
            ids, times = np.unique(values, return_counts=True)
            if (times > 1).any():
                raise ValueError(f"{where}: {ids[times > 1][:5].tolist()} stand there twice")
        return values
    values = values.astype(np.float32)
    rows = np.flatnonzero(~np.isfinite(values).all(axis=tuple(range(1, values.ndim))))
    if len(rows):
        raise ValueError(f"{where}: {len(rows)} rows are not finite, first: {rows[:5].tolist()}")
    if name.endswith("boxes"):
        _check_box_order(where, values)
    if name.endswith("_feats"):
        _check_unit(where, values)
    return values


def _check_box_order(where: str, boxes: np.ndarray) -> None:
    if boxes.ndim != 2 or boxes.shape[1] != 4:
        raise ValueError(f"{where} has shape {boxes.shape}, expected (n, 4)")
    turned = np.flatnonzero((boxes[:, 2:] < boxes[:, :2]).any(axis=1))
    if len(turned):
        raise ValueError(
            f"{where}: {len(turned)} of {len(boxes)} boxes end before they start, first: row "
            f"{turned[0]}, {boxes[turned[0]].tolist()}. The order is x1, y1, x2, y2 in pixels; are "
            "these x, y, width, height?"
        )


def _check_unit(where: str, feats: np.ndarray) -> None:
    if feats.ndim != 2:
        raise ValueError(f"{where} has shape {feats.shape}, expected (n, D)")
    if not len(feats):
        return
    lengths = np.linalg.norm(feats, axis=1)
    worst = int(np.abs(lengths - 1).argmax())
    if abs(lengths[worst] - 1) > UNIT_TOLERANCE:
        raise ValueError(
            f"{where}: embeddings must be unit vectors, but row {worst} has the norm "
            f"{lengths[worst]:.4g}. Divide each by its norm; weighting by the detection score is "
            "an option of the evaluation (SIMILARITY 'cws')."
        )
