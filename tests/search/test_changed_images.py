# SPDX-License-Identifier: Apache-2.0
"""Images that have changed since they were indexed, wherever a gallery image is shown."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from color_model import ColorModel, paint
from PIL import Image

from person_search.search import (
    Gallery,
    ImageChangedError,
    PersonEmbedder,
    SearchResult,
    find_sources,
    index_images,
    person_in_box,
    write_results,
)
from person_search.search.commands import match_lines

RED, BLUE = (250, 0, 0), (0, 0, 250)


@pytest.fixture
def changed(tmp_path: Path) -> Path:
    """A gallery of three images: a.png is unchanged, b.png has other pixels, c.png another size."""
    (tmp_path / "images").mkdir()
    for name in "abc":
        paint(tmp_path / "images" / f"{name}.png", {(0, 0, 50, 80): RED, (50, 0, 100, 80): BLUE})
    embedder = PersonEmbedder(ColorModel(), image_format="RGB", min_size=80, max_size=100)
    index_images(embedder, tmp_path / "g", find_sources([tmp_path / "images"]))
    paint(tmp_path / "images" / "b.png", {(0, 0, 50, 80): BLUE})
    os.utime(tmp_path / "images" / "b.png", ns=(1, 1))
    Image.fromarray(np.zeros((40, 30, 3), np.uint8)).save(tmp_path / "images" / "c.png")
    return tmp_path


def test_in_the_results(changed: Path) -> None:
    embedder = PersonEmbedder(ColorModel(), image_format="RGB", min_size=80, max_size=100)
    gallery = Gallery.open(changed / "g")
    query = person_in_box(embedder, changed / "images" / "a.png", (0, 0, 50, 80))
    matches = gallery.search(query.reid_feat, None)
    assert [gallery.is_changed(match.image) for match in matches] == [False, True, True]
    result = SearchResult([query], gallery, matches, {})
    write_results(result, changed / "out", 3)
    _, *lines = map(json.loads, (changed / "out" / "results.jsonl").read_text().splitlines())
    assert [line.get("changed", False) for line in lines] == [False, True, True]
    report = (changed / "out" / "report.html").read_text(encoding="utf-8")
    assert report.count("The image has changed since it was indexed.") == 2
    assert report.count("<img") == 2 * 3, (
        "of the query, a.png and b.png: the box does not fit c.png"
    )
    printed = match_lines(matches, 3, gallery)
    assert ["changed since it was indexed" in line for line in printed] == [False, True, True]
    with pytest.raises(ImageChangedError, match="had 100 x 80 pixels and has 30 x 40 now"):
        gallery.read_image(matches[2].image)


def test_on_the_page(changed: Path) -> None:
    pytest.importorskip("uvicorn")
    from page_tiny import running

    with running(changed / "g") as page:
        keys = {one["name"]: one["id"] for one in page.get("/api/images").json["images"]}
        answers = [page.get(f"/api/images/{keys[f'{name}.png']}") for name in "abc"]
        assert [answer.status for answer in answers] == [200, 200, 409]
        assert [answer.json["changed"] for answer in answers[:2]] == [False, True]
        assert "'c.png' has changed since it was indexed" in answers[2].json["error"]
        assert str(changed) not in answers[2].json["error"]
        body = {"persons": [{"image": keys["a.png"], "person": 0}], "include_own": True}
        matches = page.post("/api/search", body).json["matches"]
        assert {m["name"]: m["changed"] for m in matches} == {
            "a.png": False, "b.png": True, "c.png": True,
        }  # fmt: skip
        report = page.post("/api/search/report.html", body)
        assert report.body.count(b"has changed since it was indexed") == 2
