# SPDX-License-Identifier: Apache-2.0
"""Synthetic data on disk: format, determinism, quirks, reuse, and the readers on it."""

import dataclasses
import hashlib
import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from programs import run_program_file
from scipy.io import loadmat

from person_search.data import load_cuhk_sysu, load_cuhk_sysu_protocol, load_prw, load_prw_protocol
from person_search.data.synthetic import SyntheticConfig, write_cuhk_sysu, write_prw
from person_search.data.synthetic.prw import frame_size, raw_ids
from person_search.data.synthetic.store import MANIFEST

PROGRAM = "tools/draw_synthetic.py"
TINY = SyntheticConfig(
    width=128, height=96, train_images=8, test_images=10, train_ids=4, test_ids=4,
    people=(2, 4), gallery_sizes=(5, 8, 50), cameras=3,
)  # fmt: skip


def digest(root: Path) -> dict[str, str]:
    files = (p for p in root.rglob("*") if p.is_file())
    return {str(p.relative_to(root)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


@pytest.fixture(scope="module")
def cuhk(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("synthetic") / "CUHK-SYSU"
    assert write_cuhk_sysu(root, TINY, progress=False)
    return root


@pytest.fixture(scope="module")
def prw(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("synthetic") / "PRW"
    assert write_prw(root, TINY, progress=False)
    return root


def protocol(root: Path, size: int) -> np.ndarray:
    path = root / f"annotation/test/train_test/TestG{size}.mat"
    return loadmat(path)[f"TestG{size}"].squeeze()


def gallery_rows(item) -> list[tuple[str, np.ndarray, np.ndarray]]:
    return [(str(name[0]), box, hard) for name, box, hard in item["Gallery"].squeeze()]


# -- CUHK-SYSU ------------------------------------------------------------------------------------


def test_cuhk_tree(cuhk):
    names = {p.relative_to(cuhk).as_posix() for p in cuhk.rglob("*.mat")}
    assert names == {
        "annotation/Images.mat",
        "annotation/pool.mat",
        "annotation/test/train_test/Train.mat",
        "annotation/test/train_test/TestG5.mat",
        "annotation/test/train_test/TestG8.mat",  # 50 exceeds the pool
        "annotation/test/subset/Occlusion.mat",
        "annotation/test/subset/Resolution.mat",
    }
    images = sorted((cuhk / "Image/SSM").iterdir())
    assert len(images) == 18
    assert all(cv2.imread(str(p)).shape == (96, 128, 3) for p in images)


def test_cuhk_values_have_the_types_of_the_real_files(cuhk):
    images = loadmat(cuhk / "annotation/Images.mat")["Img"]
    assert images.shape == (1, 18) and images.dtype.names == ("imname", "nAppear", "box")
    name, count, boxes = images[0, 0]
    assert name.shape == (1,) and name.dtype.kind == "U"
    assert boxes.dtype.names == ("idlocate", "ishard") and boxes.shape == (1, int(count[0, 0]))
    box, hard = boxes[0, 0]
    assert box.shape == (1, 4) and box.dtype == np.uint8
    assert hard.shape == (1, 1) and hard.dtype == np.uint8
    pool = loadmat(cuhk / "annotation/pool.mat")["pool"]
    assert pool.shape == (10, 1) and pool[0, 0].shape == (1,)
    train = loadmat(cuhk / "annotation/test/train_test/Train.mat")["Train"]
    assert train.shape == (4, 1) and train[0, 0].shape == (1, 1)
    assert train[0, 0].dtype.names == ("idname", "nAppear", "scene")
    item = protocol(cuhk, 8)[0]
    assert item["Query"].shape == (1, 1)
    assert item["Query"].dtype.names == ("imname", "idlocate", "ishard", "idname")
    assert item["Gallery"].shape == (1, 8)
    empty = [(box, hard) for _, box, hard in gallery_rows(item) if box.size == 0]
    assert empty
    for box, hard in empty:
        assert box.shape == hard.shape == (1, 0) and box.dtype == np.float64


@pytest.mark.parametrize("size", [5, 8])
def test_galleries_list_positives_first_and_no_hidden_positive(cuhk, size):
    records = {Path(r["file_name"]).name: r for r in load_cuhk_sysu(cuhk, "test")}
    for query_id, item in enumerate(protocol(cuhk, size)):
        rows = gallery_rows(item)
        assert len(rows) == size
        filled = [box.size > 0 for _, box, _ in rows]
        assert filled == sorted(filled, reverse=True)
        for name, box, _ in rows:
            pids = [a["person_id"] for a in records[name]["annotations"]]
            if box.size == 0:
                assert query_id not in pids


def test_query_of_all_sizes_is_the_same(cuhk):
    first, second = (
        [(str(q["Query"][0, 0][0][0]), q["Query"][0, 0][1].tolist()) for q in protocol(cuhk, size)]
        for size in (5, 8)
    )
    assert first == second and len(first) == 4


def test_cuhk_quirks_are_there_on_purpose(cuhk):
    images = loadmat(cuhk / "annotation/Images.mat")["Img"].squeeze()
    flat = sum(int(box[0, 2] == 0) for item in images for box in item["box"][0]["idlocate"])
    assert flat == 2
    listed_twice = own_box = own_other = 0
    for item in protocol(cuhk, 8):
        head = item["Query"][0, 0]
        query_image, query_box = str(head["imname"][0]), head["idlocate"]
        positives = [(n, b) for n, b, _ in gallery_rows(item) if b.size]
        names = [name for name, _ in positives]
        listed_twice += len(names) > len(set(names))
        for name, box in positives:
            if name == query_image:
                own_box += np.array_equal(box, query_box)
                own_other += not np.array_equal(box, query_box)
    assert listed_twice >= 1 and own_box == 1 and own_other == 1


def test_no_quirks_without_the_option(tmp_path):
    cfg = dataclasses.replace(TINY, quirks=False)
    write_cuhk_sysu(tmp_path / "set", cfg, progress=False)
    for record in load_cuhk_sysu(tmp_path / "set", "test"):
        pids = [a["person_id"] for a in record["annotations"] if a["person_id"] >= 0]
        assert pids and len(pids) == len(set(pids))
    for item in protocol(tmp_path / "set", 8):
        names = [name for name, _, _ in gallery_rows(item)]
        assert len(set(names)) == 8
        assert str(item["Query"][0, 0]["imname"][0]) not in names


def test_reader_returns_what_was_drawn(tmp_path, monkeypatch):
    """Records of both splits equal the drawn persons, box by box."""
    from person_search.data.synthetic import cuhk_sysu as writer

    drawn = {}

    def remember(specs, *args):
        people = original(specs, *args)
        drawn.update({s.file_name: p for s, p in zip(specs, people, strict=True)})
        return people

    original = writer.draw_images
    monkeypatch.setattr(writer, "draw_images", remember)
    write_cuhk_sysu(tmp_path / "set", TINY, progress=False)
    seen = 0
    for split in ("train", "test"):
        for record in load_cuhk_sysu(tmp_path / "set", split):
            expected = [
                (max(p.box[0], 1), max(p.box[1], 1), p.box[2], p.box[3], p.person_id)
                for p in drawn[Path(record["file_name"]).name]
            ]
            found = [(*a["bbox"], a["person_id"]) for a in record["annotations"]]
            assert sorted(found) == sorted(expected)
            assert (record["width"], record["height"]) == (128, 96)
            seen += len(found)
    assert seen == sum(map(len, drawn.values()))


def test_protocol_reader_agrees_with_the_gallery(tmp_path):
    cfg = dataclasses.replace(TINY, test_images=52, people=(1, 2), quirks=False)
    write_cuhk_sysu(tmp_path / "set", cfg, progress=False)
    read = load_cuhk_sysu_protocol(tmp_path / "set", "g50")
    assert len(read.queries) == 4 and read.gallery.shape == (4, 50)
    counts = np.bincount(read.positive_query, minlength=4)
    expected = [sum(b.size > 0 for _, b, _ in gallery_rows(i))
                for i in protocol(tmp_path / "set", 50)]  # fmt: skip
    assert counts.tolist() == expected and min(expected) >= 1


def test_attributes_describe_every_identity(cuhk):
    content = json.loads((cuhk / "attributes.json").read_text())
    assert sorted(content["train"]) == sorted(content["test"]) == ["p1", "p2", "p3", "p4"]
    person = content["test"]["p1"]
    assert person["bottom_color"] in person["caption"]
    queries = protocol(cuhk, 5)
    assert [str(q["Query"][0, 0]["idname"][0]) for q in queries] == ["p1", "p2", "p3", "p4"]


# -- PRW ------------------------------------------------------------------------------------------


def test_prw_files_have_the_types_of_the_real_ones(prw):
    train = loadmat(prw / "frame_train.mat")["img_index_train"]
    test = loadmat(prw / "frame_test.mat")["img_index_test"]
    assert train.shape == (8, 1) and test.shape == (10, 1)
    variables = set()
    for cell in (*train[:, 0], *test[:, 0]):
        content = loadmat(prw / "annotations" / f"{cell[0]}.jpg.mat")
        (variable,) = (key for key in content if not key.startswith("__"))
        variables.add(variable)
        assert content[variable].dtype == np.float64 and content[variable].shape[1] == 5
        size = frame_size(TINY, int(str(cell[0])[1]))
        assert cv2.imread(str(prw / "frames" / f"{cell[0]}.jpg")).shape[1::-1] == size
    assert variables == {"box_new", "anno_file", "anno_previous"}
    assert loadmat(prw / "ID_train.mat")["ID_train"].shape == (1, 4)
    assert loadmat(prw / "ID_test.mat")["ID_test2"].shape == (1, 4)


def test_prw_queries_one_per_identity_and_camera(prw):
    lines = (prw / "query_info.txt").read_bytes().split(b"\r\n")
    assert lines.pop() == b""
    queries = [line.decode().split(" ") for line in lines]
    assert all(len(q) == 6 and len(q[1].split(".")[1]) == 4 for q in queries)
    assert len({(q[0], q[5][:2]) for q in queries}) == len(queries)
    by_id = {}
    for q in queries:
        by_id.setdefault(int(q[0]), set()).add(q[5][:2])
    assert sorted(by_id) == loadmat(prw / "ID_test.mat")["ID_test2"].squeeze().tolist()
    assert all(len(cameras) >= 2 for cameras in by_id.values())
    assert any(float(q[1]) < 0 for q in queries)


def test_prw_reader_accepts_the_set(prw):
    records = {split: load_prw(prw, split) for split in ("train", "test")}
    pids = {s: {a["person_id"] for r in records[s] for a in r["annotations"]} for s in records}
    assert pids["train"] == {-1, 0, 1, 2, 3}
    for record in records["train"] + records["test"]:
        for box in (a["bbox"] for a in record["annotations"]):
            assert 0 <= box[0] < box[2] <= record["width"]
            assert 0 <= box[1] < box[3] <= record["height"]
    read = load_prw_protocol(prw, "all")
    assert set(read.positive_query.tolist()) == set(range(len(read.queries)))


@pytest.mark.parametrize("counts", [(2, 2), (3, 3), (12, 9), (483, 450)])
def test_raw_ids_are_disjoint_and_have_gaps(counts):
    train, test = raw_ids(*counts)
    assert (len(train), len(test)) == counts
    assert not set(train) & set(test) and train == sorted(train) and test == sorted(test)
    if min(counts) >= 3:
        assert min(test) < sorted(train)[-2] and max(train) > min(test)


# -- all or nothing -------------------------------------------------------------------------------


def test_same_options_give_same_bytes_with_any_number_of_processes(cuhk, prw, tmp_path):
    write_cuhk_sysu(tmp_path / "CUHK-SYSU", TINY, workers=2, progress=False)
    write_prw(tmp_path / "PRW", TINY, workers=1, progress=False)
    original = {n: h for n, h in digest(cuhk).items() if not n.startswith(".")}
    assert digest(tmp_path / "CUHK-SYSU") == original
    original = {n: h for n, h in digest(prw).items() if not n.startswith(".")}
    assert digest(tmp_path / "PRW") == original


def test_another_seed_gives_other_images(cuhk, tmp_path):
    write_cuhk_sysu(tmp_path / "set", dataclasses.replace(TINY, seed=1), progress=False)
    ours, theirs = digest(tmp_path / "set"), digest(cuhk)
    assert all(ours[name] != theirs[name] for name in ours if name.endswith(".jpg"))


def test_a_complete_set_is_reused_and_a_damaged_one_rewritten(tmp_path):
    root = tmp_path / "set"
    assert write_cuhk_sysu(root, TINY, progress=False)
    before = digest(root)
    assert not write_cuhk_sysu(root, TINY, progress=False)
    (root / "Image/SSM/s1.jpg").write_bytes(b"half")
    assert write_cuhk_sysu(root, TINY, progress=False)
    assert digest(root) == before
    (root / "annotation/pool.mat").unlink()
    assert write_cuhk_sysu(root, TINY, progress=False)
    assert digest(root) == before
    other = dataclasses.replace(TINY, seed=5)
    assert write_cuhk_sysu(root, other, progress=False)  # other options
    assert json.loads((root / MANIFEST).read_text())["options"]["seed"] == 5


def test_an_interrupted_run_leaves_nothing_that_looks_complete(tmp_path, monkeypatch):
    from person_search.data.synthetic import store

    original, calls = store.render_scene, []

    def fail_later(spec):
        calls.append(spec)
        if len(calls) > 3:
            raise KeyboardInterrupt
        return original(spec)

    monkeypatch.setattr(store, "render_scene", fail_later)
    root = tmp_path / "set"
    with pytest.raises(KeyboardInterrupt):
        write_cuhk_sysu(root, TINY, progress=False)
    assert not root.exists()
    monkeypatch.setattr(store, "render_scene", original)
    assert write_cuhk_sysu(root, TINY, progress=False)
    assert [p.name for p in tmp_path.iterdir()] == ["set"]


def test_foreign_data_is_never_overwritten(tmp_path):
    (tmp_path / "set").mkdir()
    (tmp_path / "set/mine.txt").write_text("real data")
    with pytest.raises(FileExistsError, match="was not written by this generator"):
        write_cuhk_sysu(tmp_path / "set", TINY, progress=False)
    assert (tmp_path / "set/mine.txt").read_text() == "real data"


def test_smallest_set_can_be_written_and_read(tmp_path):
    cfg = SyntheticConfig(
        width=64, height=64, train_images=4, test_images=4, train_ids=2, test_ids=2,
        people=(2, 3), gallery_sizes=(2, 3), cameras=1,
    )  # fmt: skip
    write_cuhk_sysu(tmp_path / "C", cfg, progress=False)
    write_prw(tmp_path / "P", cfg, progress=False)
    assert [len(load_cuhk_sysu(tmp_path / "C", s)) for s in ("train", "test")] == [4, 4]
    assert [len(load_prw(tmp_path / "P", s)) for s in ("train", "test")] == [4, 4]


# -- command line ---------------------------------------------------------------------------------


def test_command_line(tmp_path, capsys):
    arguments = ["--root", str(tmp_path), "--format", "prw", "--size", "64", "64", "--quiet",
                 "--train-images", "4", "--test-images", "6", "--train-ids", "2",
                 "--test-ids", "2", "--people", "2", "3", "--difficulty", "hard"]  # fmt: skip
    assert run_program_file(PROGRAM, *arguments) == 0
    assert "Wrote" in capsys.readouterr().out
    assert json.loads((tmp_path / "PRW" / MANIFEST).read_text())["options"]["difficulty"] == 0.8
    assert run_program_file(PROGRAM, *arguments) == 0
    assert "already exists" in capsys.readouterr().out


def test_command_line_reports_bad_options(tmp_path, capsys):
    for value, message in (
        ("7", "difficulty is 7.0"),
        ("brutal", "'brutal' is not a number or one of easy, medium, hard"),
    ):
        arguments = ["--root", tmp_path, "--difficulty", value]
        assert run_program_file(PROGRAM, *arguments) == 2
        assert message in capsys.readouterr().err
