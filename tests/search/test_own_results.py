# SPDX-License-Identifier: Apache-2.0
"""What this project wrote is not indexed: results of queries, sheets, galleries."""

import io
import os
import shutil
from pathlib import Path

import numpy as np
from color_model import ColorModel, paint
from PIL import Image

from person_search.search import (
    Gallery,
    IndexOptions,
    PersonEmbedder,
    SearchResult,
    find_sources,
    index_images,
    person_in_box,
    write_results,
)
from person_search.vis.encoding import encode_image, is_own_drawing

RED = (250, 0, 0)


def test_index_query_index(tmp_path: Path) -> None:
    """The results lie within the indexed folder; a copy of the sheet and an old sheet, too."""
    embedder = PersonEmbedder(ColorModel(), image_format="RGB", min_size=80, max_size=100)
    paint(tmp_path / "a.png", {(0, 0, 100, 80): RED})
    options = IndexOptions(prune=True)
    index_images(embedder, tmp_path / "g", find_sources([tmp_path], recursive=True), options)
    gallery = Gallery.open(tmp_path / "g")
    query = person_in_box(embedder, tmp_path / "a.png", (0, 0, 50, 80))
    out = tmp_path / "output" / "search"
    write_results(SearchResult([query], gallery, gallery.search(query.reid_feat), {}), out, 5)
    shutil.copy(out / "sheet.png", tmp_path / "mailed.png")
    (tmp_path / "old").mkdir()  # of a version that did not mark its sheets
    shutil.copy(out / "results.jsonl", tmp_path / "old")
    paint(tmp_path / "old" / "sheet.png", {})
    paint(tmp_path / "old" / "own.png", {})
    listing = find_sources([tmp_path], recursive=True)
    report = index_images(embedder, tmp_path / "g", listing, options)
    gallery = Gallery.open(tmp_path / "g")
    assert gallery.images.paths == ["a.png", "old/own.png"]
    assert {os.path.relpath(path, tmp_path): why for path, why in report.left_out.items()} == {
        "output/search/sheet.png": "a result of 'person-search query'",
        "old/sheet.png": "a result of 'person-search query'",
        "mailed.png": "an image drawn by this program",
    }
    assert not listing.others, "nor are report and JSON lines listed"


def test_a_sheet_in_the_gallery_of_an_older_version_is_pruned(tmp_path: Path) -> None:
    embedder = PersonEmbedder(ColorModel(), image_format="RGB", min_size=80, max_size=100)
    for name in ("a.png", "sheet.png"):
        paint(tmp_path / name, {})
    index_images(embedder, tmp_path / "g", find_sources([tmp_path]))
    (tmp_path / "results.jsonl").write_text('{"kind": "search"}\n', encoding="utf-8")
    listing = find_sources([tmp_path])
    assert index_images(embedder, tmp_path / "g", listing, IndexOptions(prune=True)).removed == 1
    assert Gallery.open(tmp_path / "g").images.paths == ["a.png"]


def test_drawings_are_marked() -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (300, 300, 3), np.uint8))
    for suffix in (".png", ".jpg"):
        for max_bytes in (10**6, 40_000):
            content = encode_image(image, suffix, max_bytes)
            assert is_own_drawing(Image.open(io.BytesIO(content)))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", comment="mine")
    assert not is_own_drawing(Image.open(buffer))
