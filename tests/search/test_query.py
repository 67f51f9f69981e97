# SPDX-License-Identifier: Apache-2.0
"""The query, and the files that a search writes."""

import base64
import io
import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from color_model import ColorModel, paint
from PIL import Image

from person_search.search import (
    Gallery,
    IndexOptions,
    OriginRules,
    PersonEmbedder,
    SearchFilter,
    SearchResult,
    detected_person,
    find_sources,
    index_images,
    person_in_box,
    write_results,
)
from person_search.search.results import report_html

RED, GREEN, BLUE = (250, 0, 0), (0, 250, 0), (0, 0, 250)
HALVES = {(0, 0, 50, 80): RED, (50, 0, 100, 80): BLUE}


@pytest.fixture
def embedder() -> PersonEmbedder:
    return PersonEmbedder(ColorModel(), image_format="RGB", min_size=80, max_size=100)


@pytest.fixture
def image(tmp_path: Path) -> Path:
    return paint(tmp_path / "query.png", HALVES)


def test_person_in_a_box(embedder, image) -> None:
    person = person_in_box(embedder, image, (60, 10, 200, 70))
    assert person.box == (60, 10, 100, 70) and person.score is None
    assert np.allclose(person.reid_feat, [0, 0, 1], atol=0.05)
    assert person.to_json() == {"image": str(image), "box": [60, 10, 100, 70]}


def test_best_person_and_person_at_a_point(embedder, image) -> None:
    best = detected_person(embedder, image)
    assert best.box == (0, 0, 50, 80) and best.score == pytest.approx(0.9)
    there = detected_person(embedder, image, (70, 40))
    assert there.box == (50, 0, 100, 80) and there.to_json()["score"] == 0.6
    assert np.allclose(there.reid_feat, [0, 0, 1], atol=0.05)
    embedder.score_thresh = 0.7
    with pytest.raises(
        ValueError, match="no person was detected at 70 40 .* Detected .*: 0 0 50 80"
    ):
        detected_person(embedder, image, (70, 40))
    with pytest.raises(ValueError, match="outside the image .* 100 x 80"):
        detected_person(embedder, image, (100, 40))
    embedder.score_thresh = 0.95
    with pytest.raises(ValueError, match="no person was detected .* at least 0.95"):
        detected_person(embedder, image)


@pytest.fixture
def result(embedder, image, tmp_path) -> SearchResult:
    """Two scenes, one of them with a name that would break careless HTML."""
    folder = tmp_path / "images"
    folder.mkdir()
    paint(folder / 'a<b>&"c.png', {(0, 0, 50, 80): RED})
    paint(folder / "b.png", HALVES)
    options = IndexOptions(origins=OriginRules(camera="<gate>", time=0.0))
    index_images(embedder, tmp_path / "g", find_sources([folder]), options, False)
    gallery = Gallery.open(tmp_path / "g", embedder.identity)
    query = person_in_box(embedder, image, (0, 0, 50, 80))
    matches = gallery.search(query.reid_feat, 10)
    return SearchResult([query, query], gallery, matches, {"top": 10})


class Page(HTMLParser):
    """Collects what the tests ask for."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.texts: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data) -> None:
        self.texts.append(data)


def test_json_lines(result, tmp_path) -> None:
    write_results(result, tmp_path / "out", 2)
    lines = (tmp_path / "out" / "results.jsonl").read_text().splitlines()
    head, *matches = map(json.loads, lines)
    assert head["kind"] == "search" and head["top"] == 10 and len(head["query"]) == 2
    assert head["gallery"]["pictures"] == 2 and head["gallery"]["persons"] == 4
    assert [m["kind"] for m in matches] == ["match"] * 2
    assert [m["rank"] for m in matches] == [1, 2]
    assert matches[0]["camera"] == "<gate>" and matches[0]["time"] == "1970-01-01 00:00:00"


def test_report_is_one_file_that_needs_nothing_else(result, tmp_path) -> None:
    files = write_results(result, tmp_path / "out", 2)
    assert [path.name for path in files] == ["results.jsonl", "sheet.png", "report.html"]
    text = (tmp_path / "out" / "report.html").read_text()
    page = Page(text)
    links = [
        value
        for _, attributes in page.tags
        for name, value in attributes.items()
        if name in ("src", "href", "srcset", "action", "data")
    ]
    images = [attributes for tag, attributes in page.tags if tag == "img"]
    assert len(images) == 8, "scene and crop of two queries and two matches"
    assert len(links) == 8 and all(link.startswith("data:image/jpeg;base64,") for link in links)
    assert not re.search(r"url\(|@import|<script|http:|https:", text)
    for attributes in images:
        assert attributes["alt"]
        with Image.open(io.BytesIO(base64.b64decode(attributes["src"].partition(",")[2]))) as image:
            assert image.format == "JPEG" and max(image.size) <= 720
    assert ("html", {"lang": "en"}) in page.tags
    assert any(a.get("name") == "viewport" for tag, a in page.tags if tag == "meta")
    assert "prefers-color-scheme: dark" in text
    names = " ".join(page.texts)
    assert 'a<b>&"c.png' in names and "<gate>" in names, "escaped, so read back as they are"
    assert not any(tag in ("b", "gate") for tag, _ in page.tags)
    assert f"similarity {result.matches[0].sim:.3f}" in names


def test_filters_and_places_stand_in_the_report(result, tmp_path) -> None:
    """The report states the filters of the search."""
    wanted = SearchFilter(0.25, frozenset({"<gate>"}), until=60.0)
    filtered = replace(result, wanted=wanted)
    words = "only camera <gate>, until 1970-01-01 00:01:00, detection score at least 0.25"
    assert filtered.describe() == f"2 images (4 persons), {words}"
    text = " ".join(Page(report_html(filtered, 2)).texts)
    assert f"Searched in 2 images (4 persons), {words}. 2 matches." in text
    assert "only" not in result.describe()
    assert "The best 1 of 2 matches are shown." in " ".join(Page(report_html(result, 1)).texts)


def test_equal_names_in_two_folders_differ_in_the_report(embedder, image, tmp_path) -> None:
    for name in ("gate", "yard"):
        (tmp_path / "two" / name).mkdir(parents=True)
        paint(tmp_path / "two" / name / "a.png", HALVES)
    index_images(embedder, tmp_path / "h", find_sources([tmp_path / "two"], True), None, False)
    gallery = Gallery.open(tmp_path / "h")
    query = person_in_box(embedder, image, (0, 0, 50, 80))
    found = SearchResult([query], gallery, gallery.search(query.reid_feat, 2), {})
    texts = Page(report_html(found, 2)).texts
    assert {"gate/a.png", "yard/a.png"} <= set(texts)


def test_a_missing_scene(result, tmp_path) -> None:
    Path(result.matches[0].path).unlink()
    write_results(result, tmp_path / "out", 2)
    assert "is no longer readable" in (tmp_path / "out" / "report.html").read_text()
    with Image.open(tmp_path / "out" / "sheet.png") as sheet:
        assert min(sheet.size) > 500


def test_no_person_found(result, tmp_path) -> None:
    empty = SearchResult(result.queries, result.gallery, [], {})
    write_results(empty, tmp_path / "out", 5)
    assert "No person was found." in (tmp_path / "out" / "report.html").read_text()
    assert len((tmp_path / "out" / "results.jsonl").read_text().splitlines()) == 1
