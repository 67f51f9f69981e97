# SPDX-License-Identifier: Apache-2.0
"""PRW: records and search protocols from the data set's original files.

Boxes are real numbers; they become XYXY first and are clipped to the frame afterwards (published
code differs in rounding, with an effect below 0.1 points). Training identities are positions in
``ID_train.mat`` (483 of them), test identities positions in ``ID_test.mat``; a training identity
that walks through a test frame is unlabelled there.

Shape shorthand: P positives of all queries.
"""

import logging
from collections import defaultdict
from pathlib import Path

import numpy as np

from person_search.data.datasets.common import (
    IrregularityLog,
    check_split,
    make_annotation,
    make_query,
    pad_rows,
    xywh_to_xyxy,
)
from person_search.data.datasets.image_sizes import image_sizes
from person_search.data.datasets.prw_files import (
    FRAME_FOLDER,
    ID_FILES,
    PRW_LAYOUT,
    QUERY_FILE,
    SPLIT_FILES,
    camera_of,
    frame_path,
    read_annotations,
    read_frames,
    read_pids,
    read_queries,
)
from person_search.schema import UNLABELED_PID, Query, SearchProtocol

logger = logging.getLogger(__name__)

PRW_PROTOCOLS = ("all", "multi_view")


def _clip(boxes: np.ndarray, height: int, width: int) -> np.ndarray:
    """Clips (N, 4) XYXY boxes to an image; an image of unknown size (0) clips nothing."""
    if height == 0:
        return boxes
    return np.clip(boxes, 0, [width, height, width, height])


def _describe(box: np.ndarray, image_size: tuple[int, int]) -> str:
    return f"{np.round(box, 3).tolist()}, image {image_size}"


def _make_records(root: Path, split: str, log: IrregularityLog) -> list[dict]:
    """Returns the records of a split, without queries."""
    frames = read_frames(root, split)
    table = read_annotations(root, split, frames)
    paths = [frame_path(root, frame) for frame in frames]
    sizes = image_sizes(root, f"{split}_sizes", paths, PRW_LAYOUT, log)
    label_of = {raw: label for label, raw in enumerate(read_pids(root, split))}
    rows_of = defaultdict(list)
    for row, frame in enumerate(table["box_frame"].tolist()):
        rows_of[frame].append(row)
    records = []
    for image_id, frame in enumerate(frames):
        height, width = (int(value) for value in sizes[image_id])
        rows = rows_of[image_id]
        annotations = _make_annotations(
            f"{root / 'annotations' / frame}.jpg.mat",
            table["boxes"][rows],
            [label_of.get(raw, UNLABELED_PID) for raw in table["raw_pids"][rows].tolist()],
            (height, width),
            log,
        )
        records.append(
            {
                "file_name": str(paths[image_id]),
                "image_id": image_id,
                "height": height,
                "width": width,
                "cam_id": camera_of(frame),
                "annotations": annotations,
            }
        )
    return records


def _make_annotations(
    where: str,
    boxes: np.ndarray,
    labels: list[int],
    image_size: tuple[int, int],
    log: IrregularityLog,
) -> list[dict]:
    """Returns the annotations of one frame: clipped boxes (x, y, w, h given) with an area."""
    xyxy = xywh_to_xyxy(boxes)
    clipped = _clip(xyxy, *image_size)
    annotations, seen = [], set()
    for row, (box, label) in enumerate(zip(clipped, labels, strict=True)):
        place = f"{where}: row {row + 1}"
        if boxes[row, 2:].min() <= 0:
            log.add("zero_size_box", place, _describe(xyxy[row], image_size))
            continue
        if (box[2:] <= box[:2]).any():
            log.add("box_outside", place, _describe(xyxy[row], image_size))
            continue
        if (box != xyxy[row]).any():
            log.add("box_clipped", place, _describe(xyxy[row], image_size))
        if label in seen:
            log.add("twice_in_image", place, f"identity {label}")
        if label != UNLABELED_PID:
            seen.add(label)
        annotations.append(make_annotation(box, label))
    if not annotations:
        log.add("no_boxes", where, "no box with an area")
    return annotations


def _read_test_queries(root: Path, records: list[dict]) -> list[Query]:
    """Returns the queries of ``query_info.txt``; ``query_id`` is the position in the file."""
    record_of = {Path(record["file_name"]).stem: record for record in records}
    label_of = {raw: label for label, raw in enumerate(read_pids(root, "test"))}
    queries = []
    for query_id, line in enumerate(read_queries(root)):
        if line.frame not in record_of:
            raise ValueError(
                f"{line.where}: the frame {line.frame!r} is not in {SPLIT_FILES['test']}"
            )
        if line.raw_pid not in label_of:
            raise ValueError(f"{line.where}: the id {line.raw_pid} is not in {ID_FILES['test']}")
        record = record_of[line.frame]
        size = record["height"], record["width"]
        box = _clip(xywh_to_xyxy(np.array(line.box)), *size)[0]
        if (box[2:] <= box[:2]).any():
            raise ValueError(
                f"{line.where}: the query box {line.box} (x, y, w, h) has no area inside the "
                f"image {record['file_name']} of {size} (height, width)"
            )
        queries.append(
            Query(
                query_id=query_id,
                image_id=record["image_id"],
                box=tuple(box.tolist()),
                person_id=label_of[line.raw_pid],
                cam_id=record["cam_id"],
            )
        )
    return queries


def load_prw(
    root: str | Path, split: str, irregularities: IrregularityLog | None = None
) -> list[dict]:
    """Reads one split of PRW.

    Args:
        root: the folder that holds ``frames`` and ``annotations``.
        split: ``train`` or ``test``.
        irregularities: if given, collects what was odd; otherwise one warning per kind is logged.

    Returns:
        Records sorted by frame name. ``image_id`` is the position in the split. Test records carry
        ``queries``.

    Raises:
        IncompleteDatasetError: if a file is missing, naming the first one.
        ValueError: if the files contradict each other, naming file and line.
    """
    check_split(split)
    root = Path(root)
    log = IrregularityLog() if irregularities is None else irregularities
    queries = [QUERY_FILE] if split == "test" else []
    needed = [SPLIT_FILES[split], ID_FILES[split], *queries, "annotations", FRAME_FOLDER]
    PRW_LAYOUT.require(root, needed)
    records = _make_records(root, split, log)
    if split == "test":
        for record in records:
            record["queries"] = []
        for query in _read_test_queries(root, records):
            records[query.image_id]["queries"].append(make_query(query.query_id, query.box))
    if irregularities is None:
        log.warn(logger, f"PRW {split}")
    return records


def _excluded_images(
    queries: list[Query], records: list[dict], other_cameras_only: bool
) -> dict[str, np.ndarray]:
    """Returns the images that each query must not search, as ``SearchProtocol`` wants them."""
    if not other_cameras_only:
        own = np.array([[query.image_id] for query in queries], np.int32)
        return {"excluded": own.reshape(-1, 1)}
    cameras = np.array([record["cam_id"] for record in records])
    ids = np.array([record["image_id"] for record in records], np.int32)
    of_queries = np.array([query.cam_id for query in queries])
    different, row_of = np.unique(of_queries, return_inverse=True)
    lists = pad_rows([ids[cameras == camera] for camera in different])
    return {"excluded": lists, "excluded_row": row_of.astype(np.int32)}


def load_prw_protocol(root: str | Path, name: str) -> SearchProtocol:
    """Makes a PRW protocol: every test frame is searched except those excluded.

    Args:
        root: the folder that holds ``frames`` and ``annotations``.
        name: ``all`` leaves out the query's own frame (the headline numbers); ``multi_view`` leaves
            out every frame of the query's camera.

    Returns:
        The protocol, with the ``image_id``s and the test identities of ``load_prw(root, "test")``.
        Where one frame holds a person twice, the first box counts.
    """
    if name not in PRW_PROTOCOLS:
        raise ValueError(f"unknown PRW protocol {name!r}; allowed: {list(PRW_PROTOCOLS)}")
    records = load_prw(root, "test", IrregularityLog())  # told when the split itself is read
    queries = _read_test_queries(Path(root), records)
    places: dict[int, dict[int, list[float]]] = defaultdict(dict)
    for record in records:
        for annotation in record["annotations"]:
            places[annotation["person_id"]].setdefault(record["image_id"], annotation["bbox"])

    positive_query, positive_image, positive_box = [], [], []
    for index, query in enumerate(queries):
        for image_id, box in places[query.person_id].items():
            same_camera = records[image_id]["cam_id"] == query.cam_id
            if image_id == query.image_id or (name == "multi_view" and same_camera):
                continue
            positive_query.append(index)
            positive_image.append(image_id)
            positive_box.append(box)
    return SearchProtocol(
        name=name,
        queries=queries,
        gallery=None,
        positive_query=np.array(positive_query, np.int32),
        positive_image=np.array(positive_image, np.int32),
        positive_box=np.array(positive_box, np.float32).reshape(-1, 4),
        **_excluded_images(queries, records, name == "multi_view"),
    )
