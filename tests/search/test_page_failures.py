# SPDX-License-Identifier: Apache-2.0
"""The page when the gallery on disk is damaged, or the program itself fails."""

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from page_tiny import Answer, Page, image_bytes, make_gallery, running

from person_search.search import FolderStore, Gallery
from person_search.search.errors import GalleryDamagedError
from person_search.search.maintenance import compact
from person_search.search.page.safety import HEADERS


def damage_log(gallery: Path) -> None:
    """A wrong byte in the first line; good ones follow."""
    log = gallery / "segments" / "0001" / "entries.log"
    log.write_bytes(b"x" + log.read_bytes()[1:])


def change_model(gallery: Path) -> None:
    manifest = gallery / "gallery.json"
    manifest.write_text(manifest.read_text().replace('"ColorModel"', '"Other"'))


def truncate(gallery: Path, name: str = "vectors.f32") -> None:
    path = gallery / "segments" / "0001" / name
    os.truncate(path, path.stat().st_size - 1)


def search(page: Page) -> Answer:
    key = page.get("/api/images").json["images"][0]["id"]
    return page.post("/api/search", {"persons": [{"image": key, "person": 0}]})


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (damage_log, "line 1 of 'gallery/segments/0001/entries.log' is damaged. 'person-search "),
        (truncate, "'gallery/segments/0001/vectors.f32' holds 7 persons, but the log beside"),
        (change_model, "the gallery 'gallery' was made by another model"),
        (lambda gallery: (gallery / "gallery.json").unlink(), "'gallery' is not a gallery"),
    ],
    ids=["log", "truncated", "model", "manifest"],
)
def test_a_gallery_that_is_damaged_meanwhile(
    tmp_path: Path, caplog, damage: Callable[[Path], None], words: str
) -> None:
    """The message is that of the gallery; its full path appears on the terminal only."""
    with running(make_gallery(tmp_path)) as page:
        damage(tmp_path / "gallery")
        answer = page.get("/api/gallery")
        assert answer.status == 503 and words in answer.json["error"]
        assert str(tmp_path) not in answer.json["error"] and str(tmp_path) in caplog.text
        assert search(page).status == (503 if damage is truncate else 200), "what was read is whole"


@pytest.mark.parametrize("name", ["vectors.f32", "boxes.f32"])
def test_rows_that_have_been_truncate_are_not_touched(tmp_path: Path, name: str) -> None:
    """To read mapped memory behind the end of its file would end the process."""
    with running(make_gallery(tmp_path)) as page:
        key = page.get("/api/images").json["images"][0]["id"]
        upload = page.post("/api/uploads", image_bytes()).json["id"]
        truncate(tmp_path / "gallery", name)
        for answer in (
            page.get(f"/api/images/{key}"),
            page.post("/api/search", {"persons": [{"image": upload, "person": 0}]}),
        ):
            assert answer.status == 503 and "keeps the images" in answer.json["error"]


def test_a_gallery_whose_files_were_deleted_is_still_whole(tmp_path: Path) -> None:
    """As by a compaction: what is mapped lives on, unless it was cut off before."""
    gallery = Gallery.open(make_gallery(tmp_path))
    folder = tmp_path / "gallery" / "segments" / "0001"
    (folder / "vectors.f32").unlink()
    gallery.check()
    assert gallery.persons_in(0)[1].shape[0] == 2
    os.truncate(folder / "boxes.f32", 0)
    (folder / "boxes.f32").unlink()
    with pytest.raises(GalleryDamagedError, match=r"boxes\.f32' holds 0 persons"):
        gallery.check()


def test_a_repaired_gallery_is_taken_in(tmp_path: Path) -> None:
    """By the command that the message names, while the page runs."""
    with running(make_gallery(tmp_path)) as page:
        truncate(tmp_path / "gallery")
        assert search(page).status == page.get("/api/gallery").status == 503
        compact(FolderStore(tmp_path / "gallery"))
        assert search(page).status == 503, "until the page is loaded again"
        assert page.get("/api/gallery").json["images"] == 3
        assert search(page).status == 200


def test_an_error_of_our_own(tmp_path: Path, capfd, monkeypatch) -> None:
    """The browser learns that there was one, the terminal which one; all doors stay shut."""
    with running(make_gallery(tmp_path)) as page:

        def fail(_: object) -> None:
            raise RuntimeError("the model is broken")

        monkeypatch.setattr(page.session.embedder, "detect", fail)
        answer = page.post("/api/uploads", image_bytes())
        assert answer.status == 500 and "its terminal shows the error" in answer.json["error"]
        assert b"broken" not in answer.body and b"Traceback" not in answer.body
        for name, value in HEADERS.items():
            assert answer.headers[name.lower()] == value
        assert answer.headers["cache-control"] == "no-store"
        assert page.get("/api/gallery").status == 200, "and it goes on"
    told = capfd.readouterr().err
    assert "Traceback" in told and "RuntimeError: the model is broken" in told


@pytest.mark.parametrize("path", ["/api/gallery", "/static/page.js", "/nothing"])
@pytest.mark.parametrize("origin", ["http://[", "http://[::1", "://", ""])
def test_invalid_origins(shared: Page, origin: str, path: str) -> None:
    answer = shared.get(path, origin=origin)
    assert answer.status == 403 and "are not answered" in answer.json["error"]
    assert answer.headers["x-content-type-options"] == "nosniff"


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory):
    with running(make_gallery(tmp_path_factory.mktemp("failures"))) as page:
        yield page


def test_a_full_disk(tmp_path: Path, monkeypatch) -> None:
    """An upload is refused with the reason, and leaves nothing behind."""

    def full(path: Path, content: bytes) -> None:
        path.touch()
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    with running(make_gallery(tmp_path)) as page:
        monkeypatch.setattr(Path, "write_bytes", full)
        answer = page.post("/api/uploads", image_bytes())
        assert answer.status == 507
        assert answer.json["error"] == "the image cannot be stored: No space left on device."
        assert list(Path(page.session.uploads._folder.name).iterdir()) == []
