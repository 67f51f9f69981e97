# SPDX-License-Identifier: Apache-2.0
"""The CUHK-SYSU reader on trees in the original format, one test per quirk of the real files."""

import logging
import shutil
from pathlib import Path

import numpy as np
import pytest
from mat_trees import (
    cuhk_sysu_of_training_images,
    idlocate,
    ishard,
    small_cuhk_sysu,
    struct,
    write_cuhk_sysu,
    write_subset,
)
from scipy.io import loadmat, savemat

from person_search.data import (
    IncompleteDatasetError,
    IrregularityLog,
    load_cuhk_sysu,
    load_cuhk_sysu_protocol,
)
from person_search.data.datasets.cuhk_sysu_files import (
    IMAGES_MAT,
    POOL_MAT,
    PROTOCOL_FOLDER,
    TRAIN_MAT,
    count_train_pids,
    existing_protocols,
    reference_protocol,
)
from person_search.testing import PersonSearchDatasetTests


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return small_cuhk_sysu(tmp_path / "CUHK-SYSU")


def kinds(log: IrregularityLog) -> list[str]:
    return [item.kind for item in log]


def by_name(records: list[dict]) -> dict[str, dict]:
    return {Path(record["file_name"]).name: record for record in records}


@pytest.fixture(scope="module")
def shared_root(tmp_path_factory) -> Path:
    return small_cuhk_sysu(tmp_path_factory.mktemp("sets") / "CUHK-SYSU")


class TestCuhkSysu(PersonSearchDatasetTests):
    @pytest.fixture(autouse=True)
    def _root(self, shared_root: Path) -> None:
        self.root = shared_root

    def load(self, split):
        return load_cuhk_sysu(self.root, split)

    def load_protocols(self):
        return [load_cuhk_sysu_protocol(self.root, name) for name in ("g50", "g100")]


def test_the_writer_makes_the_types_of_the_real_files(root: Path) -> None:
    table = loadmat(root / PROTOCOL_FOLDER / "TestG100.mat")["TestG100"]
    assert table.shape == (1, 2)
    query, gallery = table[0, 0]["Query"], table[0, 0]["Gallery"]
    assert query.shape == (1, 1) and gallery.shape == (1, 3)
    assert query[0, 0]["idlocate"].dtype == np.uint8
    assert gallery[0, 0]["imname"].shape == (1,) and gallery[0, 0]["imname"].dtype.kind == "U"
    assert gallery[0, 1]["idlocate"].shape == (1, 0)
    assert gallery[0, 1]["idlocate"].dtype == np.float64


def test_train_records(root: Path) -> None:
    records = load_cuhk_sysu(root, "train")
    assert [Path(record["file_name"]).name for record in records] == ["s1.jpg", "s2.jpg", "s3.jpg"]
    first = records[0]
    assert Path(first["file_name"]).is_file()
    assert (first["image_id"], first["height"], first["width"]) == (0, 120, 300)
    assert first["cam_id"] is None and "queries" not in first
    assert [a["person_id"] for a in first["annotations"]] == [0, -1, 1]
    assert [a["is_hard"] for a in first["annotations"]] == [True, False, False]
    assert all(a["category_id"] == 0 and a["bbox_mode"] == 0 for a in first["annotations"])
    assert count_train_pids(root) == 2


def test_boxes_keep_their_one_based_numbers(root: Path) -> None:
    box = load_cuhk_sysu(root, "train")[0]["annotations"][0]["bbox"]
    assert box == [1.0, 5.0, 41.0, 85.0]


def test_sums_of_uint8_boxes_do_not_wrap(root: Path) -> None:
    # 200 + 60 is 4 in uint8
    record = by_name(load_cuhk_sysu(root, "test"))["s4.jpg"]
    assert record["annotations"][0]["bbox"] == [200.0, 5.0, 260.0, 85.0]
    assert record["queries"][0]["bbox"] == [200.0, 5.0, 260.0, 85.0]
    assert load_cuhk_sysu_protocol(root, "g100").queries[0].box == (200.0, 5.0, 260.0, 85.0)
    positives = load_cuhk_sysu_protocol(root, "g100").positive_box
    assert positives[1].tolist() == [260.0, 5.0, 290.0, 85.0]


def test_test_records_label_queries_and_their_matches(root: Path) -> None:
    records = by_name(load_cuhk_sysu(root, "test"))
    assert list(records) == ["s4.jpg", "s5.jpg", "s6.jpg", "s7.jpg"]
    pids = {name: [a["person_id"] for a in r["annotations"]] for name, r in records.items()}
    assert pids == {"s4.jpg": [0, -1], "s5.jpg": [0, 1], "s6.jpg": [1, -1], "s7.jpg": [-1]}
    queries = {name: [q["query_id"] for q in r["queries"]] for name, r in records.items()}
    assert queries == {"s4.jpg": [0], "s5.jpg": [1], "s6.jpg": [], "s7.jpg": []}


def test_protocol_keeps_the_listed_order(root: Path) -> None:
    protocol = load_cuhk_sysu_protocol(root, "g100")
    assert protocol.name == "g100"
    assert protocol.gallery.tolist() == [[1, 2, 3], [2, 3, 0]]
    assert protocol.positive_query.tolist() == [0, 1]
    assert protocol.positive_image.tolist() == [1, 2]
    assert [query.person_id for query in protocol.queries] == [0, 1]
    assert all(query.cam_id is None for query in protocol.queries)


def test_galleries_of_unequal_length_are_padded(tmp_path: Path) -> None:
    rows = [
        [("s5.jpg", (20, 5, 40, 80))],
        [("s6.jpg", (260, 5, 30, 80)), ("s7.jpg", None)],
    ]
    root = small_cuhk_sysu(tmp_path / "data", galleries={100: rows})
    assert load_cuhk_sysu_protocol(root, "g100").gallery.tolist() == [[1, -1], [2, 3]]


def test_a_match_after_a_negative_is_found(tmp_path: Path) -> None:
    rows = [
        [("s7.jpg", None), ("s5.jpg", (20, 5, 40, 80))],
        [("s6.jpg", (260, 5, 30, 80)), ("s7.jpg", None)],
    ]
    root = small_cuhk_sysu(tmp_path / "data", galleries={100: rows})
    assert load_cuhk_sysu_protocol(root, "g100").positive_image.tolist() == [1, 2]


def test_empty_idlocate_of_shape_0_0(tmp_path: Path) -> None:
    root = small_cuhk_sysu(tmp_path / "data")
    fields = ["imname", "idlocate", "ishard"]
    query = struct([*fields, "idname"], [("s4.jpg", idlocate((200, 5, 60, 80)), ishard(1), "p")])
    gallery = struct(fields, [("s7.jpg", np.zeros((0, 0)), np.zeros((0, 0)))])
    table = struct(["Query", "Gallery"], [(query, gallery)])
    savemat(root / PROTOCOL_FOLDER / "TestG50.mat", {"TestG50": table})
    assert len(load_cuhk_sysu_protocol(root, "g50").positive_query) == 0


def test_zero_size_boxes_are_dropped_and_empty_images_kept(tmp_path: Path) -> None:
    images = {
        "s1.jpg": [(1, 5, 40, 80), (9, 9, 0, 50)],
        "s2.jpg": [(9, 9, 0, 50), (9, 9, 20, 0)],
        "s3.jpg": [],
    }
    root = cuhk_sysu_of_training_images(
        tmp_path / "data", images, [[("s1.jpg", (1, 5, 40, 80))], []]
    )
    log = IrregularityLog()
    records = by_name(load_cuhk_sysu(root, "train", log))
    assert [len(record["annotations"]) for record in records.values()] == [1, 0, 0]
    assert sorted(kinds(log)) == ["no_boxes"] * 2 + ["zero_size_box"] * 3
    assert any("s2.jpg" in item.where and IMAGES_MAT in item.where for item in log)


def test_one_person_twice_in_an_image_is_kept_and_warned_of_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    train = [
        [("s1.jpg", (1, 5, 40, 80)), ("s1.jpg", (100, 5, 40, 80))],
        [("s2.jpg", (2, 5, 40, 80)), ("s2.jpg", (50, 5, 20, 90))],
    ]
    root = small_cuhk_sysu(tmp_path / "data", train=train)
    with caplog.at_level(logging.WARNING):
        records = load_cuhk_sysu(root, "train")
        load_cuhk_sysu(root, "train")
    assert [a["person_id"] for a in records[0]["annotations"]] == [0, 0, -1]
    warnings = [r.getMessage() for r in caplog.records if "twice in one image" in r.getMessage()]
    assert len(warnings) == 1 and "2 x" in warnings[0] and "s1.jpg" in warnings[0]


def test_a_box_claimed_by_two_persons_stays_with_the_first(tmp_path: Path) -> None:
    train = [[("s1.jpg", (1, 5, 40, 80))], [("s1.jpg", (1, 5, 40, 80)), ("s3.jpg", (7, 7, 30, 70))]]
    root = small_cuhk_sysu(tmp_path / "data", train=train)
    log = IrregularityLog()
    records = load_cuhk_sysu(root, "train", log)
    assert records[0]["annotations"][0]["person_id"] == 0
    assert kinds(log) == ["claimed_twice"] and "Train{2}" in log[0].where


def test_a_label_without_its_box_is_reported(tmp_path: Path) -> None:
    train = [[("s1.jpg", (1, 5, 40, 81))], [("s9.jpg", (1, 5, 40, 80))]]
    log = IrregularityLog()
    records = load_cuhk_sysu(small_cuhk_sysu(tmp_path / "data", train=train), "train", log)
    assert {a["person_id"] for r in records for a in r["annotations"]} == {-1}
    assert kinds(log) == ["unmatched_label"] * 2
    assert "s1.jpg" in log[0].detail and "Train{1}" in log[0].where


def test_equal_boxes_the_first_hit_wins(tmp_path: Path) -> None:
    images = {
        "s1.jpg": [(9, 9, 20, 50), (9, 9, 20, 50)],
    }
    root = cuhk_sysu_of_training_images(tmp_path / "data", images, [[("s1.jpg", (9, 9, 20, 50))]])
    (record,) = load_cuhk_sysu(root, "train")
    assert [a["person_id"] for a in record["annotations"]] == [0, -1]


def test_an_image_listed_twice_and_the_querys_own_image_stay(tmp_path: Path) -> None:
    rows = [
        [("s5.jpg", (20, 5, 40, 80)), ("s5.jpg", (20, 5, 40, 80)), ("s7.jpg", None)],
        [("s5.jpg", (80, 5, 40, 80)), ("s6.jpg", (260, 5, 30, 80)), ("s7.jpg", None)],
    ]
    root = small_cuhk_sysu(tmp_path / "data", galleries={100: rows})
    log = IrregularityLog()
    protocol = load_cuhk_sysu_protocol(root, "g100", log)
    assert protocol.gallery.tolist() == [[1, 1, 3], [1, 2, 3]]
    assert protocol.positive_query.tolist() == [0, 0, 1, 1]
    assert protocol.positive_image.tolist() == [1, 1, 1, 2]
    assert kinds(log) == ["listed_twice", "own_image"]
    assert "entry 1" in log[0].where and "entry 2" in log[1].where


def test_the_queries_come_from_g100_or_the_next_best(root: Path) -> None:
    folder = root / PROTOCOL_FOLDER
    assert existing_protocols(root) == ["g50", "g100"]
    assert reference_protocol(root) == "g100"
    (folder / "TestG100.mat").rename(folder / "TestG500.mat")
    assert reference_protocol(root) == "g500"
    (folder / "TestG500.mat").unlink()
    assert reference_protocol(root) == "g50"
    assert sum(len(record["queries"]) for record in load_cuhk_sysu(root, "test")) == 2
    (folder / "TestG7.mat").touch()
    assert reference_protocol(root) == "g50"


def test_an_unknown_split_or_protocol_names_those_allowed(root: Path) -> None:
    with pytest.raises(ValueError, match="'val'.*'train', 'test'"):
        load_cuhk_sysu(root, "val")
    with pytest.raises(ValueError, match="'100'.*4000"):
        load_cuhk_sysu_protocol(root, "100")


@pytest.mark.parametrize(
    ("split", "path"),
    [
        ("train", IMAGES_MAT),
        ("train", POOL_MAT),
        ("train", TRAIN_MAT),
        ("train", "Image/SSM/s2.jpg"),
        ("test", "Image/SSM/s6.jpg"),
    ],
)
def test_a_missing_file_is_named_with_the_expected_tree(root: Path, split: str, path: str) -> None:
    (root / path).unlink()
    with pytest.raises(IncompleteDatasetError) as raised:
        load_cuhk_sysu(root, split)
    message = str(raised.value)
    assert f"{root / path} does not exist" in message and "is incomplete" in message
    assert "annotation/pool.mat" in message and "DETECTRON2_DATASETS" in message


def test_many_missing_images_make_one_message(root: Path) -> None:
    shutil.rmtree(root / "Image" / "SSM")
    (root / "Image" / "SSM").mkdir()
    with pytest.raises(IncompleteDatasetError, match=r"s1\.jpg does not exist \(and 2 more"):
        load_cuhk_sysu(root, "train")


def test_a_missing_root_and_missing_protocols(root: Path, tmp_path: Path) -> None:
    with pytest.raises(IncompleteDatasetError, match="was not found.*Images.mat"):
        load_cuhk_sysu(tmp_path / "nowhere", "train")
    with pytest.raises(IncompleteDatasetError, match="TestG4000.mat does not exist"):
        load_cuhk_sysu_protocol(root, "g4000")
    for path in (root / PROTOCOL_FOLDER).glob("TestG*.mat"):
        path.unlink()
    with pytest.raises(IncompleteDatasetError, match="TestG100.mat does not exist"):
        load_cuhk_sysu(root, "test")


def test_contradictions_name_the_file_and_the_entry(tmp_path: Path) -> None:
    pool = ["s4.jpg", "s5.jpg", "s6.jpg", "s7.jpg", "s99.jpg"]
    root = small_cuhk_sysu(tmp_path / "pool", pool=pool)
    with pytest.raises(ValueError, match=r"pool\.mat: 's99\.jpg' has no entry"):
        load_cuhk_sysu(root, "test")
    root = small_cuhk_sysu(tmp_path / "twice", pool=["s4.jpg", "s4.jpg"])
    with pytest.raises(ValueError, match=r"pool\.mat.*twice"):
        load_cuhk_sysu(root, "test")

    queries = [("s4.jpg", (200, 5, 60, 80)), ("s1.jpg", (1, 5, 40, 80))]
    root = small_cuhk_sysu(tmp_path / "query", queries=queries)
    with pytest.raises(ValueError, match=r"TestG100\.mat: entry 2: .*'s1\.jpg'"):
        load_cuhk_sysu(root, "test")
    with pytest.raises(ValueError, match=r"TestG100\.mat: the image 's1\.jpg'"):
        load_cuhk_sysu_protocol(root, "g100")


def test_damaged_content_names_the_entry(root: Path) -> None:
    fields = ["imname", "idlocate", "ishard"]
    no_box = struct([*fields, "idname"], [("s4.jpg", np.zeros((1, 0)), np.zeros((1, 0)), "p")])
    gallery = struct(fields, [("s7.jpg", np.array([[1, 2, 3]]), ishard(1))])
    path = root / PROTOCOL_FOLDER / "TestG50.mat"
    savemat(path, {"TestG50": struct(["Query", "Gallery"], [(no_box, gallery)])})
    with pytest.raises(ValueError, match=r"TestG50\(1\)\.Query: the query has no box"):
        load_cuhk_sysu_protocol(root, "g50")
    query = struct([*fields, "idname"], [("s4.jpg", idlocate((1, 2, 3, 4)), ishard(1), "p")])
    savemat(path, {"TestG50": struct(["Query", "Gallery"], [(query, gallery)])})
    with pytest.raises(ValueError, match=r"TestG50\(1\)\.Gallery: a box needs 4 numbers"):
        load_cuhk_sysu_protocol(root, "g50")

    img = struct(["imname", "nAppear", "box"], [("s1.jpg", 0, np.zeros((0, 0)))] * 2)
    savemat(root / IMAGES_MAT, {"Img": img})
    with pytest.raises(ValueError, match=r"Images\.mat: the image 's1\.jpg' has two entries"):
        load_cuhk_sysu(root, "train")


def test_compressed_files_read_the_same(tmp_path: Path) -> None:
    plain = small_cuhk_sysu(tmp_path / "plain")
    packed = small_cuhk_sysu(tmp_path / "packed", compress=True)
    first, second = (load_cuhk_sysu_protocol(root, "g100") for root in (plain, packed))
    assert first.queries == second.queries
    for field in ("gallery", "positive_query", "positive_image", "positive_box"):
        assert np.array_equal(getattr(first, field), getattr(second, field)), field


def test_a_set_without_any_query(tmp_path: Path) -> None:
    root = write_cuhk_sysu(
        tmp_path / "data",
        images={"s1.jpg": [(1, 5, 40, 80)], "s2.jpg": [(1, 5, 40, 80)]},
        pool=["s2.jpg"],
        train=[[("s1.jpg", (1, 5, 40, 80))]],
        queries=[],
        galleries={100: []},
    )
    protocol = load_cuhk_sysu_protocol(root, "g100")
    assert protocol.queries == [] and protocol.gallery.shape == (0, 0)
    assert load_cuhk_sysu(root, "test")[0]["queries"] == []


S4, S5, S6 = (200, 5, 60, 80), (80, 5, 40, 80), (260, 5, 30, 80)
"""Boxes of the queries in s4 and s5, and of the second query's match in s6."""


def test_subset_queries_come_with_the_same_pass(root: Path) -> None:
    gallery = [("s6.jpg", S6), ("s7.jpg", None)]
    # the second query of g100; its match as a query; a person unknown to g100
    rows = [
        ("s5.jpg", S5, gallery),
        ("s6.jpg", S6, [("s5.jpg", S5), ("s7.jpg", None)]),
        ("s6.jpg", (30, 5, 40, 80), [("s7.jpg", (70, 5, 40, 80)), ("s4.jpg", None)]),
    ]
    write_subset(root, "Occlusion.mat", "Occlusion1", rows)
    # a query that the other subset has too, and the first of g100
    write_subset(root, "Resolution.mat", "Test_Size", [rows[2], ("s4.jpg", S4, gallery[1:])])
    occlusion = load_cuhk_sysu_protocol(root, "occlusion")
    low = load_cuhk_sysu_protocol(root, "low_resolution")
    assert [q.query_id for q in occlusion.queries] == [1, 2, 3]
    assert [q.person_id for q in occlusion.queries] == [1, 1, 3]
    assert [q.query_id for q in low.queries] == [3, 0]
    assert occlusion.gallery.shape == (3, 2) and occlusion.positive_query.tolist() == [0, 1, 2]
    attached = {
        query["query_id"]: (Path(record["file_name"]).name, query["bbox"])
        for record in load_cuhk_sysu(root, "test")
        for query in record["queries"]
    }
    assert set(attached) == {0, 1, 2, 3}
    assert attached[2] == ("s6.jpg", [260.0, 5.0, 290.0, 85.0])
    assert attached[3] == ("s6.jpg", [30.0, 5.0, 70.0, 85.0])
    # the usual protocols are as they were
    assert [q.query_id for q in load_cuhk_sysu_protocol(root, "g100").queries] == [0, 1]


def test_the_same_box_twice_in_a_subset_makes_two_queries(root: Path) -> None:
    row = ("s6.jpg", S6, [("s5.jpg", S5), ("s7.jpg", None)])
    write_subset(root, "Occlusion.mat", "Occlusion1", [row, row])
    queries = load_cuhk_sysu_protocol(root, "occlusion").queries
    assert [q.query_id for q in queries] == [2, 3]
    assert [q.person_id for q in queries] == [1, 1]


def test_a_subset_of_other_images_is_named(root: Path) -> None:
    write_subset(root, "Occlusion.mat", "Occlusion1", [("s1.jpg", (1, 5, 40, 80), [])])
    with pytest.raises(ValueError, match=r"Occlusion.mat.*'s1.jpg' is not in .*pool.mat"):
        load_cuhk_sysu(root, "test")


def test_an_absent_subset_is_an_absent_file(root: Path) -> None:
    with pytest.raises(IncompleteDatasetError, match="Resolution.mat does not exist"):
        load_cuhk_sysu_protocol(root, "low_resolution")
    with pytest.raises(ValueError, match=r"'hard'.*\['occlusion', 'low_resolution'\]"):
        load_cuhk_sysu_protocol(root, "hard")
