# SPDX-License-Identifier: Apache-2.0
"""The index of the embeddings in Milvus: chosen by size, and its effort by measurement.

Milvus builds an index for each segment of about half a million rows, so cells are counted within a
segment. Similarities are exact with every index; only the selection is approximate.
"""

import json
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from person_search.search.approximate import CALIBRATION_TOP, choose_cells
from person_search.search.errors import GalleryError

if TYPE_CHECKING:
    from person_search.search.milvus_store import MilvusStore

SIZES: tuple[tuple[str, int], ...] = (
    ("FLAT", 0),
    ("IVF_FLAT", 50_000),
    ("HNSW", 5_000_000),
    ("DISKANN", 100_000_000),
)
"""Indices and the number of persons from which they are chosen. IVF_FLAT needs no memory besides
the vectors and can search exactly; the others visit fewer vectors of a large gallery, and DISKANN
keeps them on disk."""
INDEX = "index"
"""Key of the row with the choice."""
EFFORT = {"IVF_FLAT": "nprobe", "HNSW": "ef", "DISKANN": "search_list"}
"""What decides how much of an index a search visits."""
MOST_EFFORT = 16_384
LEAST_CANDIDATES = 64
"""Effort of a graph from which the calibration starts; fewer candidates save hardly any time."""
SEGMENT_BYTES = 512 << 20
QUERIES = 64
QUERY_NOISE = 0.75
"""Length of the noise in a query of the calibration: its similarity to the row is about 0.8."""
TARGET_RECALL = 0.995
GRAPH = {"M": 16, "efConstruction": 200}


@dataclass(frozen=True)
class IndexChoice:
    """An index.

    Attributes:
        kind: Its type in Milvus.
        params: Its parameters.
        effort: Cells or candidates that a search visits.
        recall: Recall of the 10 best, measured with noisy rows of the gallery as queries, each row
            itself excluded; of HNSW and DISKANN relative to a search with 16 times the effort. 0
            until it is measured.
        rows: Number of rows when it was built.
    """

    kind: str = "FLAT"
    params: dict[str, Any] = field(default_factory=dict)
    effort: int = 0
    recall: float = 1.0
    rows: int = 0

    @classmethod
    def parse(cls, text: str | None) -> "IndexChoice":
        """Inverse of :meth:`to_text`; without a text, the index of a new gallery."""
        return cls(**json.loads(text)) if text else cls()

    def to_text(self) -> str:
        """Returns JSON."""
        return json.dumps(asdict(self))

    def describe(self) -> str:
        """Returns, for example, "IVF_FLAT, nprobe 16, recall of the 10 best 0.998"."""
        if self.kind == "FLAT":
            return "FLAT, exact"
        effort = f"{EFFORT[self.kind]} {self.effort}"
        recall = f"{self.recall:.3f}" if self.recall else "not measured: building was interrupted"
        return f"{self.kind}, {effort}, recall of the 10 best {recall}"

    @property
    def can_be_exact(self) -> bool:
        """Whether a search with the index can visit everything."""
        return self.kind in ("FLAT", "IVF_FLAT")

    def search_params(self, k: int, share: float, exact: bool) -> dict[str, Any]:
        """Returns the parameters of a search.

        Args:
            k: Number of results.
            share: Share of the rows that pass the filter. The fewer they are, the more of the index
                must be visited to meet them.
            exact: Visit everything, if ``can_be_exact``.
        """
        if self.kind == "FLAT":
            return {"metric_type": "IP", "params": {}}
        effort = self.effort * -(-k // (2 * CALIBRATION_TOP)) / max(share, 1e-6)
        if self.kind == "IVF_FLAT":
            cells = self.params["nlist"]
            effort = cells if exact else min(effort, cells)
        else:
            effort = min(max(effort, k), MOST_EFFORT)
        return {"metric_type": "IP", "params": {EFFORT[self.kind]: int(effort)}}


def wanted_kind(count: int, is_lite: bool) -> str:
    """Returns the type of index for a number of persons; Lite loses results with a filter."""
    if is_lite:
        return "FLAT"
    return [kind for kind, size in SIZES if count >= size][-1]


def build_index(store: "MilvusStore") -> IndexChoice:
    """Builds the index that fits the size of a gallery, and measures its recall.

    Raises:
        GalleryError: If the gallery is empty.
    """
    client, name = store.client, store.persons_name
    client.flush(name)
    count = client.count(name, "")
    if not count:
        raise GalleryError("the gallery is empty; there is nothing to index.")
    kind = wanted_kind(count, client.address.is_lite)
    params: dict[str, Any] = dict(GRAPH) if kind == "HNSW" else {}
    if kind == "IVF_FLAT":
        in_segment = SEGMENT_BYTES // (4 * store.manifest.dim)
        params = {"nlist": choose_cells(min(count, in_segment))}
    most = 0 if kind == "FLAT" else params.get("nlist", MOST_EFFORT)
    made = IndexChoice(kind, params, most, float(kind == "FLAT"), count)
    store.write_fact(INDEX, made.to_text())  # counts if this is interrupted: it visits everything
    client.set_index(name, kind, params)
    if kind != "FLAT":
        made = _calibrate(store, made)
        store.write_fact(INDEX, made.to_text())
    return made


def _calibrate(store: "MilvusStore", made: IndexChoice) -> IndexChoice:
    """Chooses the smallest power of two as effort that reaches the recall."""
    # keys are hashes: those that follow a random one are a random sample
    start = np.random.default_rng(0).bytes(4).hex()
    found = store.client.query(
        store.persons_name, filter=f'pk > "{start}"', output_fields=["pk", "feat"], limit=QUERIES
    )
    keys = [row["pk"] for row in found]
    queries = np.array([row["feat"] for row in found], np.float32)
    # other images of these persons: a graph finds its own vectors more easily than new ones
    noise = np.random.default_rng(1).standard_normal(queries.shape, np.float32)
    queries += QUERY_NOISE * noise / np.linalg.norm(noise, axis=1, keepdims=True)
    queries /= np.linalg.norm(queries, axis=1, keepdims=True)
    cells = made.params.get("nlist", MOST_EFFORT)

    def search(effort: int) -> list[set[str]]:
        hits = store.client.search(
            store.persons_name,
            list(queries),
            limit=CALIBRATION_TOP + 1,
            output_fields=["pk"],
            search_params={"metric_type": "IP", "params": {EFFORT[made.kind]: effort}},
        )
        return [
            {hit["entity"]["pk"] for hit in own} - {key}
            for key, own in zip(keys, hits, strict=True)
        ]

    effort = 1 if made.kind == "IVF_FLAT" else LEAST_CANDIDATES
    truths = search(cells) if made.can_be_exact else []
    while True:
        best = truths or search(min(16 * effort, cells))
        hits = sum(len(a & b) for a, b in zip(best, search(effort), strict=True))
        recall = hits / max(sum(map(len, best)), 1)
        if recall >= TARGET_RECALL or effort >= cells:
            return IndexChoice(made.kind, made.params, effort, round(recall, 4), made.rows)
        effort = min(2 * effort, cells)
