# SPDX-License-Identifier: Apache-2.0
"""Approximate search with FAISS: k-means cells, of which a query visits the nearest ones only.

The index (IVF-Flat) stores uncompressed vectors sorted by cell in one memory-mapped file, so
similarities are exact and only the selection is approximate. The number of visited cells is
calibrated when the index is built. Persons added later are searched exactly (see gallery.py).

Shape shorthand: N rows when the index is built, D embedding dimension, k requested results,
C cells.
"""

import importlib
import importlib.util
import json
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import ModuleType

import numpy as np

from person_search.search.errors import GalleryError
from person_search.utils.files import write_atomically

logger = logging.getLogger(__name__)

DESCRIPTION = "index.json"
TRAIN_PER_CELL = 64  # FAISS warns below 39
KMEANS_ITERATIONS = 10
CALIBRATION_QUERIES = 256
CALIBRATION_TOP = 10
ADD_BLOCK = 65_536
MOST_VISITED = 0.5
"""An index of which a query must visit a larger share is dropped: exact search is as fast. Without
clusters in the embeddings, all cells were visited, in 1.5 to 1.9 times the time."""


@dataclass(frozen=True)
class IndexDescription:
    """Content of ``index.json``.

    Attributes:
        file: Name of the FAISS file in the same folder; "" if the index was dropped.
        rows: Number of indexed rows per segment, in the order of the manifest.
        cells: Number of cells C.
        probes: Number of cells that a query visits.
        recall: Recall of the 10 best, measured with rows of the gallery as queries (each row
            itself excluded).
    """

    file: str
    rows: dict[str, int]
    cells: int
    probes: int
    recall: float

    def describe(self) -> str:
        """Returns, for example, "1024 cells, 8 visited, recall of the 10 best 0.998"."""
        if not self.file:
            visited = f"{self.probes} of {self.cells} cells"
            return f"none, exact search is as fast as an index of which a query visits {visited}"
        return f"{self.cells} cells, {self.probes} visited, recall of the 10 best {self.recall:.3f}"


def faiss_module() -> ModuleType:
    """Imports FAISS.

    Raises:
        GalleryError: If FAISS is not installed.
    """
    try:
        return importlib.import_module("faiss")
    except ImportError as e:
        raise GalleryError(
            "the approximate index requires FAISS, which is not installed: pip install faiss-cpu "
            "(or this package with the extra 'search'). Exact search works without it."
        ) from e


class ApproximateIndex:
    """An index on disk, opened for searching.

    Args:
        folder: Folder of the gallery.
        description: Content of its ``index.json``.
    """

    def __init__(self, folder: Path, description: IndexDescription) -> None:
        faiss = faiss_module()
        self.description = description
        flags = faiss.IO_FLAG_MMAP | faiss.IO_FLAG_READ_ONLY
        self._index = faiss.read_index(str(folder / description.file), flags)

    @classmethod
    def open(cls, folder: Path, rows: Mapping[str, int]) -> "ApproximateIndex | None":
        """Opens the index of a gallery.

        Args:
            folder: Folder of the gallery.
            rows: Number of rows of each segment.

        Returns:
            The index; None without an index, without FAISS (logged), or if the index covers rows
            that no longer exist.
        """
        description = read_description(folder)
        if description is None or not description.file:
            return None
        if any(count > rows.get(name, 0) for name, count in description.rows.items()):
            return None
        if importlib.util.find_spec("faiss") is None:
            logger.warning("The gallery '%s' has an approximate index, which requires FAISS (pip "
                           "install faiss-cpu); it is searched exactly.", folder)  # fmt: skip
            return None
        return cls(folder, description)

    def __len__(self) -> int:
        return self._index.ntotal

    def search(
        self, query_feat: np.ndarray, k: int, allowed: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Finds the k most similar rows.

        Args:
            query_feat: Query embedding (D,).
            k: Number of rows.
            allowed: Mask (N,) bool of the rows that may be found; None for all rows.

        Returns:
            Similarities and rows, best first.
        """
        faiss = faiss_module()
        # the probes are calibrated for the 10 best; longer lists visit more cells
        probes = self.description.probes * -(-k // (2 * CALIBRATION_TOP))
        parameters = faiss.SearchParametersIVF(nprobe=min(probes, self._index.nlist))
        if allowed is not None:
            bits = np.packbits(allowed, bitorder="little")  # must outlive the search
            parameters.sel = faiss.IDSelectorBitmap(bits)
        query = np.ascontiguousarray(query_feat, np.float32)[None]
        sims, rows = self._index.search(query, min(k, len(self)), params=parameters)
        found = rows[0] >= 0
        return sims[0][found], rows[0][found]


def read_description(folder: Path) -> IndexDescription | None:
    """Reads ``index.json``; returns None if it or a file that it names is missing.

    Raises:
        GalleryError: If ``index.json`` is damaged.
    """
    path = folder / DESCRIPTION
    if not path.is_file():
        return None
    try:
        description = IndexDescription(**json.loads(path.read_bytes()))
    except (ValueError, TypeError) as e:
        raise GalleryError(f"'{path}' is damaged ({e}); delete it and rebuild the index.") from e
    file = folder / description.file
    if description.file and (
        file.parent != folder or not file.is_file()
    ):  # a name with a path is not one of ours
        return None
    return description


def build_index(
    folder: Path,
    segments: Sequence[str],
    parts: Sequence[np.ndarray],
    target_recall: float = 0.995,
    seed: int = 0,
) -> IndexDescription:
    """Builds the index of a gallery and replaces the previous one; the caller holds the lock.

    Args:
        folder: Folder of the gallery.
        segments: Names of the segments.
        parts: Embeddings of each segment, (n_i, D).
        target_recall: Recall of the 10 best that determines the number of visited cells.
        seed: Seed of the k-means and of the calibration queries.

    Returns:
        The description that was written.

    Raises:
        GalleryError: If FAISS is not installed or the gallery has too few persons.
    """
    faiss = faiss_module()
    count, dim = sum(map(len, parts)), parts[0].shape[1] if parts else 0
    if count < 2 * TRAIN_PER_CELL:
        raise GalleryError(f"{count} persons are too few for an index; exact search is instant.")
    cells = choose_cells(count)
    rng = np.random.default_rng(seed)
    index = faiss.IndexIVFFlat(faiss.IndexFlatIP(dim), dim, cells, faiss.METRIC_INNER_PRODUCT)
    index.cp.niter, index.cp.seed, index.cp.spherical = KMEANS_ITERATIONS, seed, True
    index.train(_take_rows(parts, _sample(rng, count, TRAIN_PER_CELL * cells)))
    for part in parts:
        for start in range(0, len(part), ADD_BLOCK):
            index.add(np.ascontiguousarray(part[start : start + ADD_BLOCK]))
    queries = _sample(rng, count, CALIBRATION_QUERIES)
    probes, recall = _calibrate(index, parts, queries, target_recall)
    file = ""
    if probes <= MOST_VISITED * cells:
        file = f"index-{os.urandom(4).hex()}.faiss"
        faiss.write_index(index, str(folder / f".{file}"))
        with (folder / f".{file}").open("rb") as written:
            os.fsync(written.fileno())
        os.replace(folder / f".{file}", folder / file)
    rows = {name: len(part) for name, part in zip(segments, parts, strict=True)}
    description = IndexDescription(file, rows, cells, probes, round(recall, 4))
    text = json.dumps(asdict(description), indent=2) + "\n"
    write_atomically(folder / DESCRIPTION, text.encode(), durable=True)
    for path in [*folder.glob("index-*.faiss"), *folder.glob(".index-*.faiss")]:
        if path.name != file:
            path.unlink()
    return description


def choose_cells(count: int) -> int:
    """Returns C: the power of two nearest to 2 sqrt(N) with enough rows to train each cell."""
    cells = 2 ** round(np.log2(2 * np.sqrt(count)))
    while cells > 1 and cells * TRAIN_PER_CELL > count:
        cells //= 2
    return cells


def _sample(rng: np.random.Generator, count: int, size: int) -> np.ndarray:
    """Draws ``size`` different row numbers below ``count``, sorted."""
    return np.sort(rng.choice(count, min(size, count), replace=False))


def _take_rows(parts: Sequence[np.ndarray], rows: np.ndarray) -> np.ndarray:
    """Copies rows, numbered consecutively through all parts."""
    starts = np.cumsum([0, *map(len, parts)])
    chosen = [
        part[rows[(rows >= start) & (rows < start + len(part))] - start]
        for part, start in zip(parts, starts, strict=False)
    ]
    return np.ascontiguousarray(np.concatenate(chosen), np.float32)


def _calibrate(
    index, parts: Sequence[np.ndarray], rows: np.ndarray, target: float
) -> tuple[int, float]:
    """Returns the smallest power of two of visited cells that reaches the recall, and the recall.

    Args:
        index: The FAISS index.
        parts: All indexed embeddings.
        rows: Rows that serve as queries.
        target: Recall to reach.
    """
    faiss = faiss_module()
    queries, k = _take_rows(parts, rows), CALIBRATION_TOP + 1  # each row itself comes first
    sims, best, start = [], [], 0
    for part in parts:
        found = faiss.knn(queries, part, k, metric=faiss.METRIC_INNER_PRODUCT)
        sims.append(found[0])
        best.append(np.where(found[1] < 0, -1, found[1] + start))  # -1: fewer than k rows
        start += len(part)
    order = np.argsort(-np.concatenate(sims, 1), axis=1, kind="stable")[:, :k]
    exact = np.take_along_axis(np.concatenate(best, 1), order, 1)
    truths = [set(truth) - {row, -1} for truth, row in zip(exact, rows, strict=True)]
    probes = 1
    while True:
        parameters = faiss.SearchParametersIVF(nprobe=probes)
        found = index.search(queries, min(k, index.ntotal), params=parameters)[1]
        hits = sum(len(truth & set(ids)) for truth, ids in zip(truths, found, strict=True))
        recall = hits / sum(map(len, truths))
        if recall >= target or probes >= index.nlist:
            return probes, recall
        probes = min(2 * probes, index.nlist)
