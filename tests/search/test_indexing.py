# SPDX-License-Identifier: Apache-2.0
"""From files to a gallery: new, changed, unreadable and vanished files, videos, and kills."""

import os
import shutil
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from color_model import ColorModel, paint
from detectron2.utils import comm
from galleries import write_video
from image_bomb import claimed_png
from PIL import Image

from person_search.engine import launch
from person_search.search import (
    FolderGallery,
    FolderStore,
    Gallery,
    IndexOptions,
    OriginRules,
    PersonEmbedder,
    find_sources,
    index_images,
    verify,
)
from person_search.search.errors import GalleryLockedError, OtherModelError
from person_search.search.folder_store import live_entries
from person_search.search.indexing import in_order, read_ahead
from person_search.search.segment import SegmentWriter

RED, GREEN, BLUE = (250, 0, 0), (0, 250, 0), (0, 0, 250)


def make_embedder(thresh: float = 0.5) -> PersonEmbedder:
    return PersonEmbedder(
        ColorModel(), image_format="RGB", min_size=80, max_size=100, score_thresh=thresh
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Images red, green, blue; each has two persons of that color."""
    (tmp_path / "images").mkdir()
    for name, color in (("a", RED), ("b", GREEN), ("c", BLUE)):
        paint(tmp_path / "images" / f"{name}.png", {(0, 0, 100, 80): color})
    return tmp_path / "images"


def index(folder: Path, gallery: str = "g", embedder: PersonEmbedder | None = None, **options):
    listing = find_sources([folder], recursive=True)
    return index_images(
        embedder or make_embedder(),
        folder.parent / gallery,
        listing,
        IndexOptions(**options),
        False,
    )


def contents(gallery: Path) -> list[tuple]:
    """Everything that counts, without run numbers and places."""
    store = FolderStore(gallery)
    opened = FolderGallery(store)
    found = []
    live = live_entries(store.read_segments())
    for entries, vectors, boxes in zip(live, opened.vectors, opened.boxes, strict=True):
        for e in entries:
            rows = slice(e.first, e.first + e.rows)
            found.append((e.path, e.frame or 0, e.size, e.time, e.camera, e.width, e.error, e.crc,
                          vectors[rows].tolist(), boxes[rows].tolist()))  # fmt: skip
    return sorted(found)


def best(folder: Path, color: np.ndarray) -> str:
    return Gallery.open(folder.parent / "g").search(color, 1)[0].path


def test_index_and_find(folder) -> None:
    report = index(folder)
    assert (report.images, report.persons, report.unchanged) == (3, 6, 0)
    for name, color in (("a", [1, 0, 0]), ("b", [0, 1, 0]), ("c", [0, 0, 1])):
        assert best(folder, np.array(color)) == str(folder / f"{name}.png")
    assert verify(FolderStore(folder.parent / "g")) == []
    scene = Gallery.open(folder.parent / "g")
    assert scene.read_image(scene.search(np.array([1.0, 0, 0]), 1)[0].image)[0, 0].tolist() == [
        250,
        0,
        0,
    ]


def test_only_what_is_new_or_changed_is_read(folder) -> None:
    index(folder)
    paint(folder / "d.png", {(0, 0, 50, 80): (250, 0, 250), (50, 0, 100, 80): (0, 0, 250)})
    paint(folder / "a.png", {(0, 0, 100, 80): (250, 250, 0)})
    os.utime(folder / "a.png", ns=(1, 1))
    report = index(folder)
    assert (report.images, report.unchanged) == (2, 2)
    assert report.color_details == [0.0], "of the image that is not uniform"
    gallery = Gallery.open(folder.parent / "g")
    assert len(gallery.images) == 4 and len(gallery) == 8
    assert gallery.search(np.array([1.0, 0, 0]), 4)[0].sim < 0.8, "the red image is gone"
    assert index(folder).images == 0


def test_files_that_are_gone(folder) -> None:
    index(folder)
    (folder / "b.png").unlink()
    assert index(folder).removed == 0
    assert index(folder, prune=True).removed == 1
    gallery = Gallery.open(folder.parent / "g")
    assert sorted(Path(p).name for p in gallery.images.paths) == ["a.png", "c.png"]


def test_pruning_removes_replaced_files_but_not_unreachable_ones(folder, monkeypatch) -> None:
    index(folder)
    (folder / "b.png").unlink()
    (folder / "b.png").mkdir()
    assert index(folder, prune=True).removed == 1
    (folder / "sub").mkdir()
    shutil.copy(folder / "a.png", folder / "sub" / "d.png")
    index(folder)
    listing = find_sources([folder])  # as if the subfolder were unreadable
    reach = Path.stat

    def stat(path: Path, **options):
        if path.parent.name == "sub":
            raise PermissionError(13, "Permission denied", str(path))
        return reach(path, **options)

    monkeypatch.setattr(Path, "stat", stat)
    options = IndexOptions(prune=True)
    assert index_images(make_embedder(), folder.parent / "g", listing, options).removed == 0


def bad_files(folder: Path) -> dict[str, str]:
    """Writes files that cannot be read; name -> part of the message."""
    (folder / "empty.png").write_bytes(b"")
    (folder / "text.jpg").write_text("no image")
    whole = (folder / "a.png").read_bytes()
    (folder / "cut.png").write_bytes(whole[: len(whole) // 2])
    (folder / "bomb.png").write_bytes(claimed_png(20_000, 10_000))
    (folder / "no_video.mp4").write_text("no video")
    return {"empty.png": "cannot", "text.jpg": "cannot", "cut.png": "cannot",
            "bomb.png": "pixels", "no_video.mp4": "cannot read the video"}  # fmt: skip


def test_unreadable_files_are_named_remembered_and_read_again_when_they_change(folder) -> None:
    bad = bad_files(folder)
    report = index(folder)
    assert report.images == 3
    assert {Path(path).name for path in report.failed} == set(bad)
    for path, reason in report.failed.items():
        assert bad[Path(path).name] in reason
    again = index(folder)
    assert (again.images, again.failed, again.unchanged) == (0, {}, 8)
    assert len(Gallery.open(folder.parent / "g").failed) == len(bad)
    assert len(index(folder, retry=True).failed) == len(bad)
    shutil.copy(folder / "a.png", folder / "text.jpg")
    repaired = index(folder)
    assert (repaired.images, repaired.failed) == (1, {})


def test_unusual_images(folder) -> None:
    Image.new("CMYK", (100, 80), (0, 255, 255, 0)).save(folder / "cmyk.jpg")
    Image.fromarray(np.full((80, 100), 40_000, np.uint16)).save(folder / "deep.png")
    turned = Image.fromarray(np.zeros((80, 100, 3), np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown a quarter turn to the right
    turned.save(folder / "turned.jpg", exif=exif)
    report = index(folder)
    assert report.images == 6 and not report.failed
    gallery = Gallery.open(folder.parent / "g")
    names = [Path(path).name for path in gallery.images.paths]
    first = gallery.image_of_row.tolist().index(names.index("turned.jpg"))
    assert gallery.boxes[0][first, :4].tolist() == [0, 0, 40, 100], "80 x 100 upright"
    assert Path(gallery.search(np.array([1.0, 0, 0]), 2)[1].path).name == "cmyk.jpg"


def test_video(folder) -> None:
    write_video(folder / "v.mp4")
    options = {"every": 1.0, "origins": OriginRules(camera="gate", time=1000.0)}
    report = index(folder, **options)
    assert report.images == 6
    gallery = Gallery.open(folder.parent / "g")
    matches = gallery.search(np.array([0.58, 0.58, 0.58]), 9, every_frame=True)
    frames = [m for m in matches if m.path.endswith("v.mp4")]
    assert sorted((m.frame, m.offset, m.time, m.camera) for m in frames) == [
        (0, 0.0, 1000.0, "gate"), (10, 1.0, 1001.0, "gate"), (20, 2.0, 1002.0, "gate"),
    ]  # fmt: skip
    late = next(m for m in frames if m.frame == 20)
    assert abs(gallery.read_image(late.image).mean() - 160) < 4
    assert index(folder, **options).images == 0
    finer = index(folder, **{**options, "every": 0.5})
    assert finer.images == 3, "only the frames between"
    write_video(folder / "v.mp4", 12)
    assert index(folder, **options).images == 2
    frames = Gallery.open(folder.parent / "g").images.frames
    assert sorted(frames[frames >= 0]) == [0, 10], "the frames of the old video are gone"


def test_video_that_stops_in_the_middle(folder) -> None:
    whole = write_video(folder / "v.avi").read_bytes()
    (folder / "v.avi").write_bytes(whole[: len(whole) // 2])
    report = index(folder)
    assert report.images > 3 and "stops after" in report.failed[str(folder / "v.avi")]
    assert index(folder).images == 0


def test_another_model_or_threshold_is_refused(folder) -> None:
    index(folder)
    model = ColorModel()
    model.extra = torch.nn.Linear(1, 1)
    other = PersonEmbedder(model, image_format="RGB", min_size=80, max_size=100)
    with pytest.raises(OtherModelError, match="the weights"):
        index(folder, embedder=other)
    with pytest.raises(OtherModelError, match="SCORE_THRESH .0.5, here 0.2"):
        index(folder, embedder=make_embedder(0.2))


def test_two_runs_at_once(folder) -> None:
    index(folder)
    with FolderStore(folder.parent / "g").writing():
        with pytest.raises(GalleryLockedError, match="is being written by process"):
            index(folder)
    assert index(folder).unchanged == 3


def test_defects_of_the_model_are_not_taken_for_bad_images(folder) -> None:
    class Broken(ColorModel):
        def forward(self, batched_inputs):
            raise ValueError("a defect")

    broken = PersonEmbedder(Broken(), image_format="RGB", min_size=80, max_size=100)
    with pytest.raises(ValueError, match="a defect"):
        index(folder, embedder=broken)
    with pytest.raises(OtherModelError):  # another class, but the lock is free again
        index(folder)


@pytest.mark.parametrize("life", [0.01, 0.06, 0.12])
def test_killed_runs_end_as_if_nothing_had_happened(life, tmp_path) -> None:
    """SIGKILL at arbitrary moments, then a last run; a child per run, so that locks are real."""
    folder = tmp_path / "images"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for i in range(12):
        paint(folder / f"{i:02d}.png", {(0, 0, 100, 80): tuple(rng.integers(0, 255, 3).tolist())})
    write_video(folder / "v.avi")
    embedder = make_embedder()
    index(folder, "whole", embedder, every=0.5)
    for repeat in range(3):
        child = os.fork()
        if child == 0:
            index(folder, "killed", embedder, every=0.5)
            os._exit(0)
        time.sleep(life * (1 + repeat))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        if (tmp_path / "killed" / "gallery.json").exists():
            Gallery.open(tmp_path / "killed")  # readable in any state
    index(folder, "killed", embedder, every=0.5)
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")
    assert verify(FolderStore(tmp_path / "killed")) == []


def index_until_killed(folder: Path) -> None:
    """One of two processes; the second is killed while it writes, and the first waits for that."""
    write, met, count = SegmentWriter.append, dist.distributed_c10d._get_default_store(), 0

    def append(self, *args):
        nonlocal count
        count += 1
        if comm.get_rank() == 0:
            met.wait(["killed"])
        elif count == 20:  # of these, 16 are on disk
            met.set("killed", "")
            os.kill(os.getpid(), signal.SIGKILL)
        return write(self, *args)

    SegmentWriter.append = append  # type: ignore[method-assign]
    index(folder)


def test_one_of_two_processes_is_killed(tmp_path, capsys) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    for i in range(96):  # the first process takes at most 56 ahead
        paint(folder / f"{i:02d}.png", {(0, 0, 100, 80): (2 * i, 90, 40)})
    with pytest.raises(SystemExit) as end:
        launch(index_until_killed, num_gpus=0, num_processes=2, start_method="fork", args=(folder,))
    assert end.value.code == 128 + signal.SIGKILL
    said = capsys.readouterr().err
    assert "ended by SIGKILL" in said and "Start again to continue" in said
    before = len(list(FolderStore(tmp_path / "g").entries()))
    assert 16 <= before < 96 and index(folder).images == 96 - before
    assert sorted(e.path for e in FolderStore(tmp_path / "g").entries()) == [
        f"{i:02d}.png" for i in range(96)
    ]


def test_reading_ahead_keeps_order_and_hands_errors_over() -> None:
    assert list(read_ahead(range(50), 3)) == list(range(50))

    def failing():
        yield 1
        raise KeyError("source")

    items = read_ahead(failing())
    assert next(items) == 1
    with pytest.raises(KeyError, match="source"):
        next(items)
    endless = read_ahead(iter(int, 1))
    assert next(endless) == 0
    endless.close()  # joins the thread


def test_jobs_end_in_their_order() -> None:
    """The first job waits for the third; all results before an error come out."""
    third = threading.Event()

    def failing():
        raise KeyError("job")

    jobs = [lambda: third.wait(60), lambda: 2, lambda: third.set() or 3, failing, lambda: 5]
    with ThreadPoolExecutor(2) as pool:
        results = in_order(jobs, pool, ahead=4)
        assert [next(results) for _ in range(3)] == [True, 2, 3]
        with pytest.raises(KeyError, match="job"):
            next(results)
        assert list(in_order([lambda i=i: i for i in range(50)], pool, 3)) == list(range(50))


def test_several_threads_give_the_same_gallery(folder, monkeypatch) -> None:
    """A model that allows it runs in several threads, with the threads of PyTorch divided."""
    seen = []

    class Concurrent(ColorModel):
        thread_safe_inference = True

        def forward(self, batched_inputs):
            seen.append((threading.current_thread().name, torch.get_num_threads()))
            return super().forward(batched_inputs)

    before = torch.get_num_threads()
    torch.set_num_threads(4)
    try:
        embedder = PersonEmbedder(Concurrent(), image_format="RGB", min_size=80, max_size=100)
        index(folder, "many", embedder)
        assert torch.get_num_threads() == 4
    finally:
        torch.set_num_threads(before)
    index(folder, "one")
    assert contents(folder.parent / "many") == contents(folder.parent / "one")
    assert {threads for _, threads in seen} == {1}
