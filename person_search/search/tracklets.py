# SPDX-License-Identifier: Apache-2.0
"""Tracklets: the detections of one person in neighboring frames of a video.

The frames are visited in the order of time. Their persons continue earlier tracklets by a minimum
cost assignment; the cost is the distance in space, relative to how far a person gets meanwhile,
plus the distance of the embeddings. How similar two persons are depends on the model and the video,
so embeddings are compared relative to the average person of the video: no threshold depends on the
model. docs/search.md compares this with a tracker that uses boxes only.

Tracklets are a function of the live rows of a video. ``tracklets.npz`` in the folder of the gallery
only saves the time of computing them; it holds numbers, no embeddings.

Shape shorthand: N rows (persons) of a gallery, n of one video, F frames, T tracklets, D embedding
dimension. Boxes are XYXY pixels.
"""

import logging
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from scipy.optimize import linear_sum_assignment

from person_search.search.table import ImageTable
from person_search.utils.files import write_atomically

logger = logging.getLogger(__name__)

NUMBERS_FILE, RULE = "tracklets.npz", 1
"""File of the numbers, and version of the rule that made them: change it with the rule."""
GAP = 3.0
"""Seconds without a detection after which a tracklet ends."""
REACH, SPEED = 0.25, 0.7
"""How far a person gets in heights of the box: at once (errors of the boxes), and per second."""
HEIGHT_RATIO = 1.6
"""Maximum ratio of the heights of consecutive boxes."""
VELOCITY_SECONDS = 0.3
"""Time constant of the moving average of the velocity."""
MEMORY = 0.7
"""Weight of the earlier embeddings in the moving average of a tracklet."""
CUT = 1.35
"""The scene changes where the mean embedding of the persons changes by more than ``CUT`` times what
is expected of independent persons of one scene (variances)."""
OUTLIER, SMALLEST_CHANGE = 3.0, 0.1
"""If no frame shows two persons, an embedding that changes by more than ``OUTLIER`` times the
median change, and by ``SMALLEST_CHANGE``, belongs to another person."""
ROUNDING = 1e-6
FORBIDDEN = 1e6
"""Cost of an impossible pair."""
BEST_CROPS = 5
"""Number of crops that are averaged into the embedding of a tracklet."""
BLOCK = 65_536
"""Rows that are averaged at a time."""


@dataclass(slots=True)
class _Tracklet:
    """A tracklet that may continue.

    Attributes:
        number: Its number.
        time: Seconds of its last frame.
        center: Center of its last box.
        height: Height of its last box.
        velocity: Pixels per second (2,), a moving average.
        feat: Moving average of its embeddings (D,), relative to the average person.
    """

    number: int
    time: float
    center: np.ndarray
    height: float
    velocity: np.ndarray
    feat: np.ndarray


def group_frames(
    offsets: Sequence[float] | np.ndarray,
    counts: Sequence[int] | np.ndarray,
    boxes: np.ndarray,
    reid_feats: np.ndarray,
) -> np.ndarray:
    """Groups the persons of a video into tracklets.

    Args:
        offsets: Seconds of the frames (F,) from the start of the video, increasing.
        counts: Number of persons in each frame (F,).
        boxes: Boxes of all persons (n, 4), frame by frame.
        reid_feats: Their embeddings (n, D) of unit length.

    Returns:
        Numbers (n,) int32 of the tracklets, in the order of their first persons.
    """
    numbers = np.full(len(boxes), -1, np.int32)
    average, least, cuts = _study(counts, reid_feats)
    centers = (boxes[:, :2] + boxes[:, 2:]) / 2
    heights = np.maximum(boxes[:, 3] - boxes[:, 1], 1.0)
    active: list[_Tracklet] = []
    used = end = 0
    for time, count, cut in zip(offsets, counts, cuts, strict=True):
        start, end = end, end + int(count)
        feats = _unit(reid_feats[start:end] - average)
        active = [one for one in active if not cut and time - one.time <= GAP + ROUNDING]
        pairs = _continued(active, time, centers[start:end], heights[start:end], feats, least)
        for j in range(count):
            row = start + j
            if j in pairs:
                one = active[pairs[j]]
                passed = max(time - one.time, ROUNDING)
                share = 1 - np.exp(-passed / VELOCITY_SECONDS)
                moved = (centers[row] - one.center) / passed
                one.velocity = (1 - share) * one.velocity + share * moved
                one.feat = MEMORY * one.feat + (1 - MEMORY) * feats[j]
                one.time, one.center, one.height = time, centers[row], heights[row]
            else:
                one = _Tracklet(used, time, centers[row], heights[row], np.zeros(2), feats[j])
                active.append(one)
                used += 1
            numbers[row] = one.number
    return numbers


def _study(
    counts: Sequence[int] | np.ndarray, reid_feats: np.ndarray
) -> tuple[np.ndarray, float, np.ndarray]:
    """Finds out how similar the persons of a video are to each other.

    Two embeddings are compared by the cosine of their differences from the average person. It is
    positive if they resemble each other more than two persons of the video do on average. Only
    frames with several persons count, and each counts once: in a video of a single person, the
    differences from the average would be noise.

    Embeddings also depend on the scene. From one frame to the next, the mean embedding changes less
    than between independent samples of the persons, and more than that at a cut.

    Returns:
        The embedding of the average person (D,); the minimum similarity; and whether each frame
        starts a scene (F,).
    """
    cuts = np.zeros(len(counts), bool)
    shown = np.flatnonzero(counts)
    parts = [part for part in np.split(reid_feats, np.cumsum(counts)[:-1]) if len(part)]
    sizes = np.asarray(counts)[shown]
    if (sizes > 1).any():
        means = np.array([part.mean(axis=0) for part in parts])
        spread = np.mean([part.var(axis=0, ddof=1).sum() for part in parts if len(part) > 1])
        changes = np.sum(np.diff(means, axis=0) ** 2, axis=1)
        expected = spread * (1 / sizes[1:] + 1 / sizes[:-1])
        cuts[shown[1:]] = changes > CUT * expected + ROUNDING
        return means[sizes > 1].mean(axis=0), 0.0, cuts
    changes = 1 - np.vecdot(reid_feats[1:], reid_feats[:-1])  # one person in every frame
    change = np.median(changes) if len(changes) else 0.0
    least = 1 - max(OUTLIER * change, SMALLEST_CHANGE)
    return np.zeros(reid_feats.shape[1], np.float32), least, cuts


def _continued(
    active: Sequence[_Tracklet],
    time: float,
    centers: np.ndarray,
    heights: np.ndarray,
    feats: np.ndarray,
    least: float,
) -> dict[int, int]:
    """Assigns the persons of a frame to tracklets.

    Returns:
        Index of the tracklet by the index of the person.
    """
    if not active or not len(feats):
        return {}
    passed = np.array([time - one.time for one in active])
    expected = np.array([one.center + one.velocity * (time - one.time) for one in active])
    before = np.array([one.height for one in active])
    distances = np.linalg.norm(expected[:, None] - centers, axis=2)
    reach = (REACH + SPEED * passed)[:, None] * (before[:, None] + heights) / 2
    sims = _unit(np.array([one.feat for one in active])) @ feats.T
    ratios = np.maximum(before[:, None] / heights, heights / before[:, None])
    impossible = (distances > reach) | (ratios > HEIGHT_RATIO) | (sims < least - ROUNDING)
    costs = np.where(impossible, FORBIDDEN, 1 - sims + distances / reach)
    rows, columns = linear_sum_assignment(costs)
    possible = ~impossible[rows, columns]
    return dict(zip(columns[possible].tolist(), rows[possible].tolist(), strict=True))


def _unit(feats: np.ndarray) -> np.ndarray:
    """Scales vectors (n, D) to unit length; those that are zero but for rounding become zero."""
    return feats / np.maximum(np.linalg.norm(feats, axis=1, keepdims=True), 1e-3)


# ---- of a gallery --------------------------------------------------------------------------------


class Tracklets:
    """The tracklets of all videos of a gallery.

    Args:
        numbers: Tracklet of each row (N,) int32, 0 to T - 1; -1 for rows of images, and of replaced
            and removed frames.
        boxes: Boxes and scores of each segment (n_i, 5).
        vectors: Embeddings of each segment (n_i, D).

    Attributes:
        numbers: As given.
        rows: Rows of all tracklets, tracklet by tracklet, each in the order of the gallery.
        starts: Index of the first row of each tracklet in ``rows`` (T + 1,).
        reid_feats: Embeddings of the tracklets (T, D): the mean of the ``BEST_CROPS`` best crops,
            scaled to unit length.
    """

    def __init__(
        self, numbers: np.ndarray, boxes: Sequence[np.ndarray], vectors: Sequence[np.ndarray]
    ) -> None:
        self.numbers = numbers
        self.rows = np.flatnonzero(numbers >= 0)
        self.rows = self.rows[np.argsort(numbers[self.rows], kind="stable")]
        self.starts = np.searchsorted(numbers[self.rows], np.arange(numbers.max(initial=-1) + 2))
        self._quality = crop_quality(take_rows(boxes, self.rows))
        # rows by tracklet and quality; of each tracklet the first ones
        best = np.lexsort((-self._quality, numbers[self.rows]))
        place = np.arange(len(best)) - self.starts[numbers[self.rows]]
        best = self.rows[best[place < BEST_CROPS]]
        dim = vectors[0].shape[1] if vectors else 0
        sums = np.zeros((len(self), dim), np.float32)
        for start in range(0, len(best), BLOCK):
            some = best[start : start + BLOCK]
            np.add.at(sums, numbers[some], take_rows(vectors, some))
        self.reid_feats = sums / np.maximum(np.linalg.norm(sums, axis=1, keepdims=True), 1e-6)

    def __len__(self) -> int:
        return len(self.starts) - 1

    def any_of(self, mask: np.ndarray) -> np.ndarray:
        """Returns whether a mask of rows (N,) bool is true for any row of each tracklet (T,)."""
        return np.logical_or.reduceat(mask[self.rows], self.starts[:-1])

    def rows_of(self, number: int, mask: np.ndarray | None = None) -> np.ndarray:
        """Returns the rows of a tracklet, the best crop first; only those of a mask (N,)."""
        own = slice(self.starts[number], self.starts[number + 1])
        rows = self.rows[own][np.argsort(-self._quality[own], kind="stable")]
        return rows if mask is None else rows[mask[rows]]


def crop_quality(boxes: np.ndarray) -> np.ndarray:
    """Rates crops by detection score and height; boxes (n, 5) with the score last."""
    return boxes[:, 4] * (boxes[:, 3] - boxes[:, 1])


def take_rows(parts: Sequence[np.ndarray], rows: np.ndarray) -> np.ndarray:
    """Returns rows of arrays, numbered consecutively through all of them, in the given order.

    Consecutive rows of one array are not copied.
    """
    starts = np.cumsum([0, *map(len, parts)])
    first = int(np.searchsorted(starts, rows[0], side="right")) - 1 if len(rows) else 0
    if len(rows) and rows[-1] < starts[first + 1] and (np.diff(rows) == 1).all():
        return parts[first][rows[0] - starts[first] : rows[-1] - starts[first] + 1]
    taken = np.empty((len(rows), *parts[0].shape[1:]), parts[0].dtype)
    for start, part in zip(starts, parts, strict=False):
        inside = (rows >= start) & (rows < start + len(part))
        taken[inside] = part[rows[inside] - start]
    return taken


def number_rows(
    image_of_row: np.ndarray,
    images: ImageTable,
    boxes: Sequence[np.ndarray],
    vectors: Sequence[np.ndarray],
    known: np.ndarray,
) -> np.ndarray:
    """Groups the persons of all videos of a gallery.

    Args:
        image_of_row: Image of each row (N,); -1 for replaced and removed images.
        images: Table of the images and frames.
        boxes: Boxes and scores of each segment (n_i, 5).
        vectors: Embeddings of each segment (n_i, D).
        known: Saved numbers (N,); -1 if unknown. Those of a video are used if they cover exactly
            its live rows, which makes the result independent of them.

    Returns:
        Numbers (N,) int32 as in :class:`Tracklets`.
    """
    numbers = np.full(len(image_of_row), -1, np.int32)
    video_of: dict[tuple[int, str], int] = {}
    videos = np.full(len(images), -1)
    for i in np.flatnonzero(images.frames >= 0):
        key = int(images.roots[i]), images.paths[i]
        videos[i] = video_of.setdefault(key, len(video_of))
    rows = np.flatnonzero(image_of_row >= 0)
    rows = rows[videos[image_of_row[rows]] >= 0]
    rows = rows[np.lexsort((images.frames[image_of_row[rows]], videos[image_of_row[rows]]))]
    outdated = np.unique(known[(image_of_row < 0) & (known >= 0)])
    bounds = np.searchsorted(videos[image_of_row[rows]], np.arange(len(video_of) + 1))
    used = 0
    for start, end in zip(bounds[:-1], bounds[1:], strict=True):
        own = rows[start:end]
        saved = known[own]
        if (saved >= 0).all() and not np.isin(saved, outdated).any():
            _, first, grouped = np.unique(saved, return_index=True, return_inverse=True)
            grouped = np.argsort(np.argsort(first))[grouped]  # in the order of the first persons
        else:
            frames, counts = np.unique(image_of_row[own], return_counts=True)
            order = np.argsort(images.frames[frames])
            grouped = group_frames(
                images.offsets[frames][order],
                counts[order],
                take_rows(boxes, own)[:, :4],
                take_rows(vectors, own),
            )
        numbers[own] = grouped + used
        used += int(grouped.max(initial=-1)) + 1
    return numbers


def save_numbers(folder: Path, rows: Mapping[str, int], numbers: np.ndarray) -> None:
    """Saves the numbers of a gallery; the caller holds its lock.

    Args:
        folder: Folder of the gallery.
        rows: Number of rows of each segment.
        numbers: Numbers (N,).
    """
    write_atomically(
        folder / NUMBERS_FILE,
        partial(
            np.savez_compressed,
            rule=RULE,
            segments=list(rows),
            rows=list(rows.values()),
            numbers=numbers,
        ),
    )


def load_numbers(folder: Path, rows: Mapping[str, int]) -> np.ndarray:
    """Reads the saved numbers of a gallery.

    Args:
        folder: Folder of the gallery.
        rows: Number of rows of each segment now.

    Returns:
        Numbers (N,) int32; -1 for rows that were added later, and for all rows without a file, and
        if it is damaged (logged) or belongs to another rule.
    """
    numbers = np.full(sum(rows.values()), -1, np.int32)
    try:
        with np.load(folder / NUMBERS_FILE) as saved:
            if saved["rule"] != RULE:
                return numbers
            counts = dict(zip(saved["segments"].tolist(), saved["rows"].tolist(), strict=True))
            values, start = saved["numbers"], 0
    except FileNotFoundError:
        return numbers
    except (ValueError, KeyError, OSError, EOFError, zipfile.BadZipFile) as e:
        logger.warning(
            "'%s' is damaged (%s); the tracklets are computed again.", folder / NUMBERS_FILE, e
        )
        return numbers
    places = np.cumsum([0, *rows.values()])
    place_of = dict(zip(rows, places, strict=False))
    if sum(counts.values()) == len(values):
        for name, count in counts.items():
            if count <= rows.get(name, 0):  # a compaction replaces segments
                numbers[place_of[name] : place_of[name] + count] = values[start : start + count]
            start += count
    return numbers
