# SPDX-License-Identifier: Apache-2.0
"""File names of any bytes: in a gallery, in results and on the page, in any locale."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from color_model import ColorModel, paint
from galleries import write_video
from hypothesis import given
from hypothesis import strategies as st

from person_search.search import (
    Gallery,
    IndexOptions,
    OriginRules,
    PersonEmbedder,
    SearchResult,
    detected_person,
    find_sources,
    index_images,
    read_table,
    write_results,
)
from person_search.search.names import from_stored, printable, to_stored

RED = (250, 0, 0)
ODD = [
    b"caf\xe9.png",
    "caf\u00e9.png".encode(),
    b"two\nlines.png",
    b"<b>&amp;.png",
    b"x" * 251 + b".png",
]


def embedder() -> PersonEmbedder:
    return PersonEmbedder(ColorModel(), image_format="RGB", min_size=80, max_size=100)


def test_printable() -> None:
    assert printable("caf\u00e9 1.png") == "caf\u00e9 1.png"
    assert printable(os.fsdecode(b"caf\xe9\n\x07.png")) == r"caf\xe9\n\x07.png"
    assert printable(Path("a/b")) == "a/b"


@given(st.binary(max_size=20).filter(lambda name: b"\0" not in name))
def test_names_of_any_bytes(name: bytes) -> None:
    text = os.fsdecode(name)
    assert os.fsencode(from_stored(to_stored(text))) == name
    printable(text).encode()
    assert printable(text).isprintable() or any(c.isspace() for c in printable(text))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Images, a video and a subfolder (used as a camera) with odd names."""
    (tmp_path / "odd").mkdir()
    paint(tmp_path / "a.png", {(0, 0, 100, 80): RED})
    for name in ODD:
        shutil.copy(os.fsencode(tmp_path / "a.png"), os.fsencode(tmp_path / "odd") + b"/" + name)
    sub = os.fsencode(tmp_path / "odd") + b"/s\xfcd"
    os.mkdir(sub)
    shutil.copy(os.fsencode(tmp_path / "a.png"), sub + b"/b.png")
    write_video(tmp_path / "v.avi", 5)
    os.rename(tmp_path / "v.avi", sub + b"/v\xe9.avi")
    return tmp_path / "odd"


def test_indexed_found_and_shown(folder: Path, tmp_path: Path) -> None:
    options = IndexOptions(origins=OriginRules(camera_from_folder=True))
    listing = find_sources([folder], recursive=True)
    report = index_images(embedder(), tmp_path / "g", listing, options, False)
    assert report.images == len(ODD) + 2 and not report.failed
    again = index_images(embedder(), tmp_path / "g", find_sources([folder], True), options, False)
    assert (again.images, again.unchanged) == (0, len(ODD) + 2)
    gallery = Gallery.open(tmp_path / "g", embedder().identity)
    assert r"s\xfcd" in gallery.images.camera_names
    query = detected_person(embedder(), Path(os.fsdecode(os.fsencode(folder) + b"/caf\xe9.png")))
    matches = gallery.search(query.reid_feat, None, skip=[query.path])
    write_results(SearchResult([query], gallery, matches, {}), tmp_path / "out", 20)
    lines = (tmp_path / "out" / "results.jsonl").read_text(encoding="utf-8").splitlines()
    head, *found = map(json.loads, lines)
    assert os.fsencode(head["query"][0]["image"]).endswith(b"caf\xe9.png")
    names = {os.path.basename(os.fsencode(match["image"])) for match in found}
    assert names == {*ODD, b"b.png", b"v\xe9.avi"} - {b"caf\xe9.png"}
    text = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert r"caf\xe9.png" in text and r"two\nlines.png" in text and "&lt;b&gt;&amp;amp;" in text
    assert "no longer readable" not in text


def test_on_the_page(folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("uvicorn")
    from page_tiny import running

    index_images(embedder(), tmp_path / "g", find_sources([folder], recursive=True))
    with running(tmp_path / "g") as page:
        listed = page.get("/api/images").json["images"]
        assert {r"caf\xe9.png", "caf\u00e9.png", r"two\nlines.png"} <= {
            one["name"] for one in listed
        }
        os.remove(os.fsencode(folder) + b"/caf\xe9.png")
        key = next(one["id"] for one in listed if one["name"] == r"caf\xe9.png")
        answer = page.get(f"/api/images/{key}/image")
        assert answer.status == 404 and r"'caf\xe9.png' does not exist" in answer.json["error"]
        listed = [one for one in listed if one["id"] != key]
        for one in listed:
            assert page.get(f"/api/images/{one['id']}/image").status == 200
        body = {"persons": [{"image": listed[0]["id"], "person": 0}]}
        assert page.post("/api/search", body).status == 200
        for name in ("report.html", "results.jsonl"):
            assert page.post(f"/api/search/{name}", body).status == 200


def test_in_a_table(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_bytes(b"file,camera\ncaf\xe9.png,gate\ncaf\xc3\xa9.png,yard\n")
    table = read_table(tmp_path / "t.csv")
    sources = {source.path: source for source in find_sources([folder]).sources}
    cameras = {OriginRules(table=table).of(sources[name]).camera for name in table}
    assert cameras == {"gate", "yard"}


@pytest.mark.slow
@pytest.mark.skipif(
    not sys.prefix.isascii(), reason="here, Python does not start in an ASCII locale"
)
def test_in_an_ascii_locale(folder, tiny_run, search_tool, tmp_path, child_env) -> None:
    """The same gallery in an ASCII and in a UTF-8 locale."""
    model = f"--config-file {tiny_run}/config.yaml --weights {tiny_run}/weights.pth"
    index = f"index --gallery g --source {folder} --recursive {model}".split()
    query = f"query --gallery g --query a.png --output out --every-frame {model}".split()
    code = f"from person_search.search.cli import main\nassert main({index}) == main({query}) == 0"
    env = {**child_env, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    run = subprocess.run([sys.executable, "-c", code], env=env, cwd=tmp_path, capture_output=True)
    assert run.returncode == 0, run.stderr
    assert b"Traceback" not in run.stderr and b"Logging error" not in run.stderr
    assert search_tool("index", source=folder, recursive=True) == 0, "in this locale"
    gallery = Gallery.open(tmp_path / "g")
    assert len(gallery.images) == len(ODD) + 2, "the same names, no duplicates"
    lines = (tmp_path / "out" / "results.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(lines) == 1 + len(ODD) + 2
