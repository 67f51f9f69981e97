# SPDX-License-Identifier: Apache-2.0
"""One contract for all galleries: a folder, Milvus Lite and a Milvus server behave alike."""

import json
import os
import uuid
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from galleries import IDENTITY, entry, unit_vectors
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from milvus_galleries import KINDS, location_of

from person_search.search import Gallery, GalleryStore, SearchFilter, compact, verify
from person_search.search.cli import main
from person_search.search.entries import END_OF_VIDEO
from person_search.search.errors import GalleryError, OtherModelError
from person_search.search.identity import ModelIdentity
from person_search.search.locations import parse_location
from person_search.search.maintenance import forget
from person_search.search.milvus_client import Connection
from person_search.search.table import ImageKey

DIM = 8
IMAGES = st.tuples(
    st.integers(0, 5),  # number of the image: a second one replaces the first
    st.sampled_from(["put", "put", "put", "remove", "fail"]),
    st.integers(0, 3),  # persons
    st.sampled_from(["", "gate", "a\"b\\'c", "kamera ü"]),
    st.sampled_from([None, 100.0, 200.5, 300.0]),
)
FILTERS = st.builds(
    SearchFilter,
    min_score=st.sampled_from([0.0, 0.4]),
    cameras=st.sampled_from([frozenset(), frozenset({"gate", "a\"b\\'c"})]),
    since=st.sampled_from([None, 150.0]),
    until=st.sampled_from([None, 250.0, 300.0]),
    min_similarity=st.sampled_from([None, 0.1]),
)


def fill(location: object, images: Path, script: list, seed: int, *, video: bool = True) -> None:
    """Follows a script in two runs, and adds a video in which two persons walk."""
    rng = np.random.default_rng(seed)
    for part in (script[: len(script) // 2], script[len(script) // 2 :]):
        store = GalleryStore.open_or_create(location, DIM, IDENTITY)
        with store.writing() as run:
            root = store.add_root(images)
            (name,) = store.ensure_writers(1)
            with store.writer(name) as writer:
                for number, what, persons, camera, time in part:
                    one = replace(entry(f"p{number}.png", run), root=root)
                    if what == "put":
                        boxes = np.sort(rng.uniform(0, 90, (persons, 2, 2)), axis=1).reshape(-1, 4)
                        one = replace(one, camera=camera, time=time, size=int(rng.integers(99)))
                        scores, feats = rng.uniform(0, 1, persons), unit_vectors(rng, persons, DIM)
                        writer.append(one, boxes, scores, feats)
                    elif what == "remove":
                        writer.append(replace(one, removed=True))
                    else:
                        writer.append(replace(one, error="it is damaged"))
                if video:
                    write_video(writer, rng, replace(entry("v.mp4", run), root=root))
            store.refresh(True)
        store.close()


def write_video(writer, rng: np.random.Generator, one) -> None:
    people = unit_vectors(rng, 2, DIM)
    for frame in range(5):
        feats = people + rng.normal(0, 0.02, people.shape)
        feats = (feats / np.linalg.norm(feats, axis=1, keepdims=True)).astype(np.float32)
        x = 4.0 * frame
        boxes = np.array([[x, 10, x + 20, 70], [200 - x, 10, 220 - x, 70]])
        seconds = 0.5 * frame
        of_frame = replace(one, frame=frame, offset=seconds, time=200 + 50 * seconds, camera="v")
        writer.append(of_frame, boxes, rng.uniform(0.3, 1, 2), feats)
    writer.append(replace(one, frame=END_OF_VIDEO, every=0.5))


def found(gallery: Gallery, query: np.ndarray, **options) -> tuple[list[tuple], list[float]]:
    """What a search finds, without the keys of the images, and the similarities."""
    matches = gallery.search(query, **options)
    facts = [
        (m.rank, m.path, m.name, m.box, m.score, m.frame, m.offset, m.time, m.camera, m.frames,
         m.first, m.last)
        for m in matches
    ]  # fmt: skip
    return facts, [m.sim for m in matches]


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS[1:])
def test_all_find_the_same(kind, request, tmp_path) -> None:
    """Over random galleries with replacements, removals and filters."""
    new = location_of(kind, request, tmp_path)
    (tmp_path / "images").mkdir()
    examples = int(os.environ.get("PERSON_SEARCH_EXAMPLES", "2"))

    @settings(
        max_examples=examples, deadline=None, database=None, phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(st.lists(IMAGES, min_size=8, max_size=24), st.lists(FILTERS, min_size=3, max_size=5),
           st.integers(0, 2**32 - 1))  # fmt: skip
    def check(script, filters, seed) -> None:
        here, there = tmp_path / uuid.uuid4().hex, new()
        for location in (here, there):
            fill(location, tmp_path / "images", script, seed)
        ours, theirs = Gallery.open(here, IDENTITY), Gallery.open(there, IDENTITY)
        for fact in ("num_images", "num_persons", "num_failed"):
            assert getattr(ours, fact) == getattr(theirs, fact)
        # of what has been removed, cameras and times stay until a compaction
        assert set(ours.camera_names) <= set(theirs.camera_names)
        rng = np.random.default_rng(seed)
        skip = [tmp_path / "images" / "p1.png"]
        for wanted in [SearchFilter(), *filters]:
            query = unit_vectors(rng, 1, DIM)[0]
            for options in (
                {"top": 3}, {"top": None}, {"top": None, "every_frame": True, "skip": skip},
                {"top": 4, "per_image": False}, {"top": None, "method": "exact", "skip": skip},
            ):  # fmt: skip
                expected = found(ours, query, wanted=wanted, **options)
                got = found(theirs, query, wanted=wanted, **options)
                assert got[0] == expected[0]
                assert np.allclose(got[1], expected[1], atol=1e-5)
        ours.store.close(), theirs.store.close()

    check()


SCRIPT = [(i, "put", 2, "gate", 100.0 * i) for i in range(4)] + [(1, "put", 1, "gate", None)]


def test_images_persons_and_facts(new_gallery, tmp_path) -> None:
    (tmp_path / "images").mkdir()
    location = new_gallery()
    fill(location, tmp_path / "images", SCRIPT, 0)
    gallery = Gallery.open(location)
    total, images = gallery.list_images(0, 100)
    assert total == len(images) == 9 and gallery.num_persons == 17
    assert len(gallery.list_images(2, 3)[1]) == 3 and gallery.list_images(0, 9, "gate")[0] == 4
    for image in images:
        assert isinstance(image.key, ImageKey) and gallery.image(str(image.key)) == image
        boxes, feats = gallery.persons_in(image.key)
        (best, *_) = gallery.search(feats[0], 1, every_frame=True)
        assert best.image == image.key and best.sim == pytest.approx(1, abs=1e-5)
        assert best.box == tuple(boxes[0, :4].tolist())
        assert gallery.search(feats[0], 1, every_frame=True, skip=[image.key])[0].sim < 0.9999
    with pytest.raises(LookupError):
        gallery.image("zzz")
    facts = dict(gallery.facts())
    assert facts["images and frames"] == "9 (0 files unreadable)" and facts["cameras"] == "gate, v"
    assert facts["tracklets"] == "2 in videos" and facts["runs"] == "2"
    gallery.store.close()


def test_verify_compact_and_forget(new_gallery, tmp_path) -> None:
    images = tmp_path / "images"
    images.mkdir()
    location = new_gallery()
    fill(location, images, SCRIPT, 0)
    store = GalleryStore.open(location)
    assert sorted(verify(store)) == [
        f"the image '{name}' is missing."
        for name in ("p0.png", "p1.png", "p2.png", "p3.png", "v.mp4")
    ]
    report = compact(store)
    assert (report.images, report.persons, report.damaged) == (9, 17, [])
    gallery = store.gallery()
    query = gallery.persons_in(next(i for i in gallery.list_images(0, 9)[1] if i.frame == 0).key)
    (match,) = gallery.search(query[1][0], 1)
    line = json.loads(json.dumps(match.to_json()))
    assert line["tracklet"]["frames"] == 5
    assert forget(store, matches=[line]).persons == 5
    after = store.gallery()
    assert after.num_persons == 12 and after.search(query[1][0], 1)[0].sim < 0.999
    assert after.search(query[1][1], 1)[0].frames == 5
    with pytest.raises(GalleryError, match="has no image of"):
        forget(store, [images / "p0.png", images / "zzz.png"])
    assert forget(store, [images / "p0.png"]).images == 1
    with pytest.raises(GalleryError, match="has no person at"):
        forget(store, matches=[{**line, "frame": 77}])
    assert forget(store, [images]).images == 8
    empty = store.gallery()
    assert len(empty) == 0 and empty.search(query[1][0]) == [] and empty.times is None
    store.close()


def test_another_model_is_refused(new_gallery) -> None:
    location = new_gallery()
    GalleryStore.open_or_create(location, DIM, IDENTITY).close()
    other = ModelIdentity("Drawn", "1" * 64)
    for attempt in (
        lambda: Gallery.open(location, other),
        lambda: GalleryStore.open_or_create(location, DIM, other),
    ):
        with pytest.raises(OtherModelError, match="the weights"):
            attempt()


def test_a_copy_is_equal_to_the_bit_and_goes_on(new_gallery, tmp_path, capsys) -> None:
    """From a folder and back."""
    (tmp_path / "images").mkdir()
    first, there, back = tmp_path / "first", new_gallery(), tmp_path / "back"
    fill(first, tmp_path / "images", [*SCRIPT, (5, "fail", 0, "", None)], 0)

    def rows(location) -> list:
        store = GalleryStore.open(location)
        found = sorted(
            (e.path, e.frame or 0, e.time or 0, e.camera, e.error, e.crc, boxes.tobytes(),
             vectors.tobytes())
            for e, boxes, vectors in store.persons()
        )  # fmt: skip
        store.close()
        return found

    assert main(["copy", str(first), str(there)]) == 0
    assert "9 images with 17 persons copied; 0 images were there already." in capsys.readouterr()[0]
    assert main(["copy", str(first), str(there)]) == 0
    assert "0 images with 0 persons copied; 9 images were there" in capsys.readouterr()[0]
    assert main(["copy", str(there), str(back)]) == 0
    assert rows(first) == rows(there) == rows(back)
    query = unit_vectors(np.random.default_rng(0), 1, DIM)[0]
    assert (
        found(Gallery.open(back), query, top=None)[0]
        == (found(Gallery.open(first), query, top=None)[0])
    )


@pytest.fixture
def lite(request, tmp_path) -> str:
    (tmp_path / "images").mkdir()
    return location_of("lite", request, tmp_path)()


def test_what_a_kill_leaves_is_invisible_and_overwritten(lite, tmp_path, monkeypatch) -> None:
    """Killed after the persons of an image have been written, before the image itself."""
    fill(lite, tmp_path / "images", SCRIPT, 0, video=False)
    store = GalleryStore.open(lite)
    before = sorted(e.crc for e in store.entries())
    boxes, feats = np.array([[1.0, 2, 30, 40]]), unit_vectors(np.random.default_rng(7), 1, DIM)
    original = type(store.client).__getattr__

    def killed(self, name):
        def upsert(collection, rows):
            if collection.endswith("_images") and rows[0]["kind"] == 0:
                raise KeyboardInterrupt
            return original(self, name)(collection, rows)

        return upsert if name == "upsert" else original(self, name)

    def write() -> None:
        with store.writing() as run, store.writer("0") as writer:
            (root,) = store.roots
            for name in ("p0.png", "new.png"):  # one is replaced, one is new
                changed = replace(entry(name, run), root=root, size=77)
                writer.append(changed, boxes, np.ones(1), feats)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(type(store.client), "__getattr__", killed)
        write()
    gallery = store.gallery()
    assert sorted(e.crc for e in store.entries()) == before and gallery.num_images == 4
    assert gallery.search(feats[0], 1)[0].sim < 0.999, "the rows of both are invisible"
    write()
    gallery = store.gallery()
    assert (gallery.num_images, gallery.num_persons) == (5, 7), "none is doubled"
    assert [m.name for m in gallery.search(feats[0], 2)] != ["p0.png", "p0.png"]
    assert gallery.search(feats[0], 2)[1].sim > 0.999
    assert not [text for text in verify(store) if "persons" in text]
    assert gallery.num_running == 1
    compact(store)
    gallery = store.gallery()
    assert gallery.num_running == 0 and gallery.search(feats[0], 2)[1].sim > 0.999
    store.close()


def test_a_search_is_one_request_unless_a_run_has_not_ended(lite, tmp_path, monkeypatch) -> None:
    fill(lite, tmp_path / "images", SCRIPT, 0, video=False)
    gallery, asked = Gallery.open(lite), []
    original = type(gallery.client).__getattr__
    monkeypatch.setattr(
        type(gallery.client),
        "__getattr__",
        lambda self, name: asked.append(name) or original(self, name),
    )
    query = unit_vectors(np.random.default_rng(5), 1, DIM)[0]

    def requests(opened: Gallery) -> list[str]:
        asked.clear()
        assert len(opened.search(query, 2)) == 2
        return list(asked)

    requests(gallery)  # the first one also reads the folders
    assert requests(gallery) == ["search"]
    store = GalleryStore.open(lite)
    with store.writing() as run, store.writer("0") as writer:
        new = replace(entry("p0.png", run), root=next(iter(store.roots)), size=5)
        writer.append(new, np.array([[1.0, 2, 3, 4]]), np.ones(1), query[None])
        writer.flush()
        assert requests(store.gallery()) == ["search", "query"]
        assert "1 running or interrupted" in str(store.gallery().facts())
    assert requests(gallery) == ["search", "query"], "some rows are newer than it"
    assert gallery.search(query, 1)[0].sim > 0.999
    assert requests(store.gallery()) == ["search"]
    store.close(), gallery.store.close()


def test_other_collections_and_servers_that_are_away(lite) -> None:
    with pytest.raises(GalleryError, match="there is no gallery"):
        Gallery.open(lite)
    client = Connection(parse_location(lite))
    client.create_collection("gallery", dimension=4)
    client.close()
    for attempt in (Gallery.open, lambda it: GalleryStore.open_or_create(it, DIM, IDENTITY)):
        with pytest.raises(GalleryError, match="belongs to another program"):
            attempt(lite)
    with pytest.raises(GalleryError, match="no server answers at http://127.0.0.1:1"):
        Gallery.open("milvus://me:secret@127.0.0.1:1/g")


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ("index type DISKANN is not supported", "DISKANN"),
        ("collection authors not found", "authors"),
        ("write failed: no space left on device", "has no room"),
        ("Retry run out of 75 retry times, server unavailable", "no server answers"),
        ("load collection timeout", "not answered in time"),
        ("failed to query: collection not loaded[collection=1]", "it is still starting"),
    ],
)
def test_messages_of_a_server(lite, said, expected) -> None:
    client = Connection(parse_location(lite))
    assert expected in str(client._explain(RuntimeError(said)))
    client.close()


def test_what_other_runs_do_while_a_gallery_is_open(lite, tmp_path, monkeypatch) -> None:
    fill(lite, tmp_path / "images", SCRIPT, 0, video=False)
    gallery, other = Gallery.open(lite), GalleryStore.open(lite)
    feats = unit_vectors(np.random.default_rng(5), 2, DIM)
    with other.writing() as run, other.writer("0") as writer:
        new = replace(entry("new.png", run), root=other.add_root(tmp_path / "another folder"))
        writer.append(new, np.array([[1.0, 2, 3, 4], [5, 6, 7, 8]]), np.ones(2), feats)
    gallery.store.replace_manifest(color_details=(0.5,))
    assert GalleryStore.open(lite).manifest.run == other.manifest.run
    monkeypatch.setattr("person_search.search.milvus_gallery.MOST", 1)  # the rows come here
    matches = gallery.search(feats[0], None)
    assert matches[0].path == str(tmp_path / "another folder" / "new.png") and len(matches) == 5
    for store in (gallery.store, other):
        store.close()


def test_an_index_whose_building_was_interrupted(lite, tmp_path) -> None:
    fill(lite, tmp_path / "images", SCRIPT, 0, video=False)
    client = Connection(parse_location(lite))
    client.release_collection("gallery")
    client.drop_index("gallery", "feat")
    client.close()
    gallery = Gallery.open(lite)
    assert len(gallery.search(np.eye(DIM, dtype=np.float32)[0])) == 4
    gallery.store.close()


def test_what_precedes_damage_is_copied(lite, tmp_path) -> None:
    first = tmp_path / "first"
    fill(first, tmp_path / "images", SCRIPT, 0, video=False)
    with open(next(first.rglob("vectors.f32")), "r+b") as file:
        file.seek(-4, os.SEEK_END)
        file.write(b"abcd")
    with pytest.raises(SystemExit):
        main(["copy", str(first), lite])
    store = GalleryStore.open(lite)
    assert {"p0.png", "p2.png", "p3.png"} <= {one.path for one in store.entries()}
    store.close()


def test_a_gallery_of_another_version_is_refused(lite) -> None:
    store = GalleryStore.open_or_create(lite, DIM, IDENTITY)
    manifest = json.loads(store.manifest.to_bytes())
    store.write_fact("manifest", json.dumps({**manifest, "version": 2}))
    store.close()
    with pytest.raises(GalleryError, match=r"has version 2; this program reads version 1\.$"):
        Gallery.open(lite)


@pytest.mark.parametrize(
    "credentials", ["", "root:wrong-secret@", "stranger:wrong-secret@", "key@"]
)
def test_wrong_credentials(own_server, credentials, caplog, capfd) -> None:
    with pytest.raises(GalleryError, match="the server refuses these credentials") as e:
        Gallery.open(f"milvus://{credentials}127.0.0.1:{own_server.port}/g")
    said = f"{e.value} {caplog.text} {capfd.readouterr()}"
    assert "secret" not in said and "\n" not in str(e.value)


def test_the_server_is_away_for_a_while(own_server, tmp_path, monkeypatch) -> None:
    """Longer than a request is repeated: the run ends, and another one completes it."""
    monkeypatch.setattr("person_search.search.milvus_client.CONNECT_SECONDS", 3.0)
    location = f"milvus://root:Milvus@127.0.0.1:{own_server.port}/away"
    store = GalleryStore.open_or_create(location, DIM, IDENTITY)
    feats = unit_vectors(np.random.default_rng(0), 3, DIM)

    def write(store, numbers) -> None:
        with store.writing() as run, store.writer("0") as writer:
            root = store.add_root(tmp_path)
            for number in numbers:
                one = replace(entry(f"p{number}.png", run), root=root)
                writer.append(one, np.array([[1.0, 2, 30, 40]]), np.ones(1), feats[[number]])

    write(store, [0, 1])
    monkeypatch.setattr("person_search.search.milvus_client.SECONDS", 1.0)
    with own_server.away(), pytest.raises(GalleryError, match="no server answers at") as e:
        write(store, [2])
    assert "start again when it runs" in str(e.value) and "Milvus@" not in str(e.value)
    monkeypatch.undo()
    write(store, [0, 1, 2])
    assert sorted(one.path for one in store.entries()) == ["p0.png", "p1.png", "p2.png"]
    assert store.gallery().num_persons == 3
    store.close()


@pytest.mark.slow
def test_every_index_finds_the_same(request, tmp_path, monkeypatch) -> None:
    """With the sizes lowered, so that each is built."""
    location = location_of("server", request, tmp_path)()
    store = GalleryStore.open_or_create(location, DIM, IDENTITY)
    rng = np.random.default_rng(0)
    feats = unit_vectors(rng, 1200, DIM)
    with store.writing() as run, store.writer("0") as writer:
        root = store.add_root(tmp_path)
        for i in range(400):
            one = replace(entry(f"p{i}.png", run), root=root, camera="rare" if i % 40 == 0 else "")
            boxes = np.sort(rng.uniform(0, 90, (3, 2, 2)), axis=1).reshape(3, 4)
            writer.append(one, boxes, np.ones(3), feats[3 * i : 3 * i + 3])
    rare, hits = SearchFilter(cameras=frozenset({"rare"})), {}
    for kind in ("FLAT", "IVF_FLAT", "HNSW"):
        monkeypatch.setattr("person_search.search.milvus_index.SIZES", ((kind, 0),))
        assert store.build_index().startswith(kind)
        gallery = store.gallery()
        assert gallery.choice.recall >= 0.99
        hits[kind] = [
            [m.box for m in gallery.search(feats[i], 10, wanted=wanted, method=method)]
            for i in range(5)
            for wanted in (None, rare)
            for method in ("auto", "exact")
        ]
    for kind in ("IVF_FLAT", "HNSW"):
        pairs = zip(hits["FLAT"], hits[kind], strict=True)
        assert sum(len({*a} & {*b}) for a, b in pairs) >= 0.98 * 200
        assert hits[kind][1::2] == hits["FLAT"][1::2], "exact search"
    store.close()


@pytest.mark.slow
def test_rows_without_an_index_are_compared_one_by_one(request, tmp_path, monkeypatch) -> None:
    """Milvus searches new rows with a coarse index, which misses some where few pass a filter."""
    monkeypatch.setattr("person_search.search.milvus_index.SIZES", (("IVF_FLAT", 0),))
    dim, persons, images = 256, 50, 200
    location = location_of("server", request, tmp_path)()
    store = GalleryStore.open_or_create(location, dim, IDENTITY)
    rng = np.random.default_rng(0)
    feats = unit_vectors(rng, images * persons, dim)
    boxes = np.tile(np.arange(persons, dtype=float)[:, None], 4) + [0, 0, 9, 9]
    queries = unit_vectors(rng, 10, dim)
    for numbers in (range(10), range(10, images)):
        with store.writing() as run, store.writer("0") as writer:
            root = store.add_root(tmp_path)
            for i in numbers:
                one = replace(entry(f"p{i}.png", run), root=root, camera="" if i % 100 else "rare")
                own = feats[persons * i : persons * (i + 1)]
                writer.append(one, boxes, np.ones(persons), own)
            writer.flush()
            if 0 in numbers:
                store.build_index()
            else:
                gallery = store.gallery()
    rows = [persons * i + k for i in range(0, images, 100) for k in range(persons)]
    for query in queries:
        matches = gallery.search(
            query, 10, wanted=SearchFilter(cameras=frozenset({"rare"})), per_image=False
        )
        best = [divmod(rows[row], persons) for row in np.argsort(-feats[rows] @ query)[:10]]
        expected = [(f"p{i}.png", tuple(boxes[k])) for i, k in best]
        assert [(match.name, match.box) for match in matches] == expected
    store.close()
