# SPDX-License-Identifier: Apache-2.0
"""The page over HTTP: answers and refused requests. test_page_browser.py uses a real browser."""

import io
import json
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
from galleries import write_video
from image_bomb import claimed_png
from page_tiny import (
    BLUE,
    GREEN,
    LEFT,
    RED,
    RIGHT,
    Page,
    embedder,
    image_bytes,
    make_gallery,
    paint_halves,
    running,
)
from PIL import Image

from person_search.search import FolderStore, find_sources, index_images
from person_search.search.page.uploads import UnknownImageError, UploadLimits, Uploads


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    """A page whose gallery no test changes."""
    with running(make_gallery(tmp_path_factory.mktemp("page"))) as page:
        yield page


def key_of(page: Page, name: str) -> str:
    listed = page.get("/api/images?limit=100").json["images"]
    return next(one["id"] for one in listed if one["name"].startswith(name))


def names(answer) -> list[str]:
    assert answer.status == 200, answer.body
    return [match["name"] for match in answer.json["matches"]]


# ---- the gallery ---------------------------------------------------------------------------------


def test_facts_of_the_gallery(shared: Page) -> None:
    facts = shared.get("/api/gallery").json
    assert (facts["images"], facts["persons"], facts["cameras"]) == (4, 8, ["gate", "hall"])
    assert (facts["since"], facts["until"]) == ("2026-05-01 12:00:00", "2026-05-01 14:00:00")


def test_images_are_listed_in_parts_and_by_camera(shared: Page) -> None:
    first, second = (shared.get(f"/api/images?offset={offset}&limit=3").json for offset in (0, 3))
    assert first["total"] == second["total"] == 4
    assert [one["name"] for one in first["images"] + second["images"]] == [
        "a.png", "b.png", "c.png", "d.png",
    ]  # fmt: skip
    hall = shared.get("/api/images?camera=hall").json
    assert [(one["name"], one["time"]) for one in hall["images"]] == [
        ("c.png", "2026-05-01 14:00:00"), ("d.png", None),
    ]  # fmt: skip


def test_persons_of_an_image_are_those_of_the_gallery(shared: Page) -> None:
    found = shared.get(f"/api/images/{key_of(shared, 'a.png')}").json
    assert (found["width"], found["height"], found["name"]) == (100, 80, "a.png")
    assert found["persons"] == [
        {"person": 0, "box": list(LEFT), "score": 0.9},
        {"person": 1, "box": list(RIGHT), "score": 0.6},
    ]


def test_images_are_scaled_and_crops_show_the_box(shared: Page) -> None:
    key = key_of(shared, "a.png")
    answer = shared.get(f"/api/images/{key}/image?side=64")
    assert answer.headers["content-type"] == "image/jpeg"
    assert "max-age" in answer.headers["cache-control"]
    assert Image.open(io.BytesIO(answer.body)).size == (64, 51)
    assert Image.open(io.BytesIO(shared.get(f"/api/images/{key}/image").body)).size == (100, 80)
    crop = Image.open(io.BytesIO(shared.get(f"/api/images/{key}/crop?box=60,10,90,70").body))
    assert np.allclose(np.asarray(crop).mean(axis=(0, 1)), GREEN, atol=12)
    drawn = Image.open(
        io.BytesIO(shared.get(f"/api/images/{key}/image?side=640&box=60,20,90,70").body)
    )
    assert drawn.size == (640, 512)
    pixels = np.asarray(drawn).astype(int)
    assert (abs(pixels[:, 382] - (112, 48, 140)).sum(axis=1) < 60).any(), "the line of the box"


# ---- searches ------------------------------------------------------------------------------------


def test_a_person_of_the_gallery_is_found_elsewhere(shared: Page) -> None:
    key = key_of(shared, "a.png")
    body = {"persons": [{"image": key, "person": 0}]}
    answer = shared.post("/api/search", body)
    assert names(answer)[:2] == ["c.png", "d.png"], "the own image is left out"
    first = answer.json["matches"][0]
    assert first["similarity"] == pytest.approx(1, abs=1e-3) and first["box"] == list(LEFT)
    assert (first["camera"], first["time"]) == ("hall", "2026-05-01 14:00:00")
    assert first["image"].startswith("g-"), "no path leaves the server"
    assert names(shared.post("/api/search", {**body, "include_own": True}))[0] == "a.png"
    assert len(names(shared.post("/api/search", {**body, "every_person": True}))) == 6
    assert names(shared.post("/api/search", {**body, "top": 1})) == ["c.png"]


def test_a_drawn_box_and_a_detected_person_mean_the_same(shared: Page) -> None:
    key = key_of(shared, "b.png")
    drawn = shared.post("/api/search", {"persons": [{"image": key, "box": [55, 5, 95, 75]}]})
    picked = shared.post("/api/search", {"persons": [{"image": key, "person": 1}]})
    assert names(drawn) == names(picked) and names(drawn)[0] == "c.png"


def test_filters(shared: Page) -> None:
    person = {"persons": [{"image": key_of(shared, "a.png"), "person": 1}]}
    assert names(shared.post("/api/search", {**person, "cameras": ["gate"]})) == ["b.png"]
    day = {"since": "2026-05-01", "until": "2026-05-01"}
    assert set(names(shared.post("/api/search", {**person, **day}))) == {"b.png", "c.png"}
    late = {"since": "2026-05-01T13:30", "until": "2026-05-01T14:00"}
    assert names(shared.post("/api/search", {**person, **late})) == ["c.png"]
    matches = shared.post("/api/search", {**person, "min_score": 0.7}).json["matches"]
    assert {match["score"] for match in matches} == {0.9}
    alike = shared.post("/api/search", {**person, "min_similarity": 0.99}).json["matches"]
    assert alike and all(match["similarity"] >= 0.99 for match in alike)
    assert len(alike) < len(shared.post("/api/search", person).json["matches"])
    answer = shared.post("/api/search", {**person, "min_similarity": 2})
    assert answer.status == 422 and "similarities are in [-1, 1]" in answer.json["error"]


def test_images_of_the_same_person_are_averaged(shared: Page) -> None:
    """Red and green average to yellow, which the greenish red of d.png is nearest to."""
    keys = [key_of(shared, "a.png"), key_of(shared, "b.png")]
    persons = [{"image": key, "person": 0} for key in keys]
    answer = shared.post("/api/search", {"persons": persons})
    assert names(answer)[0] == "d.png" and set(names(answer)) == {"c.png", "d.png"}


def test_an_upload_is_searched_for(shared: Page) -> None:
    content = image_bytes((BLUE, RED))
    sent = shared.post("/api/uploads", content, x_file_name="my%20image.png")
    assert sent.status == 200, sent.body
    assert sent.json["name"] == "my image.png" and len(sent.json["persons"]) == 2
    body = {"persons": [{"image": sent.json["id"], "person": 0}]}
    assert names(shared.post("/api/search", body))[0] in ("b.png", "c.png")
    report = shared.post("/api/search/report.html", body)
    assert report.status == 200 and b"my image.png" in report.body
    assert report.body.count(b"data:image/jpeg") == 2 + 2 * 4
    head, *lines = shared.post("/api/search/results.jsonl", body).body.decode().splitlines()
    assert json.loads(head)["query"][0]["image"] == "my image.png" and len(lines) == 4


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "BMP", "GIF", "AVIF"])
def test_kinds_of_images(shared: Page, kind: str) -> None:
    sent = shared.post("/api/uploads", image_bytes(kind=kind))
    assert (sent.status, sent.json["width"], sent.json["height"]) == (200, 100, 80)


def test_unusual_images(shared: Page) -> None:
    """CMYK, 16 bits, and one that has to be turned."""
    for image, kind in (
        (Image.new("CMYK", (100, 80), (0, 255, 255, 0)), "JPEG"),
        (Image.fromarray(np.full((80, 100), 40000, np.uint16)), "PNG"),
    ):
        buffer = io.BytesIO()
        image.save(buffer, kind)
        assert shared.post("/api/uploads", buffer.getvalue()).status == 200
    turned = Image.Exif()
    turned[0x0112] = 6
    sent = shared.post("/api/uploads", image_bytes(kind="JPEG", exif=turned)).json
    assert (sent["width"], sent["height"]) == (80, 100)


# ---- what changes --------------------------------------------------------------------------------


def test_new_images_of_the_gallery_are_taken_in(tmp_path: Path) -> None:
    gallery = make_gallery(tmp_path)
    with running(gallery) as page:
        old = key_of(page, "a.png")
        paint_halves(tmp_path / "images" / "e.png", (RED, RED))
        index_images(embedder(), gallery, find_sources([tmp_path / "images"]))
        assert page.get(f"/api/images/{old}").status == 200, "until the page is loaded again"
        assert page.get("/api/gallery").json["images"] == 5
        answer = page.get(f"/api/images/{old}")
        assert answer.status == 404 and "has changed" in answer.json["error"]
        person = {"image": key_of(page, "a.png"), "person": 0}
        assert "e.png" in names(page.post("/api/search", {"persons": [person]}))[:2]


def test_frames_of_a_video(tmp_path: Path) -> None:
    (tmp_path / "films").mkdir()
    write_video(tmp_path / "films" / "film.avi")
    index_images(embedder(), tmp_path / "g", find_sources([tmp_path / "films"]))
    with running(tmp_path / "g") as page:
        listed = page.get("/api/images").json["images"]
        assert [one["name"] for one in listed] == [f"film.avi at {i}.0 s" for i in range(3)]
        key = listed[1]["id"]
        assert page.get(f"/api/images/{key}/image").status == 200
        for choice in ({"person": 0}, {"box": [5, 5, 30, 40]}):
            body = {"persons": [{"image": key, **choice}], "every_frame": True}
            found = page.post("/api/search", body)
            assert sorted(names(found)) == ["film.avi at 0:00.0", "film.avi at 0:02.0"]
            assert [match["seen"] for match in found.json["matches"]] == ["", ""]
            assert page.post("/api/search/report.html", body).status == 200


def test_tracklets_of_a_video(tmp_path: Path) -> None:
    """The left half is the same in the first two frames and another one after a cut."""
    (tmp_path / "films").mkdir()
    writer = cv2.VideoWriter(str(tmp_path / "films" / "film.avi"),
                             cv2.VideoWriter_fourcc(*"MJPG"), 1, (100, 80))  # fmt: skip
    for left, right in ((RED, GREEN), (RED, GREEN), (BLUE, BLUE)):
        pixels = np.zeros((80, 100, 3), np.uint8)
        pixels[:, :50], pixels[:, 50:] = left[::-1], right[::-1]
        writer.write(pixels)
    writer.release()
    index_images(embedder(), tmp_path / "g", find_sources([tmp_path / "films"]))
    with running(tmp_path / "g") as page:
        key = page.get("/api/images").json["images"][0]["id"]
        body = {"persons": [{"image": key, "person": 0}], "include_own": True}
        first, *others = page.post("/api/search", body).json["matches"]
        assert first["seen"] == "0:00.0 to 0:01.0, 2 frames" and first["similarity"] > 0.98
        assert first["tracklet"] == {"first": 0.0, "last": 1.0, "frames": 2}
        assert sorted(one["tracklet"]["frames"] for one in others) == [1, 1, 2]
        report = page.post("/api/search/report.html", body).body.decode()
        assert report.count("0:00.0 to 0:01.0, 2 frames") == 2


def test_a_missing_image(tmp_path: Path) -> None:
    with running(make_gallery(tmp_path)) as page:
        key = key_of(page, "c.png")
        (tmp_path / "images" / "c.png").unlink()
        answer = page.get(f"/api/images/{key}/image")
        assert answer.status == 404 and "the image 'c.png' does not exist" in answer.json["error"]
        person = {"image": key_of(page, "a.png"), "person": 0}
        report = page.post("/api/search/report.html", {"persons": [person]})
        assert b"is no longer readable" in report.body
        gone = {"persons": [{"image": key, "person": 0}]}  # known without its file
        report = page.post("/api/search/report.html", gone)
        assert report.status == 200 and report.body.count(b"is no longer readable") == 1


def test_an_empty_gallery(tmp_path: Path) -> None:
    strict = embedder()
    strict.score_thresh = 0.99
    paint_halves(tmp_path / "a.png", (RED, BLUE))
    index_images(strict, tmp_path / "g", find_sources([tmp_path / "a.png"]))
    with running(tmp_path / "g") as page:
        sent = page.post("/api/uploads", image_bytes()).json
        answer = page.post("/api/search", {"persons": [{"image": sent["id"], "person": 0}]})
        assert names(answer) == [] and answer.json["searched"] == "1 image (0 persons)"


# ---- what is refused -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "status", "words"),
    [
        (b"", 415, "empty"),
        (b"GIF89a no image", 415, "not a readable image"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", 415, "not a readable image"),
        (image_bytes(kind="TIFF"), 415, "the format TIFF; accepted: "),
        (image_bytes()[:150], 422, "cannot read"),
        (claimed_png(60_000, 60_000), 415, "not a readable image"),
    ],
    ids=["empty", "damaged-gif", "svg", "tiff", "truncated", "bomb"],
)
def test_invalid_uploads(shared: Page, content: bytes, status: int, words: str) -> None:
    kept = len(shared.session.uploads)
    answer = shared.post("/api/uploads", content)
    assert answer.status == status and words in answer.json["error"]
    assert len(shared.session.uploads) == kept
    assert str(shared.session.uploads._folder.name) not in answer.json["error"]


def test_size_of_uploads(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (80, 100, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).save(buffer, "PNG")
    with running(make_gallery(tmp_path), UploadLimits(image_bytes=5000)) as page:
        assert page.post("/api/uploads", image_bytes()).status == 200
        answer = page.post("/api/uploads", buffer.getvalue())
        assert answer.status == 413 and "larger than 0.005 MB" in answer.json["error"]
        # without a length that is announced, too
        answer = page.post("/api/uploads", iter([buffer.getvalue()[:4000]] * 3))
        assert answer.status == 413


def test_size_of_searches(shared: Page) -> None:
    """Refused before they are read; without a length that is announced, too."""
    blanks = b'{"persons": [' + b" " * 100_000 + b"]}"
    for body, status in ((blanks, 413), (iter([blanks]), 411)):
        answer = shared.post("/api/search", body, content_type="application/json")
        assert answer.status == status and "request" in answer.json["error"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"persons": []}, "0 persons are chosen"),
        ({"persons": [{"image": "?", "person": 0}] * 11}, "11 persons are chosen"),
        ({"persons": [{"image": "?", "person": 2}]}, "2 were detected"),
        ({"persons": [{"image": "?", "person": -1}]}, "2 were detected"),
        ({"persons": [{"image": "?"}]}, "person None is chosen"),
        ({"persons": [{"image": "?", "box": [10, 10, 10, 50]}]}, "no area"),
        ({"persons": [{"image": "?", "box": [200, 10, 300, 50]}]}, "outside the image"),
        ({"persons": [{"image": "?", "box": [10, 10, 50]}]}, "body.persons.0.box.3"),
        ({"persons": [{"image": "?", "file": "x"}]}, "body.persons.0.file"),
        ({"top": 0}, "1 to 200"),
        ({"top": 201}, "1 to 200"),
        ({"cameras": ["attic"]}, "no camera 'attic'"),
        ({"since": "tomorrow"}, "'tomorrow' is not an ISO 8601 time"),
    ],
)
def test_invalid_searches(shared: Page, change: dict, words: str) -> None:
    key = key_of(shared, "a.png")
    good = {"persons": [{"image": key, "person": 0}]}
    body = json.loads(json.dumps({**good, **change}).replace('"?"', f'"{key}"'))
    answer = shared.post("/api/search", body)
    assert answer.status == 422 and words in answer.json["error"]


@pytest.mark.parametrize("box", ["", "1,2,3", "a,b,c,d", "nan,0,9,9", "9,9,1,1", "200,0,300,9"])
def test_invalid_boxes(shared: Page, box: str) -> None:
    answer = shared.get(f"/api/images/{key_of(shared, 'a.png')}/crop?box={box}")
    assert answer.status == 422 and "box" in answer.json["error"]


@pytest.mark.parametrize(
    "key",
    ["g-00000000-0", "g-x-0", "u-nothing", "..%2F..%2Fetc%2Fpasswd", "%2Fetc%2Fpasswd", "g-{}-99"],
)
def test_unknown_ids(shared: Page, key: str) -> None:
    key = key.format(shared.get("/api/gallery").json["edition"])
    for path in ("", "/image", "/crop?box=0,0,9,9"):
        answer = shared.get(f"/api/images/{key}{path}")
        assert answer.status == 404 and b"root:" not in answer.body


def test_paths_out_of_the_static_folder(shared: Page) -> None:
    for path in ("../app.py", "..%2Fapp.py", "%2e%2e/app.py", "/etc/passwd", "no.js"):
        assert shared.get(f"/static/{path}").status == 404


def test_an_entry_that_leaves_the_folder_is_not_shown(tmp_path: Path) -> None:
    """A link that was put in the place of an image after indexing."""
    with running(make_gallery(tmp_path)) as page:
        key = key_of(page, "a.png")
        paint_halves(tmp_path / "secret.png", (RED, RED))
        (tmp_path / "images" / "a.png").unlink()
        (tmp_path / "images" / "a.png").symlink_to(tmp_path / "secret.png")
        for path in ("", "/image", "/crop?box=0,0,9,9"):
            answer = page.get(f"/api/images/{key}{path}")
            assert answer.status == 403 and "leaves the indexed folder" in answer.json["error"]
        drawn = {"persons": [{"image": key, "box": [0, 0, 50, 80]}]}
        assert page.post("/api/search", drawn).status == 403


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"host": "localhost:1234"}, 200),
        ({"host": "192.168.0.7:1234"}, 200),
        ({"host": "[::1]:1234"}, 200),
        ({"host": "cameras.example:1234"}, 200),
        ({"host": "evil.example"}, 403),
        ({"host": "localhost.evil.example"}, 403),
        ({"host": "[:"}, 403),
        ({"host": "localhost:1", "origin": "http://localhost:1"}, 200),
        ({"host": "localhost:1", "origin": "http://localhost:2"}, 403),
        ({"origin": "https://evil.example"}, 403),
        ({"origin": "null"}, 403),
        ({"sec_fetch_site": "same-origin"}, 200),
        ({"sec_fetch_site": "cross-site"}, 403),
        ({"sec_fetch_site": "cross-site", "sec_fetch_mode": "navigate"}, 200),
    ],
)
def test_which_requests_are_answered(
    tmp_path_factory, guarded: Page, headers: dict, status: int
) -> None:
    assert guarded.get("/api/gallery", **headers).status == status
    if "origin" in headers:
        assert guarded.post("/api/uploads", image_bytes(), **headers).status == status


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    gallery = make_gallery(tmp_path_factory.mktemp("guarded"))
    with running(gallery, names=("Cameras.example",)) as page:
        yield page


def test_what_a_browser_may_do_with_answers(shared: Page) -> None:
    for path in ("/", "/static/page.js", "/api/gallery", "/nothing"):
        headers = shared.get(path).headers
        assert "default-src 'none'" in headers["content-security-policy"]
        assert "unsafe" not in headers["content-security-policy"]
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["cross-origin-resource-policy"] == "same-origin"
    assert shared.get("/docs").status == shared.get("/openapi.json").status == 404


# ---- what is kept --------------------------------------------------------------------------------


def test_the_oldest_uploads_are_forgotten() -> None:
    content = image_bytes()
    uploads = Uploads(UploadLimits(count=3))
    first, second, third = (uploads.add(content, name) for name in "abc")
    uploads.get(first)  # was used
    fourth = uploads.add(content, "d")
    with pytest.raises(UnknownImageError, match="no longer kept"):
        uploads.get(second)
    assert [uploads.get(key).name for key in (first, third, fourth)] == ["a", "c", "d"]
    folder = uploads.get(first).path.parent
    assert len(list(folder.iterdir())) == 3 and folder.stat().st_mode & 0o777 == 0o700
    uploads.close()
    assert not folder.exists()


def test_uploads_are_bounded_in_bytes() -> None:
    content = image_bytes()
    uploads = Uploads(UploadLimits(total_bytes=2 * len(content) + 1))
    for name in "abcd":
        last = uploads.add(content, name)
    assert len(uploads) == 2 and uploads.get(last).name == "d"
    uploads.close()


@pytest.mark.parametrize(
    ("name", "kept"),
    [
        ("../../etc/passwd", "passwd"),
        ("C:\\images\\me.jpg", "me.jpg"),
        ("a\nb\x00.png", "ab.png"),
        ("", "image"),
        ("x" * 300 + ".png", "x" * 96 + ".png"),
    ],
)
def test_names_of_uploads(name: str, kept: str) -> None:
    uploads = Uploads()
    assert uploads.get(uploads.add(image_bytes(), name)).name == kept
    uploads.close()


def test_another_models_gallery_is_refused(tmp_path: Path) -> None:
    gallery = make_gallery(tmp_path)
    manifest = FolderStore(gallery).folder / "gallery.json"
    manifest.write_text(manifest.read_text().replace('"ColorModel"', '"Other"'))
    with pytest.raises(ValueError, match="made by another model"), running(gallery):
        pass
