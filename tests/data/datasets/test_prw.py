# SPDX-License-Identifier: Apache-2.0
"""The PRW reader on trees in the original format, one test per quirk of the real files."""

import logging
from pathlib import Path

import numpy as np
import pytest
from mat_trees import cells, small_prw, write_image
from scipy.io import savemat

from person_search.data import IncompleteDatasetError, IrregularityLog, load_prw, load_prw_protocol
from person_search.data.datasets.prw import camera_of, count_prw_pids
from person_search.testing import PersonSearchDatasetTests


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return small_prw(tmp_path / "PRW")


def by_name(records: list[dict]) -> dict[str, dict]:
    return {Path(record["file_name"]).stem: record for record in records}


def boxes(record: dict) -> list[list[float]]:
    return [annotation["bbox"] for annotation in record["annotations"]]


def kinds(log: IrregularityLog) -> list[str]:
    return [item.kind for item in log]


@pytest.fixture(scope="module")
def shared_root(tmp_path_factory) -> Path:
    return small_prw(tmp_path_factory.mktemp("sets") / "PRW")


class TestPrw(PersonSearchDatasetTests):
    @pytest.fixture(autouse=True)
    def _root(self, shared_root: Path) -> None:
        self.root = shared_root

    def load(self, split):
        return load_prw(self.root, split)

    def load_protocols(self):
        return [load_prw_protocol(self.root, name) for name in ("all", "multi_view")]


def test_train_records(root: Path) -> None:
    first, second = load_prw(root, "train")
    assert Path(first["file_name"]).is_file()
    assert (first["image_id"], first["height"], first["width"], first["cam_id"]) == (0, 90, 160, 1)
    assert boxes(first)[0] == [10.25, 5.0, 30.75, 65.0]
    assert second["cam_id"] == 2 and "queries" not in first


def test_train_ids_are_positions_in_the_list_so_that_932_is_no_exception(root: Path) -> None:
    first, second = load_prw(root, "train")
    assert [a["person_id"] for a in first["annotations"]] == [0, -1, 2]
    assert [a["person_id"] for a in second["annotations"]] == [0, 1]
    assert count_prw_pids(root) == 3


def test_483_training_ids(tmp_path: Path) -> None:
    ids = [*range(1, 479), 480, 481, 482, 483, 932]
    root = small_prw(tmp_path / "PRW", train_ids=ids)
    assert count_prw_pids(root) == 483
    assert load_prw(root, "train")[0]["annotations"][2]["person_id"] == 482


def test_a_training_id_in_a_test_frame_is_unlabeled(root: Path) -> None:
    record = by_name(load_prw(root, "test"))["c2s1_000101"]
    assert [a["person_id"] for a in record["annotations"]] == [0, -1]


@pytest.mark.parametrize("line_end", ["\r\n", "\n"])
def test_query_lines_of_both_ends(tmp_path: Path, line_end: str) -> None:
    root = small_prw(tmp_path / "PRW", line_end=line_end)
    records = by_name(load_prw(root, "test"))
    queries = {name: [q["query_id"] for q in r["queries"]] for name, r in records.items()}
    assert queries == {
        "c1s1_000101": [0],
        "c1s1_000201": [1],
        "c2s1_000101": [2],
        "c3s2_000101": [],
        "c3s2_000201": [],
    }
    assert records["c1s1_000201"]["queries"][0]["bbox"] == [90.0, 10.0, 115.0, 80.0]


@pytest.mark.parametrize("variable", ["box_new", "anno_file", "anno_previous"])
def test_each_annotation_variable_is_found(root: Path, variable: str) -> None:
    table = np.array([[1, 3, 4, 10, 20]], np.float64)
    savemat(root / "annotations" / "c1s1_000001.jpg.mat", {variable: table})
    assert boxes(load_prw(root, "train")[0]) == [[3.0, 4.0, 13.0, 24.0]]


def test_the_first_variable_name_wins_and_an_unknown_one_is_named(root: Path) -> None:
    path = root / "annotations" / "c1s1_000001.jpg.mat"
    old, new = np.array([[1.0, 9, 9, 9, 9]]), np.array([[1.0, 3, 4, 10, 20]])
    savemat(path, {"anno_previous": old, "box_new": new})
    assert boxes(load_prw(root, "train")[0]) == [[3.0, 4.0, 13.0, 24.0]]
    savemat(path, {"boxes": new})
    with pytest.raises(ValueError, match=r"c1s1_000001\.jpg\.mat.*\['boxes'\].*anno_file"):
        load_prw(root, "train")


def frames_with(rows: list[tuple]) -> dict[str, list[tuple]]:
    return {"c1s1_000001": rows, "c2s1_000001": [(1, 40, 5, 20, 60)]}


def train_only(root: Path, rows: list[tuple]) -> Path:
    return small_prw(
        root, frames=frames_with(rows), test=["c2s1_000001"], train=["c1s1_000001"], queries=[]
    )


def test_boxes_become_corners_first_and_are_clipped_afterwards(tmp_path: Path) -> None:
    rows = [(1, -1.7, 5, 74.6, 60), (3, 100, 20, 90, 100)]
    log = IrregularityLog()
    (record,) = load_prw(train_only(tmp_path / "PRW", rows), "train", log)
    assert np.allclose(boxes(record), [[0, 5, 72.9, 65], [100, 20, 160, 90]])
    assert kinds(log) == ["box_clipped"] * 2


def test_boxes_without_area_are_dropped_and_empty_frames_kept(tmp_path: Path) -> None:
    rows = [(1, 5, 5, 0, 60), (3, 170, 5, 10, 60)]
    log = IrregularityLog()
    (record,) = load_prw(train_only(tmp_path / "PRW", rows), "train", log)
    assert record["annotations"] == []
    assert sorted(kinds(log)) == ["box_outside", "no_boxes", "zero_size_box"]
    assert "row 2" in next(item.where for item in log if item.kind == "box_outside")


def test_a_frame_with_an_empty_table(tmp_path: Path) -> None:
    (record,) = load_prw(train_only(tmp_path / "PRW", []), "train")
    assert record["annotations"] == []


def test_one_id_twice_in_a_frame_is_kept_and_warned_of_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = [(1, 5, 5, 20, 60), (1, 50, 5, 20, 60), (-2, 90, 5, 9, 60), (-2, 120, 5, 9, 60)]
    with caplog.at_level(logging.WARNING):
        (record,) = load_prw(train_only(tmp_path / "PRW", rows), "train")
    assert [a["person_id"] for a in record["annotations"]] == [0, 0, -1, -1]
    warnings = [r.getMessage() for r in caplog.records if "twice in one image" in r.getMessage()]
    assert len(warnings) == 1 and "1 x" in warnings[0]


def test_protocol_all_leaves_out_the_own_frame_only(root: Path) -> None:
    protocol = load_prw_protocol(root, "all")
    assert protocol.gallery is None and protocol.excluded.tolist() == [[0], [1], [2]]
    pairs = list(
        zip(protocol.positive_query.tolist(), protocol.positive_image.tolist(), strict=True)
    )
    assert pairs == [(0, 1), (0, 2), (1, 3), (2, 0), (2, 1)]
    assert [q.person_id for q in protocol.queries] == [0, 1, 0]
    assert [q.cam_id for q in protocol.queries] == [1, 1, 2]
    assert protocol.positive_box[0].tolist() == [30.0, 10.0, 55.0, 80.0]


def test_protocol_multi_view_leaves_out_the_camera(root: Path) -> None:
    protocol = load_prw_protocol(root, "multi_view")
    assert protocol.excluded.tolist() == [[0, 1], [2, -1]]
    assert protocol.excluded_row.tolist() == [0, 0, 1]
    assert [protocol.excluded_images(q).tolist() for q in range(3)] == [[0, 1], [0, 1], [2]]
    pairs = list(
        zip(protocol.positive_query.tolist(), protocol.positive_image.tolist(), strict=True)
    )
    assert pairs == [(0, 2), (1, 3), (2, 0), (2, 1)]


def test_the_first_of_two_boxes_in_a_frame_is_the_match(tmp_path: Path) -> None:
    root = small_prw(tmp_path / "PRW")
    table = np.array([[479, 30, 10, 25, 70], [479, 90, 10, 25, 70.0]])
    savemat(root / "annotations" / "c1s1_000201.jpg.mat", {"box_new": table})
    line = b"479 20 10 25 70 c1s1_000101\r\n"
    (root / "query_info.txt").write_bytes(line)
    protocol = load_prw_protocol(root, "all")
    assert protocol.positive_image.tolist() == [1, 2]
    assert protocol.positive_box[0].tolist() == [30.0, 10.0, 55.0, 80.0]


def test_an_unknown_split_or_protocol_names_those_allowed(root: Path) -> None:
    with pytest.raises(ValueError, match="'val'"):
        load_prw(root, "val")
    with pytest.raises(ValueError, match="'g100'.*'all', 'multi_view'"):
        load_prw_protocol(root, "g100")


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("479 1 2 3 c1s1_000101", "expected 'pid x y w h frame'"),
        ("479 1 2 3 x c1s1_000101", "expected 'pid x y w h frame'"),
        ("479 1 2 30 40 c9s9_000009", "frame 'c9s9_000009' is not in frame_test.mat"),
        ("12 1 2 30 40 c1s1_000101", "id 12 is not in ID_test.mat"),
        ("479 200 2 30 40 c1s1_000101", "no area inside the image"),
    ],
)
def test_a_bad_query_line_is_named(root: Path, line: str, complaint: str) -> None:
    good = "479 20 10 25 70 c1s1_000101\r\n\r\n"
    (root / "query_info.txt").write_bytes((good + line + "\r\n").encode())
    with pytest.raises(ValueError, match=f"query_info.txt:3: .*{complaint}"):
        load_prw(root, "test")


def test_a_slightly_negative_query_box_is_clipped(root: Path) -> None:
    (root / "query_info.txt").write_text("479 -1.7 10 74.6 70 c1s1_000101.jpg\n")
    record = load_prw(root, "test")[0]
    assert np.allclose(record["queries"][0]["bbox"], [0, 10, 72.9, 80])


@pytest.mark.parametrize(
    ("split", "path"),
    [
        ("train", "frame_train.mat"),
        ("train", "ID_train.mat"),
        ("train", "annotations/c2s1_000001.jpg.mat"),
        ("train", "frames/c2s1_000001.jpg"),
        ("test", "frame_test.mat"),
        ("test", "query_info.txt"),
    ],
)
def test_a_missing_file_is_named_with_the_expected_tree(root: Path, split: str, path: str) -> None:
    (root / path).unlink()
    with pytest.raises(IncompleteDatasetError) as raised:
        load_prw(root, split)
    message = str(raised.value)
    assert f"{root / path} does not exist" in message and "query_info.txt   " in message


def test_lists_with_repetitions_and_wrong_names(root: Path) -> None:
    savemat(root / "ID_train.mat", {"ID_train": np.array([[1, 1, 2]])})
    with pytest.raises(ValueError, match=r"ID_train\.mat.*twice"):
        load_prw(root, "train")
    savemat(root / "frame_train.mat", {"img_index_train": cells(["c1s1_000001"] * 2)})
    with pytest.raises(ValueError, match=r"frame_train\.mat.*twice"):
        load_prw(root, "train")
    assert camera_of("c6s2_012345") == 6
    with pytest.raises(ValueError, match="'frame7'"):
        camera_of("frame7")


def test_annotations_of_another_shape_are_refused(root: Path) -> None:
    savemat(root / "annotations" / "c1s1_000001.jpg.mat", {"box_new": np.zeros((2, 4))})
    with pytest.raises(ValueError, match=r"c1s1_000001\.jpg\.mat.*\(2, 4\)"):
        load_prw(root, "train")


def test_frames_of_different_sizes(root: Path) -> None:
    write_image(root / "frames" / "c2s1_000001.jpg", 64, 72)
    first, second = load_prw(root, "train")
    assert (first["height"], first["width"]) == (90, 160)
    assert (second["height"], second["width"]) == (64, 72)
    assert boxes(second) == [[40.0, 5.0, 60.0, 64.0], [70.0, 5.0, 72.0, 64.0]]
