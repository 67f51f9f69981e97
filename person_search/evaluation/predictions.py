# SPDX-License-Identifier: Apache-2.0
"""Predictions for a whole test set as flat arrays: pooling, reading, writing, matching to the data.

The search metrics of every protocol follow from these arrays alone, without the model. To score
other boxes the same way, put them in place of the detections, as
:meth:`PooledPredictions.on_gt_boxes` does.

The file format is described in ``docs/predictions_format.md``. Any program may write such a file,
so reading checks everything that would otherwise become a wrong metric: shapes, finite values, box
order, score range and the norm of the embeddings. :func:`fit_to_dataset` checks what needs the data
set.

Shape shorthand: I images, N detections, Q queries, M ground truth boxes, D length of the embedding.
"""

import json
import os
import re
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any
from unicodedata import normalize

import numpy as np

from person_search.evaluation.box_metrics import expand_ranges
from person_search.utils.files import write_atomically

if TYPE_CHECKING:
    from person_search.evaluation.ground_truth import GroundTruth

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
"""Allowed deviation of an embedding's norm from 1; half precision stays well below."""
SCORE_TOLERANCE = 1e-4
"""Allowed excess of a score over [0, 1], for rounding."""
GT_TOLERANCE = 2.0
"""Allowed deviation of a stored ground truth box in pixels; data sets count from 0 or from 1."""
OUTSIDE_SHARE = 0.1
"""Share of the boxes that may exceed the image by more than ``OUTSIDE_MARGIN``."""
OUTSIDE_MARGIN = 0.1
"""Part of the image's width or height."""
_LOOKED_UP_AT_ONCE = 1 << 20


@dataclass(frozen=True)
class PooledPredictions:
    """Detections and query embeddings of a whole test set, in the order of the data set.

    Attributes:
        image_ids: (I,) int64, the order of the data set's records.
        det_offsets: (I + 1,) int64; image i has the rows ``det_offsets[i]:det_offsets[i + 1]``.
        boxes: (N, 4) XYXY in pixels of the original image.
        scores: (N,) in [0, 1].
        reid_feats: (N, D) embeddings of unit length.
        query_ids: (Q,) int64, ascending.
        query_feats: (Q, D) embeddings of unit length.
        info: Further facts of JSON types (data set name, score threshold, ...).
        image_names: (I,) str, names of the image files without folder, or None.
        gt_offsets: (I + 1,) int64 or None; image i has the ground truth boxes
            ``gt_offsets[i]:gt_offsets[i + 1]``, in the order of its record's annotations.
        gt_boxes: (M, 4) XYXY, or None.
        gt_feats: (M, D) embeddings of the ground truth boxes of unit length, or None.
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
        totals = {"det_offsets": num_dets}
        if self.gt_arrays is not None:
            totals["gt_offsets"] = num_gt = len(self.gt_arrays[1])
            expected |= {"gt_offsets": (num_images + 1,), "gt_boxes": (num_gt, 4)}
            expected["gt_feats"] = (num_gt, dim)
        for name, shape in expected.items():
            found = getattr(self, name).shape
            if found != shape:
                raise ValueError(
                    f"predictions: '{name}' has shape {found}, expected {shape} (images "
                    f"{num_images}, detections {num_dets}, queries {num_queries}, embeddings of "
                    f"length {dim})"
                )
        for name, total in totals.items():
            offsets = getattr(self, name)
            if offsets[0] != 0 or offsets[-1] != total or (np.diff(offsets) < 0).any():
                raise ValueError(
                    f"predictions: '{name}' must rise from 0 to {total}, the number of boxes"
                )

    @property
    def embed_dim(self) -> int:
        """Length of the embedding (D)."""
        return self.reid_feats.shape[1]

    @property
    def gt_arrays(self) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
        """Offsets, boxes and embeddings of the ground truth; None if it was not embedded."""
        if self.gt_offsets is None or self.gt_boxes is None or self.gt_feats is None:
            return None
        return self.gt_offsets, self.gt_boxes, self.gt_feats

    def on_gt_boxes(self) -> "PooledPredictions":
        """Returns a copy with the ground truth boxes, of score 1, in place of the detections.

        Raises:
            ValueError: If the ground truth boxes were not embedded.
        """
        if self.gt_arrays is None:
            raise ValueError(
                "these predictions contain no embeddings of the ground truth boxes; create them "
                "by an evaluation with 'gt' in cfg.TEST.PERSON_SEARCH.VARIANTS (or GALLERY_BOXES)"
            )
        offsets, boxes, feats = self.gt_arrays
        scores = np.ones(len(boxes), np.float32)
        return replace(self, det_offsets=offsets, boxes=boxes, scores=scores, reid_feats=feats)

    def above(self, score_thresh: float) -> "PooledPredictions":
        """Returns a copy without the detections below a score."""
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


def find_rows(
    table: np.ndarray,
    wanted: np.ndarray | Sequence[int],
    what: str,
    where: str,
    dtype: type[np.integer] = np.int64,
) -> np.ndarray:
    """Looks up the position of each wanted number in a table of distinct integers.

    Works in blocks, so that the memory besides the result is small.

    Args:
        table: (n,) distinct integers.
        wanted: Integers to look up, of any shape.
        what: What the integers are, for the message.
        where: Where they come from, for the message.
        dtype: Type of the result.

    Returns:
        Positions, in the shape of ``wanted``.

    Raises:
        ValueError: If numbers are missing from the table; the message lists the first ones.
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
            f"{where}: {len(missing)} {what}(s) are missing, the first ones: {missing[:5].tolist()}"
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
    """Joins the outputs of several processes into arrays in the order of the data set.

    Args:
        parts: One dict per process, see
            :meth:`person_search.evaluation.collector.PredictionCollector.arrays`.
        dataset_image_ids: (I,) ids of all test images, in the order of the data set.
        info: See :class:`PooledPredictions`.
        image_names: See :class:`PooledPredictions`.
        gt_boxes: (M, 4) boxes of the data set, where the parts contain ``gt_feats``.

    Raises:
        ValueError: If an image was processed twice or never, or embeddings differ in length.
    """
    dims = {
        part[name].shape[1]
        for part in parts
        for name in ("reid_feats", "query_feats", "gt_feats")
        if len(part.get(name, ()))
    }
    if len(dims) > 1:
        raise ValueError(f"embeddings of different lengths: {sorted(dims)}; all must be equal")
    dim = dims.pop() if dims else 0
    joined = {
        name: np.concatenate(
            # a process without images knows neither the embedding's length nor the gt arrays
            [part[name] if len(part.get(name, ())) else _empty_rows(name, dim) for part in parts]
        )
        for name in dict.fromkeys(name for part in parts for name in part)
    }
    ids, times = np.unique(joined["image_ids"], return_counts=True)
    if (times > 1).any():
        raise ValueError(
            f"image_id {ids[times > 1][:5].tolist()} was processed more than once; every test "
            "image must be processed exactly once (was reset() called between two runs?)"
        )
    missing = np.setdiff1d(dataset_image_ids, ids)
    if len(missing):
        raise ValueError(
            f"{len(missing)} of {len(dataset_image_ids)} test images were never processed, first "
            f"image_ids: {missing[:5].tolist()}. Search metrics need the whole test set."
        )
    arrival = find_rows(joined["image_ids"], dataset_image_ids, "image_id", "predictions")
    dets, det_offsets = _rows_of_images(joined["det_counts"], arrival)
    gt = {}
    if gt_boxes is not None:
        rows, gt_offsets = _rows_of_images(joined["gt_counts"], arrival)
        gt = {
            "gt_feats": joined["gt_feats"][rows],
            "gt_offsets": gt_offsets,
            "gt_boxes": np.asarray(gt_boxes, np.float32),
        }
    by_query = np.argsort(joined["query_ids"], kind="stable")
    return PooledPredictions(
        image_ids=np.asarray(dataset_image_ids, np.int64),
        det_offsets=det_offsets,
        **{name: joined[name][dets] for name in ("boxes", "scores", "reid_feats")},
        **{name: joined[name][by_query] for name in ("query_ids", "query_feats")},
        info=info,
        image_names=image_names,
        **gt,
    )


def _rows_of_images(counts: np.ndarray, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the rows of the given images, of ``counts`` rows each, and their new offsets."""
    starts = (np.cumsum(counts) - counts)[images]
    _, rows = expand_ranges(starts, counts[images])
    return rows, np.concatenate([[0], np.cumsum(counts[images])]).astype(np.int64)


def _empty_rows(name: str, dim: int) -> np.ndarray:
    if name.endswith(("_ids", "_counts")):
        return np.zeros(0, np.int64)
    widths = {"boxes": (4,), "scores": ()}
    return np.zeros((0, *widths.get(name, (dim,))), np.float32)


# ---- the file ----------------------------------------------------------------------------------
def write_predictions(predictions: PooledPredictions, path: str | os.PathLike) -> None:
    """Writes one ``.npz`` file, which appears under its name only once it is complete.

    Raises:
        OSError: If the file cannot be written; nothing is left behind.
    """
    header = {"format": FORMAT, "version": FORMAT_VERSION, "info": predictions.info}
    arrays = {name: getattr(predictions, name) for name in (*ARRAY_NAMES, *OPTIONAL_NAMES)}
    arrays = {name: values for name, values in arrays.items() if values is not None}
    write_atomically(path, lambda f: np.savez(f, header=np.array(json.dumps(header)), **arrays))


def read_predictions(path: str | os.PathLike) -> PooledPredictions:
    """Reads a predictions file and checks everything that does not need the data set.

    Returns:
        The predictions in the order of the file. If the file names its images only by
        ``image_names``, all ``image_ids`` are -1 until :func:`fit_to_dataset` sets them.

    Raises:
        FileNotFoundError: If the file does not exist.
        ValueError: If it is not a predictions file or has invalid content.
    """
    header, arrays = _read_arrays(path)
    found = (header.get("format"), header.get("version"))
    if found != (FORMAT, FORMAT_VERSION):
        raise ValueError(
            f"{path} has format {found}, expected {(FORMAT, FORMAT_VERSION)}. "
            "Run the evaluation again to re-create it."
        )
    info = header.get("info") or {}
    if not isinstance(info, dict) or not isinstance(info.get("score_thresh", 0.0), int | float):
        raise ValueError(
            f"{path}: 'info' of the header is {info!r}, must be an object whose "
            "'score_thresh', if present, is a number"
        )
    arrays = {name: _checked(f"{path}: '{name}'", name, a) for name, a in arrays.items()}
    if "image_ids" not in arrays:
        arrays["image_ids"] = np.full(len(arrays["image_names"]), -1, np.int64)
    lengths = {n: a.shape[-1] for n, a in arrays.items() if n.endswith("_feats") and len(a)}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"{path}: embeddings of different lengths: {lengths}; all must be equal")
    dim = next(iter(lengths.values()), 0)
    for name in ("reid_feats", "query_feats", "gt_feats"):
        if name in arrays and not len(arrays[name]):
            arrays[name] = np.zeros((0, dim), np.float32)
    try:
        return PooledPredictions(**arrays, info=info)
    except (ValueError, IndexError) as e:
        raise ValueError(f"{path}: {e}") from e


def _read_arrays(path: str | os.PathLike) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    try:
        loaded = np.load(path, allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            raise ValueError("it contains a single array")
        with loaded as file:
            present = set(file.files)
            missing = [name for name in ("header", *ARRAY_NAMES) if name not in present]
            if missing and not (missing == ["image_ids"] and "image_names" in present):
                raise ValueError(f"the entries {missing} are missing; it has {sorted(present)}")
            header = json.loads(str(file["header"]))
            wanted = [n for n in (*ARRAY_NAMES, *OPTIONAL_NAMES) if n in present]
            arrays = {name: file[name] for name in wanted}
        if not isinstance(header, dict):
            raise ValueError("its header is not a JSON object")
    except (
        *(ValueError, TypeError, EOFError),
        *(zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError),  # damaged archives
    ) as e:
        raise ValueError(f"{path} is not a complete predictions file (.npz): {e}") from e
    return header, arrays


def _checked(where: str, name: str, values: np.ndarray) -> np.ndarray:
    """Returns one array in the type of :class:`PooledPredictions`, or raises a ValueError."""
    if values.ndim == 0:
        raise ValueError(f"{where} is a single value, must be an array")
    if name == "image_names":
        if values.dtype.kind != "U":
            raise ValueError(f"{where} must contain text, but has the type {values.dtype}")
        # any folder, also of Windows, and one form of accents, which file systems differ in
        names = [normalize("NFC", re.split(r"[/\\]", name)[-1]) for name in values.tolist()]
        return np.array(names, np.str_)
    if values.dtype.kind not in ("iu" if name in INTEGERS else "iuf"):
        kind = "integers" if name in INTEGERS else "numbers"
        raise ValueError(f"{where} must contain {kind}, but has the type {values.dtype}")
    if name in INTEGERS:
        values = values.astype(np.int64)
        if name.endswith("_ids"):
            ids, times = np.unique(values, return_counts=True)
            if (times > 1).any():
                raise ValueError(f"{where} contains duplicates: {ids[times > 1][:5].tolist()}")
        return values
    with np.errstate(over="ignore"):  # becomes infinite, which is refused below
        values = values.astype(np.float32)
    rows = np.flatnonzero(~np.isfinite(values).all(axis=tuple(range(1, values.ndim))))
    if len(rows):
        raise ValueError(f"{where}: {len(rows)} rows are not finite, first: {rows[:5].tolist()}")
    if name == "scores":
        rows = np.flatnonzero(np.abs(values - 0.5) > 0.5 + SCORE_TOLERANCE)
        if len(rows):
            raise ValueError(
                f"{where}: {len(rows)} of {len(values)} scores are outside [0, 1], first: row "
                f"{rows[0]}, {values.reshape(-1)[rows[0]]:.6g}. Write probabilities, not logits or "
                "percent."
            )
    if name.endswith("boxes"):
        if values.ndim != 2 or values.shape[1] != 4:
            raise ValueError(f"{where} has shape {values.shape}, expected (n, 4)")
        rows = np.flatnonzero((values[:, 2:] < values[:, :2]).any(axis=1))
        if len(rows):
            raise ValueError(
                f"{where}: {len(rows)} of {len(values)} boxes end before they start, first: row "
                f"{rows[0]}, {values[rows[0]].tolist()}. The order is x1, y1, x2, y2 in pixels; "
                "are these x, y, width, height?"
            )
    if name.endswith("_feats"):
        if values.ndim != 2:
            raise ValueError(f"{where} has shape {values.shape}, expected (n, D)")
        norms = np.linalg.norm(values, axis=1)
        rows = np.flatnonzero(np.abs(norms - 1) > UNIT_TOLERANCE)
        if len(rows):
            raise ValueError(
                f"{where}: embeddings must be unit vectors, but {len(rows)} of {len(values)} are "
                f"not, first: row {rows[0]} with norm {norms[rows[0]]:.4g}. Divide each by its "
                "norm; weighting by the detection score is an option of the evaluation "
                "(SIMILARITY 'cws')."
            )
    return values


# ---- the data set ------------------------------------------------------------------------------
def fit_to_dataset(
    predictions: PooledPredictions, truth: "GroundTruth", dataset_name: str, path: str | os.PathLike
) -> PooledPredictions:
    """Sorts predictions into the order of a data set, after checking that they belong to it.

    Args:
        predictions: Predictions from a file, images in any order.
        truth: Ground truth of the data set.
        dataset_name: Name of the data set to score.
        path: Path of the file, for messages.

    Raises:
        ValueError: If images differ or are missing, if many boxes lie far outside their images, or
            if the stored ground truth boxes differ.
    """
    p, made_on = predictions, predictions.info.get("dataset")
    mismatch = f"{path} was made on '{made_on}': its images are not those of '{dataset_name}'"
    if p.image_names is not None and (p.image_ids < 0).all():
        p = replace(p, image_ids=_ids_by_name(p.image_names, truth, mismatch))
    for ids, what in (
        (
            np.setdiff1d(truth.image_ids, p.image_ids),
            f"of {len(truth.image_ids)} images are missing from the file",
        ),
        (np.setdiff1d(p.image_ids, truth.image_ids), "images are not in the data set"),
    ):
        if len(ids):
            raise ValueError(f"{mismatch}: {len(ids)} {what}, first image_ids: {ids[:5].tolist()}")
    p = _reordered(p, find_rows(p.image_ids, truth.image_ids, "image_id", str(path)))
    if p.image_names is None:
        if made_on not in (None, dataset_name):
            raise ValueError(
                f"{mismatch} by name. If both contain the same images, add 'image_names' to the "
                "file, which then decides."
            )
    elif (p.image_names != truth.image_names).any():
        row = int((p.image_names != truth.image_names).argmax())
        theirs, ours = str(p.image_names[row]), str(truth.image_names[row])
        raise ValueError(
            f"{mismatch}: image_id {truth.image_ids[row]} is {theirs!r} in the file and {ours!r} "
            "in the data set"
        )
    sizes = np.repeat(truth.image_sizes, np.diff(p.det_offsets), axis=0)[:, ::-1]  # width, height
    over = np.maximum(p.boxes[:, 2:] - sizes, -p.boxes[:, :2]) > OUTSIDE_MARGIN * sizes
    outside = over.any(axis=1) & (sizes > 0).all(axis=1)
    if len(outside) and outside.mean() > OUTSIDE_SHARE:
        row = int(outside.argmax())
        raise ValueError(
            f"{path}: {100 * outside.mean():.0f} % of the boxes extend far beyond their image, "
            f"first: row {row}, {p.boxes[row].tolist()} in an image of width and height "
            f"{sizes[row].tolist()}. Boxes are x1, y1, x2, y2 in pixels of the original image; are "
            "these of the resized image, or with x and y exchanged?"
        )
    if p.gt_arrays is not None:
        offsets, boxes, _ = p.gt_arrays
        same_counts = np.array_equal(offsets, truth.offsets)
        if not same_counts or np.abs(boxes - truth.boxes).max(initial=0.0) > GT_TOLERANCE:
            raise ValueError(
                f"{path}: its 'gt_boxes' are not the {len(truth.boxes)} annotated boxes of the "
                "data set, all of them, in the order of the annotations"
            )
    return replace(p, image_names=truth.image_names)


def _ids_by_name(names: np.ndarray, truth: "GroundTruth", mismatch: str) -> np.ndarray:
    id_of = dict(zip(truth.image_names.tolist(), truth.image_ids.tolist(), strict=True))
    if len(id_of) < len(truth.image_names):
        raise ValueError(f"{mismatch}: file names occur twice in it, so image_ids are needed")
    unknown = [name for name in names.tolist() if name not in id_of]
    if unknown:
        raise ValueError(f"{mismatch}: it lacks {len(unknown)} of them, first: {unknown[:3]}")
    if len(set(names.tolist())) < len(names):
        raise ValueError(f"{mismatch}: an image is listed twice")
    return np.array([id_of[name] for name in names.tolist()], np.int64)


def _reordered(p: PooledPredictions, order: np.ndarray) -> PooledPredictions:
    """Returns the predictions with image ``order[i]`` in place i."""
    if (order == np.arange(len(order))).all():
        return p
    rows, offsets = _rows_of_images(np.diff(p.det_offsets), order)
    changes: dict[str, Any] = {
        "image_ids": p.image_ids[order],
        "image_names": None if p.image_names is None else p.image_names[order],
        "det_offsets": offsets,
        **{name: getattr(p, name)[rows] for name in ("boxes", "scores", "reid_feats")},
    }
    if p.gt_arrays is not None:
        gt_offsets, boxes, feats = p.gt_arrays
        rows, offsets = _rows_of_images(np.diff(gt_offsets), order)
        changes |= {"gt_offsets": offsets, "gt_boxes": boxes[rows], "gt_feats": feats[rows]}
    return replace(p, **changes)
