# SPDX-License-Identifier: Apache-2.0
"""The query: the person in a box, at a point, or with the highest detection score.

Boxes and points are pixels of the upright image (EXIF orientation applied).
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from person_search.search.embedder import PersonEmbedder
from person_search.search.images import clip_box, read_image
from person_search.search.names import printable
from person_search.search.remote import local_copy
from person_search.search.videos import read_frame


@dataclass(frozen=True)
class QueryPerson:
    """An image of the person to search for.

    Attributes:
        path: Image or video file.
        box: Box of the person, XYXY.
        reid_feat: Embedding (D,) of unit length.
        score: Detection score; None for a box drawn by the user.
        frame: Index of the frame if ``path`` is a video.
        name: Displayed name of the image. Default: the file name.
    """

    path: str
    box: tuple[float, float, float, float]
    reid_feat: np.ndarray
    score: float | None = None
    frame: int | None = None
    name: str = ""

    @property
    def shown_name(self) -> str:
        """Name of the image for a person to read."""
        return printable(self.name or Path(self.path).name)

    def read(self) -> np.ndarray:
        """Reads the image or frame as an array (H, W, 3) uint8 RGB."""
        with local_copy(self.path) as local:
            return read_image(local) if self.frame is None else read_frame(local, self.frame)

    def to_json(self) -> dict:
        """Returns plain types, without the embedding."""
        known = {
            "frame": self.frame,
            "score": None if self.score is None else round(self.score, 4),
        }
        return {
            "image": self.name or self.path,
            "box": [round(v, 1) for v in self.box],
            **{key: value for key, value in known.items() if value is not None},
        }


def person_in_box(
    embedder: PersonEmbedder, path: str | os.PathLike, box: Sequence[float]
) -> QueryPerson:
    """Returns the person in a box drawn by the user, clipped to the image.

    Raises:
        FileNotFoundError: If the image does not exist.
        BadImageError: If the image is unreadable.
        ValueError: If the box has no area or lies outside the image.
    """
    image = read_image(path, embedder.image_format)
    x1, y1, x2, y2 = map(float, clip_box(box, image.shape[1], image.shape[0], path))
    (feat,) = embedder.embed_in(image, [(x1, y1, x2, y2)])
    return QueryPerson(os.fspath(path), (x1, y1, x2, y2), feat)


def detected_person(
    embedder: PersonEmbedder,
    path: str | os.PathLike,
    point: tuple[float, float] | None = None,
) -> QueryPerson:
    """Returns the person detected with the highest score, or the person detected at a point.

    Args:
        embedder: Embedder, which detects with its own score threshold.
        path: Image file.
        point: (x, y); of several persons there, the one with the smallest box is returned.

    Raises:
        FileNotFoundError: If the image does not exist.
        BadImageError: If the image is unreadable.
        ValueError: If no person is detected, or none at the point; the message lists detections.
    """
    image = read_image(path, embedder.image_format)
    height, width = image.shape[:2]
    if point is not None and not (0 <= point[0] < width and 0 <= point[1] < height):
        raise ValueError(
            f"the point {point[0]:g} {point[1]:g} lies outside the image '{path}', which has "
            f"{width} x {height} pixels (width x height)."
        )
    found = embedder.detect(image)
    boxes, scores = found.pred_boxes.tensor.numpy(), found.scores.numpy()
    if not len(boxes):
        raise ValueError(
            f"no person was detected in '{path}' with a score of at least "
            f"{embedder.score_thresh:g}; give the box of the person, or lower "
            "TEST.PERSON_SEARCH.SCORE_THRESH."
        )
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    if point is None:
        row = int(np.lexsort((-areas, -scores))[0])
    else:
        x, y = point
        inside = (boxes[:, 0] <= x) & (x <= boxes[:, 2]) & (boxes[:, 1] <= y) & (y <= boxes[:, 3])
        if not inside.any():
            listed = "; ".join(" ".join(f"{v:.0f}" for v in box) for box in boxes[:5])
            raise ValueError(
                f"no person was detected at {x:g} {y:g} in '{path}'. Detected (x1 y1 x2 y2): "
                f"{listed}."
            )
        row = int(np.where(inside, areas, np.inf).argmin())
    x1, y1, x2, y2 = map(float, boxes[row])
    feat = found.reid_feats[row].numpy()
    return QueryPerson(os.fspath(path), (x1, y1, x2, y2), feat, float(scores[row]))


def fuse(reid_feats: Sequence[np.ndarray]) -> np.ndarray:
    """Averages embeddings of the same person.

    Args:
        reid_feats: Embeddings (D,) of several images of a person.

    Returns:
        The normalized mean (D,) of the normalized embeddings, the unit vector with the largest
        mean similarity to them.

    Raises:
        ValueError: If no embedding is given, or their mean is zero.
    """
    if not len(reid_feats):
        raise ValueError("no query is given.")
    feats = np.asarray(reid_feats, np.float64)
    mean = (feats / np.linalg.norm(feats, axis=1, keepdims=True)).mean(axis=0)
    length = np.linalg.norm(mean)
    if not length > 1e-6:
        raise ValueError("the images of the query contradict each other: their mean is zero.")
    return (mean / length).astype(np.float32)
