# SPDX-License-Identifier: Apache-2.0
"""Exact and approximate search and filters, compared with plain NumPy."""

import json

import numpy as np
import pytest
from galleries import entry, unit_vectors, write_gallery
from hypothesis import given
from hypothesis import strategies as st

from person_search.search import FolderGallery, Match, SearchFilter, fuse
from person_search.search import folder_gallery as gallery_module
from person_search.search.approximate import build_index, choose_cells
from person_search.search.errors import GalleryError
from person_search.search.exact import CHUNK, best_rows, similarities


def reference(feats: np.ndarray, query: np.ndarray, k: int) -> list[int]:
    return sorted(range(len(feats)), key=lambda i: (-float(feats[i] @ query), i))[:k]


@given(
    st.lists(st.sampled_from([-1.0, -0.5, 0.0, 0.25, 1.0, -np.inf]), max_size=40),
    st.integers(1, 60),
    st.integers(0, 45),
)
def test_best_rows_are_those_of_a_full_sort(values, repeats, k) -> None:
    sims = np.array(values * repeats, np.float32)
    expected = [i for i in np.argsort(-sims, kind="stable") if sims[i] > -np.inf][:k]
    assert best_rows(sims, k).tolist() == expected


def test_best_rows_of_many() -> None:
    sims = np.random.default_rng(0).normal(size=40 * CHUNK + 7).astype(np.float32)
    expected = np.argsort(-sims, kind="stable")
    for k in (1, 10, 39, 40, 1000):
        assert best_rows(sims, k).tolist() == expected[:k].tolist()


def test_similarities_of_several_parts() -> None:
    feats = unit_vectors(np.random.default_rng(0), 12, 5)
    sims = similarities([feats[:4], feats[4:4], feats[4:]], feats[3])
    assert np.allclose(sims, feats @ feats[3], atol=1e-6)


@pytest.mark.parametrize("segments", [1, 3])
def test_exact_search_is_numpy(segments, tmp_path) -> None:
    counts = [3, 0, 5, 1, 7, 2]
    store, feats = write_gallery(tmp_path / "g", counts, segments=segments)
    image = np.repeat(np.arange(6), counts)
    query = unit_vectors(np.random.default_rng(5), 1, 8)[0]
    gallery = FolderGallery(store)
    assert len(gallery) == 18 and len(gallery.images) == 6
    matches = gallery.search(query, None, per_image=False)
    order = reference(feats, query, 18)
    assert [m.path for m in matches] == [
        str(tmp_path / "images" / f"p{image[i]}.png") for i in order
    ]
    assert np.allclose([m.sim for m in matches], feats[order] @ query, atol=1e-6)
    assert [m.rank for m in matches] == list(range(1, 19))
    once = gallery.search(query, 3)
    best = list(dict.fromkeys(image[order]))[:3]
    assert [m.path[-6:] for m in once] == [f"p{i}.png" for i in best]
    assert once[0] == matches[0]


def test_filters(tmp_path) -> None:
    store, feats = write_gallery(
        tmp_path / "g", [2, 2, 2, 2], camera=["north", "south", "north", ""],
        time=[100.0, 200.0, 300.0, None],
    )  # fmt: skip
    gallery = FolderGallery(store)

    def found(**fields) -> set[str]:
        matches = gallery.search(feats[0], None, wanted=SearchFilter(**fields))
        return {m.path[-6:-4] for m in matches}

    assert found() == {"p0", "p1", "p2", "p3"}
    assert found(cameras=frozenset({"north"})) == {"p0", "p2"}
    assert found(since=200.0) == {"p1", "p2"}, "unknown times are left out"
    assert found(until=200.0) == {"p0", "p1"} and found(since=150, until=250) == {"p1"}
    assert found(cameras=frozenset({"nowhere"})) == set()
    scores = np.sort(gallery.boxes[0][:, 4])
    matches = gallery.search(
        feats[0], None, wanted=SearchFilter(min_score=float(scores[5])), per_image=False
    )
    assert sorted(m.score for m in matches) == pytest.approx(scores[5:].tolist())
    every = gallery.search(feats[0], None, per_image=False)
    similar = SearchFilter(min_similarity=every[2].sim)
    assert gallery.search(feats[0], None, wanted=similar, per_image=False) == every[:3]
    assert gallery.search(feats[0], 2, wanted=similar, per_image=False) == every[:2]
    skipped = gallery.search(feats[0], None, skip=[tmp_path / "images" / "p0.png"])
    assert "p0" not in {m.path[-6:-4] for m in skipped} and len(skipped) == 3


def test_filters_in_words() -> None:
    assert SearchFilter().describe() == ""
    wanted = SearchFilter(0.5, frozenset({"south", "north"}), 0.0, 90.0)
    assert wanted.describe() == (
        "cameras north, south, from 1970-01-01 00:00:00 on, until 1970-01-01 00:01:30, "
        "detection score at least 0.5"
    )
    assert SearchFilter(cameras=frozenset({"gate"})).describe() == "camera gate"
    assert SearchFilter(min_similarity=-0.1).describe() == "similarity at least -0.1"


@pytest.mark.parametrize(
    ("fields", "text"),
    [({"since": 90.0, "until": 0.0}, "starts at 1970-01-01 00:01:30 and ends before that"),
     ({"min_score": 7}, "the minimum score is 7; scores are in"),
     ({"min_score": float("nan")}, "the minimum score is nan"),
     ({"min_similarity": 50.0}, "the minimum similarity is 50; similarities are in")],
)  # fmt: skip
def test_invalid_filters(fields, text) -> None:
    with pytest.raises(ValueError, match=text):
        SearchFilter(**fields)


def test_empty_gallery(tmp_path) -> None:
    for name, counts in (("none", []), ("no_person", [0, 0])):
        store, _ = write_gallery(tmp_path / name, counts)
        gallery = FolderGallery(store)
        assert len(gallery) == 0 and gallery.search(np.eye(8)[0]) == []


def test_wrong_queries(tmp_path) -> None:
    gallery = FolderGallery(write_gallery(tmp_path / "g", [1])[0])
    with pytest.raises(ValueError, match="embeddings of dimension 8"):
        gallery.search(np.zeros(7))
    with pytest.raises(ValueError, match="method is 'fast'"):
        gallery.search(np.zeros(8), method="fast")
    with pytest.raises(GalleryError, match="no approximate index"):
        gallery.search(np.zeros(8), method="approximate")


def test_match_as_json() -> None:
    match = Match(1, "a.mp4", (1.04, 2.0, 3.06, 4.0), 0.123456, -0.5, 3, 25, 1.0004, 0.0, "north")
    assert json.loads(json.dumps(match.to_json())) == {
        "rank": 1, "image": "a.mp4", "box": [1.0, 2.0, 3.1, 4.0], "score": 0.1235,
        "similarity": -0.5, "frame": 25, "offset": 1.0, "time": "1970-01-01 00:00:00",
        "camera": "north",
    }  # fmt: skip


def test_fused_query() -> None:
    assert np.allclose(fuse([np.array([1.0, 0]), np.array([0, 1.0])]), [0.5**0.5, 0.5**0.5])
    assert np.allclose(fuse([np.array([3.0, 0]), np.array([0, 0.1])]), [0.5**0.5, 0.5**0.5])
    assert np.linalg.norm(fuse(unit_vectors(np.random.default_rng(0), 5, 9))) == pytest.approx(1)
    with pytest.raises(ValueError, match="contradict"):
        fuse([np.array([1.0, 0]), np.array([-1.0, 0])])
    with pytest.raises(ValueError, match="no query is given"):
        fuse([])


# ---- approximate ---------------------------------------------------------------------------------


@pytest.fixture
def indexed(tmp_path, monkeypatch):
    """3,000 persons in two segments with an index, and 60 more that came later."""
    pytest.importorskip("faiss", reason="the approximate index needs FAISS")
    monkeypatch.setattr("person_search.search.approximate.MOST_VISITED", 1.0)
    store, feats = write_gallery(tmp_path / "g", [5] * 600, 16, segments=2)
    with store.writing():
        made = build_index(store.folder, store.manifest.segments, FolderGallery(store).vectors)
    rng = np.random.default_rng(7)
    later = unit_vectors(rng, 60, 16)
    with store.writing() as run, store.writer("0001", durable=False) as writer:
        for i in range(12):
            writer.append(entry(f"later{i}.png", run), rng.uniform(0, 9, (5, 4)),
                          rng.uniform(0, 1, 5), later[5 * i : 5 * i + 5])  # fmt: skip
    return store, feats, later, made


def test_approximate_agrees_with_exact(indexed) -> None:
    store, feats, later, made = indexed
    gallery = FolderGallery(store)
    assert made.rows == {"0001": 1500, "0002": 1500} and len(gallery.index) == 3000
    assert made.recall >= 0.99 and made.cells == choose_cells(3000)
    hits = 0
    for query in unit_vectors(np.random.default_rng(1), 40, 16):
        exact = gallery.search(query, 10, method="exact", per_image=False)
        approximate = gallery.search(query, 10, method="approximate", per_image=False)
        hits += len({(m.path, m.box) for m in exact} & {(m.path, m.box) for m in approximate})
    assert hits >= 0.95 * 400
    for query in (feats[0], feats[2999], later[0], later[59]):
        (first, *_) = gallery.search(query, 3, method="approximate")
        assert first.sim > 0.9999, "old rows of both segments and new ones are all found"
    assert gallery.search(later[0], 1, method="approximate")[0].path.endswith("later0.png")


def test_approximate_with_filters(indexed) -> None:
    store, feats, later, _ = indexed
    gallery = FolderGallery(store)
    own = gallery.search(feats[0], 1)[0]
    skip = [own.path]
    found = gallery.search(feats[0], 5, skip=skip, method="approximate")
    assert own.path not in [m.path for m in found]
    high = SearchFilter(min_score=0.9)
    matches = gallery.search(feats[0], 20, wanted=high, method="approximate", per_image=False)
    assert matches and min(m.score for m in matches) >= 0.9


def test_more_wanted_than_the_cells_hold(indexed) -> None:
    store, feats, later, _ = indexed
    gallery = FolderGallery(store)
    matches = gallery.search(feats[0], None, method="approximate", per_image=False)
    assert len(matches) == 3060
    assert len(gallery.search(feats[0], 612, method="approximate")) == 612


def test_auto_chooses_by_size_and_filter(indexed, monkeypatch) -> None:
    store, feats, *_ = indexed
    gallery = FolderGallery(store)
    used = []
    for name in ("_exact_rows", "_approximate_rows"):
        original = getattr(FolderGallery, name)
        monkeypatch.setattr(
            FolderGallery, name,
            lambda *args, name=name, original=original: used.append(name) or original(*args),
        )  # fmt: skip
    gallery.search(feats[0])
    monkeypatch.setattr(gallery_module, "APPROXIMATE_FROM", 1000)
    gallery.search(feats[0])
    gallery.search(feats[0], wanted=SearchFilter(min_score=0.95))
    assert used == ["_exact_rows", "_approximate_rows", "_exact_rows"]


def test_index_of_missing_segments_is_not_used(indexed) -> None:
    store, *_ = indexed
    path = store.folder / "index.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, "rows": {"0009": 3000}}))
    assert FolderGallery(store).index is None
    path.write_text(json.dumps({**content, "rows": {"0001": 9999, "0002": 1500}}))
    assert FolderGallery(store).index is None
    path.write_text(json.dumps({**content, "file": "../" + content["file"]}))
    assert FolderGallery(store).index is None
    path.write_text("{")
    with pytest.raises(GalleryError, match="delete it and rebuild the index"):
        FolderGallery(store)


def test_without_faiss_an_indexed_gallery_is_searched_exactly(indexed, monkeypatch, caplog) -> None:
    store, feats, *_ = indexed
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    gallery = FolderGallery(store)
    assert "requires FAISS" in caplog.text and gallery.index is None
    assert gallery.search(feats[0], 1)[0].sim > 0.9999


def test_an_index_that_is_no_faster_is_dropped(tmp_path, monkeypatch) -> None:
    """Embeddings without clusters: nearly all cells must be visited."""
    pytest.importorskip("faiss", reason="the approximate index needs FAISS")
    store, feats = write_gallery(tmp_path / "g", [5] * 300, 64)
    monkeypatch.setattr("person_search.search.folder_store.APPROXIMATE_FROM", 1000)
    store.refresh(approximate=True)
    assert not list(store.folder.glob("*.faiss")) and FolderGallery(store).index is None
    assert "none, exact search is as fast" in dict(store.gallery().facts())["approximate index"]
    assert store.gallery().search(feats[0], 1)[0].sim > 0.9999
    before = (store.folder / "index.json").stat().st_mtime_ns
    store.refresh(approximate=True)
    assert (store.folder / "index.json").stat().st_mtime_ns == before, "it is not built again"


def test_too_few_for_an_index(tmp_path) -> None:
    pytest.importorskip("faiss", reason="the approximate index needs FAISS")
    store, _ = write_gallery(tmp_path / "g", [5])
    with pytest.raises(GalleryError, match="5 persons are too few"):
        build_index(store.folder, ["0001"], FolderGallery(store).vectors)
