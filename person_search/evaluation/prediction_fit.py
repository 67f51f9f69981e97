# SPDX-License-Identifier: Apache-2.0
"""Whether predictions belong to a data set, and its order for them.

Shape shorthand: I images, N detections, M ground truth boxes.
"""

import os
from dataclasses import replace
from typing import Any

import numpy as np

from person_search.evaluation.box_metrics import expand_ranges
from person_search.evaluation.ground_truth import GroundTruth
from person_search.evaluation.predictions import PooledPredictions, find_rows

GT_TOLERANCE = 2.0
"""Pixels by which a stored ground truth box may differ; data sets count from 0 or from 1."""
OUTSIDE_SHARE = 0.1
"""Share of the boxes that may reach further over the border than the margin below."""
OUTSIDE_MARGIN = 0.1
"""Part of the image's width or height."""


def fit_to_dataset(
    predictions: PooledPredictions, truth: GroundTruth, dataset_name: str, path: str | os.PathLike
) -> PooledPredictions:
    """Puts predictions into the order of a data set, after checking that they belong to it.

    Args:
        predictions: from a file, images in any order.
        truth: of the data set.
        dataset_name: the data set that is to be scored.
        path: of the file, for messages.

    Raises:
        ValueError: other images, images missing, boxes far outside their images, or other ground
            truth boxes.
    """
    p, made_on = predictions, predictions.info.get("dataset")
    strange = f"{path} was made on '{made_on}': its images are not those of '{dataset_name}'"
    if p.image_names is not None and (p.image_ids < 0).all():
        p = replace(p, image_ids=_ids_by_name(p.image_names, truth, strange))
    _check_images(p.image_ids, truth.image_ids, strange)
    order = find_rows(p.image_ids, truth.image_ids, "image_id", str(path))
    p = _reordered(p, order)
    if p.image_names is None:
        if made_on not in (None, dataset_name):
            raise ValueError(
                f"{strange} by name. If both are the same images, write 'image_names' into the "
                "file, which then decides."
            )
    elif (p.image_names != truth.image_names).any():
        row = int((p.image_names != truth.image_names).argmax())
        theirs, ours = str(p.image_names[row]), str(truth.image_names[row])
        raise ValueError(
            f"{strange}: image_id {truth.image_ids[row]} is {theirs!r} in the file and {ours!r} in "
            "the data set"
        )
    _check_inside(p, truth, path)
    _check_gt_boxes(p, truth, path)
    return replace(p, image_names=truth.image_names)


def _ids_by_name(names: np.ndarray, truth: GroundTruth, strange: str) -> np.ndarray:
    known = dict(zip(truth.image_names.tolist(), truth.image_ids.tolist(), strict=True))
    if len(known) < len(truth.image_names):
        raise ValueError(f"{strange}: file names occur twice in it, so image_ids are needed")
    unknown = [name for name in names.tolist() if name not in known]
    if unknown:
        raise ValueError(f"{strange}: it lacks {len(unknown)} of them, first: {unknown[:3]}")
    return np.array([known[name] for name in names.tolist()], np.int64)


def _check_images(found: np.ndarray, expected: np.ndarray, strange: str) -> None:
    if len(np.unique(found)) < len(found):
        raise ValueError(f"{strange}: an image stands there twice")
    for ids, what in (
        (np.setdiff1d(expected, found), f"of {len(expected)} images are missing from the file"),
        (np.setdiff1d(found, expected), "images are not in the data set"),
    ):
        if len(ids):
            raise ValueError(f"{strange}: {len(ids)} {what}, first image_ids: {ids[:5].tolist()}")


def _reordered(p: PooledPredictions, order: np.ndarray) -> PooledPredictions:
    """The same with image ``order[i]`` in place i."""
    if (order == np.arange(len(order))).all():
        return p
    counts = np.diff(p.det_offsets)[order]
    _, rows = expand_ranges(p.det_offsets[order], counts)
    changes: dict[str, Any] = {
        "image_ids": p.image_ids[order],
        "image_names": None if p.image_names is None else p.image_names[order],
        "det_offsets": np.concatenate([[0], np.cumsum(counts)]),
        **{name: getattr(p, name)[rows] for name in ("boxes", "scores", "reid_feats")},
    }
    if p.gt_arrays is not None:
        offsets, boxes, feats = p.gt_arrays
        counts = np.diff(offsets)[order]
        _, rows = expand_ranges(offsets[order], counts)
        changes |= {"gt_boxes": boxes[rows], "gt_feats": feats[rows]}
        changes["gt_offsets"] = np.concatenate([[0], np.cumsum(counts)])
    return replace(p, **changes)


def _check_inside(p: PooledPredictions, truth: GroundTruth, path: str | os.PathLike) -> None:
    """Boxes of a resized image, or with x and y exchanged, lie outside in good part."""
    sizes = np.repeat(truth.image_sizes, np.diff(p.det_offsets), axis=0)[:, ::-1]  # width, height
    over = np.maximum(p.boxes[:, 2:] - sizes, -p.boxes[:, :2]) > OUTSIDE_MARGIN * sizes
    outside = over.any(axis=1) & (sizes > 0).all(axis=1)
    if len(outside) and outside.mean() > OUTSIDE_SHARE:
        row = int(outside.argmax())
        raise ValueError(
            f"{path}: {100 * outside.mean():.0f} % of the boxes reach far over the border of their "
            f"image, first: row {row}, {p.boxes[row].tolist()} in an image of width and height "
            f"{sizes[row].tolist()}. Boxes are x1, y1, x2, y2 in pixels of the original image; are "
            "these of the resized one, or with x and y exchanged?"
        )


def _check_gt_boxes(p: PooledPredictions, truth: GroundTruth, path: str | os.PathLike) -> None:
    if p.gt_arrays is None:
        return
    offsets, boxes, _ = p.gt_arrays
    same_counts = np.array_equal(offsets, truth.offsets)
    if not same_counts or np.abs(boxes - truth.boxes).max(initial=0.0) > GT_TOLERANCE:
        raise ValueError(
            f"{path}: its 'gt_boxes' are not the {len(truth.boxes)} annotated boxes of the data "
            "set, all of them, in the order of the annotations"
        )
