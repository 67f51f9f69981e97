# SPDX-License-Identifier: Apache-2.0
"""Approximate search with FAISS: k-means cells, of which a query looks into the nearest ones only.

The index (IVF-Flat) holds the vectors uncompressed, sorted by cell, in one file that is memory
mapped; similarities are therefore exact and only the selection is approximate. How many cells are
looked into is measured when the index is built. Persons that were added later are searched
exactly (see gallery.py), so an index never hides anybody.

Shape shorthand: N rows at the time of building, D length of an embedding, k wanted, C cells.
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
from person_search.search.exact import best_rows
from person_search.utils.files import write_atomically

logger = logging.getLogger(__name__)

DESCRIPTION = "index.json"
TRAIN_PER_CELL = 64  # FAISS warns below 39
KMEANS_ITERATIONS = 10
CALIBRATION_QUERIES = 256
CALIBRATION_TOP = 10
ADD_BLOCK = 65_536


@dataclass(frozen=True)
class IndexDescription:
    """The content of ``index.json``.

    Args:
        file: name of the FAISS file beside it.
        rows: rows per segment that are in it, in the order of the manifest.
        cells: C. probes: cells that a query looks into.
        recall: of the 10 best, measured on rows of the gallery as queries, themselves left out.
    """

    file: str
    rows: dict[str, int]
    cells: int
    probes: int
    recall: float


def faiss_module() -> ModuleType:
    """Imports FAISS.

    Raises:
        GalleryError: it is not installed.
    """
    try:
        return importlib.import_module("faiss")
    except ImportError as e:
        raise GalleryError(
            "the approximate index needs FAISS, which is not installed: pip install faiss-cpu "
            "(or this package with the extra 'search'). Exact search works without it."
        ) from e


class ApproximateIndex:
    """An index on disk, opened for searching.

    Args:
        folder: of the gallery.
        description: what lies there.
    """

    def __init__(self, folder: Path, description: IndexDescription) -> None:
        faiss = faiss_module()
        self.description = description
        flags = faiss.IO_FLAG_MMAP | faiss.IO_FLAG_READ_ONLY
        self._index = faiss.read_index(str(folder / description.file), flags)

    @classmethod
    def open(cls, folder: Path, rows: Mapping[str, int]) -> "ApproximateIndex | None":
        """The index of a gallery; None if there is none, or it is of rows that are gone.

        Args:
            folder: of the gallery. rows: that each of its segments has.
        """
        description = read_description(folder)
        if description is None:
            return None
        if any(count > rows.get(name, 0) for name, count in description.rows.items()):
            return None
        if importlib.util.find_spec("faiss") is None:
            logger.warning("The gallery '%s' has an approximate index, which needs FAISS (pip "
                           "install faiss-cpu); it is searched exactly.", folder)  # fmt: skip
            return None
        return cls(folder, description)

    def __len__(self) -> int:
        return self._index.ntotal

    def search(
        self, query_feat: np.ndarray, k: int, allowed: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """The k most similar rows that are found: (similarities, rows), best first.

        Args:
            query_feat: (D,). allowed: (N,) bool, None for all rows.
        """
        # the probes were chosen for the 10 best; for many more than that, more cells matter
        probes = self.description.probes * -(-k // (2 * CALIBRATION_TOP))
        return search_index(self._index, query_feat, k, min(probes, self._index.nlist), allowed)


def search_index(
    index, query_feat: np.ndarray, k: int, probes: int, allowed: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """One query on an index of FAISS, see :meth:`ApproximateIndex.search`."""
    faiss = faiss_module()
    parameters = faiss.SearchParametersIVF(nprobe=probes)
    if allowed is not None:
        bits = np.packbits(allowed, bitorder="little")  # must live as long as the search
        parameters.sel = faiss.IDSelectorBitmap(bits)
    query = np.ascontiguousarray(query_feat, np.float32)[None]
    sims, rows = index.search(query, min(k, index.ntotal), params=parameters)
    found = rows[0] >= 0
    return sims[0][found], rows[0][found]


def read_description(folder: Path) -> IndexDescription | None:
    """Reads ``index.json``; None if there is none or its file is gone."""
    path = folder / DESCRIPTION
    if not path.is_file():
        return None
    try:
        description = IndexDescription(**json.loads(path.read_bytes()))
    except (ValueError, TypeError) as e:
        raise GalleryError(f"'{path}' is damaged ({e}); delete it and build the index anew.") from e
    file = folder / description.file
    if file.parent != folder or not file.is_file():  # a name with a path in it is not ours
        return None
    return description


def build_index(
    folder: Path,
    segments: Sequence[str],
    parts: Sequence[np.ndarray],
    target_recall: float = 0.995,
    seed: int = 0,
) -> IndexDescription:
    """Builds the index of a gallery and replaces the one before; the caller holds the lock.

    Args:
        folder: of the gallery. segments: their names. parts: their vectors, (n_i, D) each.
        target_recall: of the 10 best, for the choice of the cells to look into.

    Raises:
        GalleryError: FAISS is not installed, or there are too few persons for an index.
    """
    faiss = faiss_module()
    count, dim = sum(map(len, parts)), parts[0].shape[1] if parts else 0
    if count < 2 * TRAIN_PER_CELL:
        raise GalleryError(f"{count} persons are too few for an index; exact search is instant.")
    cells = choose_cells(count)
    rng = np.random.default_rng(seed)
    index = faiss.IndexIVFFlat(faiss.IndexFlatIP(dim), dim, cells, faiss.METRIC_INNER_PRODUCT)
    index.cp.niter, index.cp.seed, index.cp.spherical = KMEANS_ITERATIONS, seed, True
    index.train(take_rows(parts, sample(rng, count, TRAIN_PER_CELL * cells)))
    for part in parts:
        for start in range(0, len(part), ADD_BLOCK):
            index.add(np.ascontiguousarray(part[start : start + ADD_BLOCK]))
    probes, recall = _calibrate(index, parts, sample(rng, count, CALIBRATION_QUERIES),
                                target_recall)  # fmt: skip
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
    """C: the power of two next to twice the square root of N, with enough rows to train each."""
    cells = 2 ** round(np.log2(2 * np.sqrt(count)))
    while cells > 1 and cells * TRAIN_PER_CELL > count:
        cells //= 2
    return cells


def sample(rng: np.random.Generator, count: int, wanted: int) -> np.ndarray:
    """Sorted numbers of ``wanted`` different rows of ``count``."""
    return np.sort(rng.choice(count, min(wanted, count), replace=False))


def take_rows(parts: Sequence[np.ndarray], rows: np.ndarray) -> np.ndarray:
    """Copies rows, which are counted through all parts."""
    starts = np.cumsum([0, *map(len, parts)])
    chosen = [
        part[rows[(rows >= start) & (rows < start + len(part))] - start]
        for part, start in zip(parts, starts, strict=False)
    ]
    return np.ascontiguousarray(np.concatenate(chosen), np.float32)


def _calibrate(
    index, parts: Sequence[np.ndarray], rows: np.ndarray, target: float
) -> tuple[int, float]:
    """The smallest power of two of cells that reaches the recall, and what it reaches."""
    queries, wanted = take_rows(parts, rows), CALIBRATION_TOP + 1  # the row itself comes first
    best = np.zeros((len(rows), 0), np.int64)
    sims = np.zeros((len(rows), 0), np.float32)
    start = 0
    for part in parts:  # exact, block by block
        for at in range(0, len(part), ADD_BLOCK):
            block = queries @ part[at : at + ADD_BLOCK].T
            top = np.stack([_padded(best_rows(line, wanted), wanted) for line in block])
            sims = np.concatenate([sims, np.take_along_axis(block, top, 1)], 1)
            best = np.concatenate([best, top + start + at], 1)
        start += len(part)
    order = np.argsort(-sims, axis=1, kind="stable")[:, :wanted]
    best = np.take_along_axis(best, order, 1)
    probes = 1
    while True:
        hits = 0
        for query, row, truth in zip(queries, rows, best, strict=True):
            found = search_index(index, query, wanted, probes)[1]
            hits += len((set(truth) - {row}) & set(found))
        recall = hits / sum(len(set(truth) - {row}) for truth, row in zip(best, rows, strict=True))
        if recall >= target or probes >= index.nlist:
            return probes, recall
        probes = min(2 * probes, index.nlist)


def _padded(rows: np.ndarray, length: int) -> np.ndarray:
    """Repeats the last number if there are fewer rows than wanted."""
    return np.pad(rows, (0, length - len(rows)), mode="edge") if len(rows) < length else rows
