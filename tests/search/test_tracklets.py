# SPDX-License-Identifier: Apache-2.0
"""Tracklets of videos, compared with a literal search over all assignments."""

import itertools
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from galleries import entry, unit_vectors, write_gallery
from hypothesis import given, settings
from hypothesis import strategies as st

from person_search.search import FolderGallery, FolderStore, ImageKey, Match, SearchFilter, compact
from person_search.search import tracklets as rule
from person_search.search.approximate import build_index
from person_search.search.errors import GalleryError
from person_search.search.maintenance import forget
from person_search.search.tracklets import group_frames, take_rows

DIM = 8


def box(x: float, height: float = 40.0) -> list[float]:
    return [x, 10.0, x + height / 2, 10.0 + height]


def like(person: int, seed: int, noise: float = 0.1, scene: float = 0.0) -> np.ndarray:
    """An embedding of a person: its own axis, what all persons share, the scene, and noise."""
    feat = np.full(DIM, 0.5, np.float32) + noise * np.random.default_rng(seed).normal(size=DIM)
    feat[person] += 1.0
    feat[-1] += scene
    return (feat / np.linalg.norm(feat)).astype(np.float32)


def group(frames: list[tuple[float, list[list[float]], list[np.ndarray]]]) -> list[list[int]]:
    """Groups frames of (seconds, boxes, embeddings); returns the numbers frame by frame."""
    counts = [len(boxes) for _, boxes, _ in frames]
    boxes = np.array([one for _, some, _ in frames for one in some]).reshape(-1, 4)
    feats = np.array([one for _, _, some in frames for one in some], np.float32).reshape(-1, DIM)
    numbers = group_frames([time for time, _, _ in frames], counts, boxes, feats)
    return [part.tolist() for part in np.split(numbers, np.cumsum(counts)[:-1])]


# ---- the rule ------------------------------------------------------------------------------------


def literal(frames) -> list[list[int]]:
    """The same by trying all assignments, in plain loops."""
    means = [np.mean(feats, axis=0) for _, _, feats in frames if len(feats) > 1]
    average = np.mean(means, axis=0)
    spread = np.mean(
        [np.var(feats, axis=0, ddof=1).sum() for *_, feats in frames if len(feats) > 1]
    )
    before: list[np.ndarray] = []
    known: list[dict] = []
    out, used = [], 0
    for time, boxes, feats in frames:
        if len(before) and len(feats):
            change = np.sum((np.mean(feats, axis=0) - np.mean(before, axis=0)) ** 2)
            if change > 1.35 * spread * (1 / len(feats) + 1 / len(before)):
                known = []
        before = feats if len(feats) else before
        known = [one for one in known if time - one["time"] <= 3.0 + 1e-6]
        persons = [
            (
                (np.array(b[:2]) + b[2:]) / 2,
                b[3] - b[1],
                (f - average) / np.linalg.norm(f - average),
            )
            for b, f in zip(boxes, feats, strict=True)
        ]
        cost = {}
        for k, one in enumerate(known):
            for j, (center, height, feat) in enumerate(persons):
                passed = time - one["time"]
                reach = (0.25 + 0.7 * passed) * (one["height"] + height) / 2
                distance = np.linalg.norm(one["center"] + one["velocity"] * passed - center)
                ratio = max(one["height"] / height, height / one["height"])
                sim = float(one["feat"] @ feat / np.linalg.norm(one["feat"]))
                if distance <= reach and ratio <= 1.6 and sim >= 0:
                    cost[k, j] = 1 - sim + distance / reach
        best = cheapest(cost)
        numbers = []
        for j, (center, height, feat) in enumerate(persons):
            match = [k for k, other in best if other == j]
            if match:
                one = known[match[0]]
                passed = time - one["time"]
                share = 1 - np.exp(-passed / 0.3)
                moved = (center - one["center"]) / passed
                one["velocity"] = (1 - share) * one["velocity"] + share * moved
                one["feat"] = 0.7 * one["feat"] + 0.3 * feat
                one |= {"time": time, "center": center, "height": height}
            else:
                one = {"number": used, "time": time, "center": center, "height": height,
                       "velocity": np.zeros(2), "feat": feat}  # fmt: skip
                known.append(one)
                used += 1
            numbers.append(one["number"])
        out.append(numbers)
    return out


def cheapest(cost: dict[tuple[int, int], float]) -> list[tuple[int, int]]:
    """The largest set of pairs without a common member; of these, the one of the lowest cost."""
    for size in range(min(len({k for k, _ in cost}), len({j for _, j in cost})), 0, -1):
        sets = [
            pairs
            for pairs in itertools.combinations(cost, size)
            if len({k for k, _ in pairs}) == len({j for _, j in pairs}) == size
        ]
        if sets:
            return list(min(sets, key=lambda pairs: sum(cost[pair] for pair in pairs)))
    return []


def walk(seed: int, persons: int = 3, frames: int = 7) -> list:
    """Persons who walk at random, are missed at random, and sometimes look like another one."""
    rng = np.random.default_rng(seed)
    places, speeds = rng.uniform(0, 150, persons), rng.normal(0, 15, persons)
    step, out = rng.choice([0.2, 0.5, 1.0]), []
    for i in range(frames):
        seen = [p for p in range(persons) if rng.random() < 0.8] or [0]
        boxes = [
            box(places[p] + speeds[p] * i * step + rng.normal(0, 2), rng.uniform(34, 46))
            for p in seen
        ]
        looks = [p if rng.random() < 0.85 else int(rng.integers(persons)) for p in seen]
        out.append((i * step, boxes, [like(p, int(rng.integers(10**6)), 0.15) for p in looks]))
    return out


@pytest.mark.parametrize("seed", range(25))
def test_the_rule_is_that_of_all_assignments(seed) -> None:
    frames = walk(seed)
    assert group(frames) == literal(frames)


def test_the_walks_exercise_cuts_gaps_and_crossings() -> None:
    """The comparison above would prove little if every tracklet simply continued."""
    sizes = [max(map(max, group(walk(seed)))) + 1 for seed in range(25)]
    assert min(sizes) <= 4 and max(sizes) >= 8


def test_two_persons_cross() -> None:
    frames = [
        (t, [box(10 + 20 * t), box(90 - 20 * t)], [like(0, t), like(1, 50 + t)]) for t in range(5)
    ]
    assert group(frames) == [[0, 1]] * 5
    swapped = [(t, boxes[::-1], feats[::-1]) if t % 2 else (t, boxes, feats)
               for t, boxes, feats in frames]  # fmt: skip
    assert group(swapped) == [[0, 1], [1, 0], [0, 1], [1, 0], [0, 1]], "not the order in a frame"


@pytest.mark.parametrize(("missed", "expected"), [(2, 0), (3, 2)])
def test_a_person_who_is_missed_for_a_while(missed, expected) -> None:
    """Up to 3 seconds between two frames."""
    both = [(t, [box(10), box(90)], [like(0, t), like(1, 50 + t)]) for t in (0, 1)]
    alone = [(2 + t, [box(90)], [like(1, 60 + t)]) for t in range(missed)]
    frames = [*both, *alone, (2 + missed, [box(12), box(90)], [like(0, 98), like(1, 99)])]
    assert group(frames)[-1] == [expected, 1]


def test_too_far_or_of_another_size() -> None:
    still = [box(200)], [like(1, 7)]
    frames = [(0, [box(10), *still[0]], [like(0, 0), *still[1]]),
              (1, [box(70), *still[0]], [like(0, 1), *still[1]]),
              (2, [box(70, 80), *still[0]], [like(0, 2), *still[1]])]  # fmt: skip
    assert group(frames) == [[0, 1], [2, 1], [3, 1]]


def test_a_cut() -> None:
    """Other persons at the same places: no tracklet crosses the cut."""
    before = [(t, [box(10), box(90)], [like(0, t), like(1, 50 + t)]) for t in range(3)]
    after = [(3 + t, [box(10), box(90)], [like(2, t), like(3, 50 + t)]) for t in range(3)]
    assert group(before + after) == [[0, 1]] * 3 + [[2, 3]] * 3


def test_a_cut_ends_all_tracklets() -> None:
    """The same persons at the same places; the embeddings show that the scene is another one."""
    places, seeds = [box(10), box(90), box(170)], (0, 50, 70)

    def scene(start: int, shift: float) -> list:
        return [
            (start + t, places, [like(p, seeds[p] + start + t, scene=shift) for p in range(3)])
            for t in range(3)
        ]

    assert group(scene(0, 0) + scene(3, 0)) == [[0, 1, 2]] * 6
    assert group(scene(0, 0) + scene(3, 1.5)) == [[0, 1, 2]] * 3 + [[3, 4, 5]] * 3


def test_a_cut_between_two_single_persons() -> None:
    """Without two persons in a frame, embeddings are compared with the usual change."""
    alone = [(t, [box(10)], [like(0, t, 0.02)]) for t in range(4)]
    assert group(alone) == [[0]] * 4
    other = [(4 + t, [box(10)], [like(1, 50 + t, 0.02)]) for t in range(4)]
    assert group(alone + other) == [[0]] * 4 + [[1]] * 4


def test_little_to_group() -> None:
    assert group([]) == [[]]
    assert group([(0, [], []), (1, [], [])]) == [[], []], "a video without persons"
    assert group([(0, [box(1), box(50)], [like(0, 0), like(1, 0)])]) == [[0, 1]], "one frame"
    same = [(t, [box(1), box(80)], [like(0, 0)] * 2) for t in range(3)]
    assert group(same) == [[0, 1]] * 3, "a model without embeddings to speak of: by place"
    still = [(0.0, [box(1 + t)], [like(0, 0)]) for t in range(3)]
    assert group(still) == [[0]] * 3, "a video without time stamps"
    flat = [(t, [[5.0, 5.0, 5.0, 5.0]], [like(0, 0)]) for t in range(2)]
    assert group(flat) == [[0]] * 2, "boxes without area"


# ---- in a gallery --------------------------------------------------------------------------------


def add_video(store: FolderStore, frames, name="v.mp4", segments=("0001",), **fields) -> None:
    """Writes frames in turn to segments, with scores that fall from 0.9."""
    with store.writing() as run:
        for i, (time, boxes, feats) in enumerate(frames):
            with store.writer(segments[i % len(segments)], durable=False) as writer:
                scores = 0.9 - 0.01 * np.arange(len(boxes)) - 0.02 * i
                one = entry(name, run, frame=round(10 * time), offset=float(time), **fields)
                writer.append(one, np.array(boxes).reshape(-1, 4), scores, np.array(feats))


def frames_of(*persons: int, seconds: int = 6) -> list:
    return [
        (t, [box(10 + 80 * p + 5 * t) for p in persons], [like(p, 10 * t + p) for p in persons])
        for t in range(seconds)
    ]


@pytest.fixture
def store(tmp_path: Path) -> FolderStore:
    """Four images, a video of persons 0 and 1, and one of person 2, in two segments."""
    store, _ = write_gallery(tmp_path / "g", [2, 0, 3, 1], DIM, segments=2)
    add_video(store, frames_of(0, 1), segments=("0001", "0002"))
    add_video(store, frames_of(2, seconds=3), "w.mp4")
    return store


def test_one_match_per_tracklet(store) -> None:
    gallery = FolderGallery(store)
    matches = gallery.search(like(0, 99), None)
    videos = [m for m in matches if m.frames is not None]
    assert len(matches) == 3 + 3, "one per image with persons, one per tracklet"
    assert [(Path(m.path).name, m.frames, m.first, m.last) for m in videos][0] == (
        "v.mp4", 6, 0.0, 5.0,
    )  # fmt: skip
    assert sorted((Path(m.path).name, m.frames) for m in videos) == [
        ("v.mp4", 6), ("v.mp4", 6), ("w.mp4", 3),
    ]  # fmt: skip
    assert videos[0].frame == 0, "the best crop has the highest score; all heights are equal"
    best = np.mean([like(0, 10 * t) for t in range(rule.BEST_CROPS)], axis=0)
    expected = best @ like(0, 99) / np.linalg.norm(best)
    assert videos[0].sim == pytest.approx(float(expected), abs=1e-6)


@pytest.mark.parametrize("per_image", [True, False])
def test_every_frame_is_the_search_of_all_rows(store, per_image) -> None:
    gallery, query = FolderGallery(store), like(1, 98)
    rows = np.concatenate(gallery.vectors)
    order = [r for r in np.argsort(-(rows @ query), kind="stable") if gallery.image_of_row[r] >= 0]
    if per_image:
        images = gallery.image_of_row[order]
        order = [r for i, r in enumerate(order) if images[i] not in images[:i]]
    matches = gallery.search(query, None, per_image=per_image, every_frame=True)
    assert [m.sim for m in matches] == pytest.approx((rows @ query)[order].tolist(), abs=1e-6)
    assert [int(m.image) for m in matches] == gallery.image_of_row[order].tolist()
    assert all(m.frames is None for m in matches)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10**6), top=st.integers(1, 12), least=st.sampled_from([0.0, 0.8]))
def test_the_same_persons_are_found(tmp_path_factory, seed, top, least) -> None:
    """Each person is in exactly one match, and longer lists only add matches."""
    folder = tmp_path_factory.mktemp("same")
    rng = np.random.default_rng(seed)
    store, _ = write_gallery(folder / "g", rng.integers(0, 3, 3).tolist(), DIM, seed=seed)
    add_video(store, walk(seed))
    gallery, query = FolderGallery(store), unit_vectors(rng, 1, DIM)[0]
    wanted = SearchFilter(min_score=least)
    every = gallery.search(query, None, wanted=wanted, per_image=False, every_frame=True)
    grouped = gallery.search(query, None, wanted=wanted, per_image=False)
    assert sum(m.frames or 1 for m in grouped) == len(every)
    assert {(m.image, m.box) for m in grouped} <= {(m.image, m.box) for m in every}
    images = [m for m in every if m.frame is None]
    assert [(m.image, m.sim) for m in grouped if m.frame is None] == [
        (m.image, m.sim) for m in images
    ]
    assert gallery.search(query, top, wanted=wanted, per_image=False) == grouped[:top]
    assert [m.sim for m in grouped] == sorted((m.sim for m in grouped), reverse=True)


def test_filters_limit_the_frames(tmp_path) -> None:
    """Of a tracklet, only the frames that may be found are shown; its similarity stays."""
    store, _ = write_gallery(tmp_path / "g", [], DIM)
    with store.writing():
        store.ensure_writers(1)
    timed = [(t, *rest) for t, *rest in frames_of(0, 1)]
    add_video(store, timed, camera="gate", time=None)
    gallery = FolderGallery(store)
    gallery.images.times[:] = 1000 + gallery.images.offsets
    (first, *_) = gallery.search(like(0, 99))
    wanted = SearchFilter(since=1002, until=1004)
    (later, other) = gallery.search(like(0, 99), wanted=wanted)
    assert (later.first, later.last, later.frames) == (2, 4, 3) and later.frame == 20
    assert later.sim == first.sim and other.frames == 3
    (later, _) = gallery.search(like(0, 99), skip=[ImageKey(0)])  # the frame of the query
    assert (later.first, later.frames) == (1, 5)
    assert gallery.search(like(0, 99), skip=[tmp_path / "images" / "v.mp4"]) == []
    assert gallery.search(like(0, 99), wanted=SearchFilter(cameras=frozenset({"hall"}))) == []
    high = gallery.search(like(0, 99), wanted=SearchFilter(min_score=0.875))
    assert [(m.frames, m.last) for m in high] == [(2, 1), (1, 0)]


def test_approximate_search_finds_the_same(tmp_path, monkeypatch) -> None:
    pytest.importorskip("faiss", reason="the approximate index needs FAISS")
    monkeypatch.setattr("person_search.search.approximate.MOST_VISITED", 1.0)
    store, feats = write_gallery(tmp_path / "g", [2] * 100, DIM)
    for name in ("v.mp4", "w.mp4"):
        add_video(store, frames_of(0, 1, 2), name)
    with store.writing():
        build_index(store.folder, store.manifest.segments, FolderGallery(store).vectors, 1.0)
    add_video(store, frames_of(3, 4), "later.mp4")
    gallery = FolderGallery(store)
    for query in (like(0, 99), like(4, 99), feats[7]):
        for top in (1, 5, None):
            exact = gallery.search(query, top, method="exact")
            found = gallery.search(query, top, method="approximate")
            assert [m.sim for m in found] == pytest.approx([m.sim for m in exact], abs=1e-6)
            assert [replace(m, sim=0) for m in found] == [replace(m, sim=0) for m in exact]
    assert exact[0].frames is None and sum(m.frames is not None for m in exact) == 8


def test_videos_without_persons_and_nothing_else(tmp_path) -> None:
    store, _ = write_gallery(tmp_path / "g", [1], DIM)
    add_video(store, [(t, [], []) for t in range(3)])
    gallery = FolderGallery(store)
    assert [m.frames for m in gallery.search(like(0, 0))] == [None]
    assert gallery.search(like(0, 0), wanted=SearchFilter(cameras=frozenset({"x"}))) == []
    assert len(gallery.tracklets) == 0
    store, _ = write_gallery(tmp_path / "h", [0], DIM)
    add_video(store, frames_of(0, seconds=1))
    (only,) = FolderGallery(store).search(like(0, 0))
    assert (only.frames, only.first, only.last, only.describe_span()) == (1, 0, 0, "")


def test_forgetting_a_match_deletes_its_whole_tracklet(store) -> None:
    gallery, query = FolderGallery(store), like(0, 99)
    first, *others = gallery.search(query, None)
    late = gallery.search(query, 1, wanted=SearchFilter(min_score=0.85))[0]
    assert (first.frames, late.frames) == (6, 3), "a filter shows some of its frames"
    rows = gallery.tracklets.rows_of(gallery.tracklets.numbers[gallery.image_of_row == 3][0])
    report = forget(store, matches=[late.to_json()])
    assert (report.images, report.persons) == (0, 6)
    after = FolderGallery(store).search(query, None)
    assert [(m.path, m.box, m.frames) for m in after] == [(m.path, m.box, m.frames) for m in others]
    everything = b"".join(p.read_bytes() for p in store.folder.rglob("*") if p.is_file())
    vectors = take_rows(gallery.vectors, rows)
    assert not any(vector.tobytes() in everything for vector in vectors)
    with pytest.raises(GalleryError, match="has no person at .* nothing was deleted"):
        forget(store, matches=[late.to_json()])
    frame = FolderGallery(store).search(like(1, 99), 1, every_frame=True)[0]
    assert forget(store, matches=[frame.to_json()]).persons == 1, "without tracklets: one frame"


# ---- saved ---------------------------------------------------------------------------------------


def numbers(store: FolderStore) -> list[int]:
    return FolderGallery(store).tracklets.numbers.tolist()


def saved(store: FolderStore) -> Path:
    with store.writing():
        FolderGallery(store).save_tracklets()
    return store.folder / rule.NUMBERS_FILE


def grouped_again(monkeypatch) -> list[int]:
    """Returns a list that grows by the number of persons whenever a video is grouped."""
    sizes: list[int] = []
    original = rule.group_frames
    monkeypatch.setattr(
        rule, "group_frames", lambda *args: sizes.append(len(args[2])) or original(*args)
    )
    return sizes


def test_saved_numbers_do_not_change_the_result(store, monkeypatch) -> None:
    """After more frames, another version of a video, and a removal: as without the file."""
    path, sizes = saved(store), grouped_again(monkeypatch)

    def check(expected: list[int]) -> None:
        sizes.clear()
        with_file = numbers(store)
        assert sizes == expected, "persons of the videos that were grouped again"
        kept = path.rename(path.with_suffix(".aside"))
        assert numbers(store) == with_file
        kept.rename(path)

    check([])
    later = [(6 + t, [box(40)], [like(0, 77 + t)]) for t in range(2)]
    add_video(store, later, segments=("0002",))
    check([14])  # of v.mp4
    path = saved(store)
    check([])
    with store.writing() as run, store.writer("0001", durable=False) as writer:
        writer.append(entry("w.mp4", run, removed=True))
    check([])  # only v.mp4 is left
    add_video(store, frames_of(1, seconds=4), "w.mp4")
    check([4])
    with store.writing() as run, store.writer("0002", durable=False) as writer:
        feats = np.array([like(5, 1)])
        replaced = entry("v.mp4", run, frame=0, offset=0.0)
        writer.append(replaced, np.array([box(0)]), np.array([0.5]), feats)
    check([13, 4])  # a frame of v.mp4 was replaced


def test_compaction_saves_the_numbers_of_the_new_rows(store, monkeypatch) -> None:
    path = saved(store)
    before = FolderGallery(store).search(like(0, 99), None)
    with store.writing() as run, store.writer("0001", durable=False) as writer:
        writer.append(entry("p0.png", run, removed=True))
    compact(store)
    sizes = grouped_again(monkeypatch)
    after = FolderGallery(store).search(like(0, 99), None)
    assert path.exists() and not sizes, "saved by the compaction"
    key = [(m.path, m.frame, m.frames, m.box, m.sim) for m in before if m.frame is not None]
    assert key == [(m.path, m.frame, m.frames, m.box, m.sim) for m in after if m.frame is not None]


@pytest.mark.parametrize("content", [b"", b"not a zip file", None])
def test_a_damaged_file_is_computed_again(store, content, caplog) -> None:
    expected = numbers(store)
    path = saved(store)
    path.write_bytes(path.read_bytes()[:200] if content is None else content)
    assert numbers(store) == expected
    assert "is damaged" in caplog.text and "computed again" in caplog.text


def test_numbers_of_another_rule_are_not_used(store, monkeypatch) -> None:
    expected = numbers(store)
    saved(store)
    monkeypatch.setattr(rule, "RULE", rule.RULE + 1)
    sizes = grouped_again(monkeypatch)
    assert numbers(store) == expected and sizes == [12, 3]


def test_a_gallery_without_videos_has_no_file(tmp_path) -> None:
    store, _ = write_gallery(tmp_path / "g", [2], DIM)
    assert not saved(store).exists()


# ---- in words ------------------------------------------------------------------------------------


def test_tracklet_as_json_and_in_words() -> None:
    match = Match(1, "a.mp4", (0, 0, 1, 1), 0.9, 0.5, frame=3, offset=61.0, frames=7, first=59.96,
                  last=125.0)  # fmt: skip
    assert json.loads(json.dumps(match.to_json()))["tracklet"] == {
        "first": 59.96, "last": 125.0, "frames": 7,
    }  # fmt: skip
    assert match.describe_span() == "1:00.0 to 2:05.0, 7 frames"
    alone = Match(1, "a.mp4", (0, 0, 1, 1), 0.9, 0.5, frame=3, offset=61.0)
    assert "tracklet" not in alone.to_json() and alone.describe_span() == ""
