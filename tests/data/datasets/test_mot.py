# SPDX-License-Identifier: Apache-2.0
"""MOT-challenge sequences: columns, sampling, splits, and the files made of them."""

import json
from pathlib import Path

import pytest
from json_trees import write_mot_sequence

from person_search.data import load_json_protocol, load_person_search_json
from person_search.data.datasets.convert import convert_mot
from person_search.data.datasets.mot import MotOptions, load_mot

ALL = MotOptions(every=1)


def walker(track: int, first: int, last: int, left: float = 11, **more: float) -> list[tuple]:
    """One line per frame; a person walks two pixels to the right per frame."""
    values = {"flag": 1, "kind": 1, "visibility": 1.0} | more
    return [(f, track, left + 2 * f, 6, 20, 50, *values.values()) for f in range(first, last + 1)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two sequences at two frames a second; track 1 is in both."""
    write_mot_sequence(tmp_path / "S-01", walker(1, 1, 6) + walker(2, 3, 6, 60), frames=6)
    write_mot_sequence(tmp_path / "S-02", walker(1, 1, 4) + walker(5, 1, 4, 90), frames=4)
    (tmp_path / "notes.txt").write_text("not a sequence")
    return tmp_path


def persons_of(records: list[dict]) -> list[list[int]]:
    return [[a["person_id"] for a in record["annotations"]] for record in records]


def test_sequences_are_split_and_tracks_are_identities(folder: Path) -> None:
    found = load_mot(folder, ALL)
    records, persons = found["train"]
    assert persons == ["S-01/1", "S-01/2"]
    assert persons_of(records) == [[0], [0], [0, 1], [0, 1], [0, 1], [0, 1]]
    assert records[0]["annotations"][0]["bbox"] == [12, 5, 32, 55], "pixels counted from 0"
    assert {record["cam_id"] for record in records} == {1}
    tested, persons = found["test"]
    assert persons == ["S-02/1", "S-02/5"] and persons_of(tested) == [[0, 1]] * 4
    assert [r["image_id"] for r in records + tested] == list(range(10))


def test_one_frame_per_second_or_every_nth(folder: Path) -> None:
    def names(**options) -> list[str]:
        records = load_mot(folder, MotOptions(**options))["train"][0]
        return [Path(record["file_name"]).stem for record in records]

    assert names() == ["000001", "000003", "000005"]
    assert names(every=4) == ["000001", "000005"]


def test_chosen_test_sequences(folder: Path) -> None:
    found = load_mot(folder, MotOptions(every=1, test_sequences=("S-01",)))
    assert found["train"][1] == ["S-02/1", "S-02/5"] and len(found["test"][0]) == 6
    with pytest.raises(ValueError, match="'S-09'. are not among the sequences"):
        load_mot(folder, MotOptions(test_sequences=("S-09",)))


def test_global_ids_join_sequences(folder: Path) -> None:
    found = load_mot(folder, MotOptions(every=1, global_ids=True))
    assert found["train"][1] == [1, 2] and found["test"][1] == [5]
    assert persons_of(found["test"][0]) == [[-1, 0]] * 4, "track 1 is a training identity"


def test_split_by_identity(tmp_path: Path) -> None:
    rows = walker(1, 1, 4) + walker(2, 3, 8, 60) + walker(3, 7, 10, 100)
    rows += walker(4, 8, 10, 20)
    write_mot_sequence(tmp_path / "S", rows, frames=10)
    found = load_mot(tmp_path / "S", ALL)
    (train, train_persons), (test, test_persons) = found["train"], found["test"]
    assert train_persons == ["S/1", "S/2"] and test_persons == ["S/3", "S/4"]
    files = [{record["file_name"] for record in part} for part in (train, test)]
    assert not files[0] & files[1] and len(files[0] | files[1]) == 10
    # frame 7 holds tracks 2 and 3: a tie, decided by the time
    assert [Path(record["file_name"]).stem for record in test][0] == "000007"
    assert persons_of(test)[0] == [-1, 0]


def test_classes_flags_and_visibility(tmp_path: Path) -> None:
    rows = walker(1, 1, 2) + walker(2, 1, 2, kind=7, flag=0) + walker(3, 1, 2, kind=3, flag=0)
    rows += walker(4, 1, 2, flag=0) + walker(5, 1, 2, visibility=0.1)
    rows += [(1, 6, 150, 6, 50, 50, 1, 1, 1), (2, 6, 300, 6, 50, 50, 1, 1, 1)]
    write_mot_sequence(tmp_path / "A", rows, frames=2)
    write_mot_sequence(tmp_path / "B", walker(1, 1, 2), frames=2)
    records, persons = load_mot(tmp_path, ALL)["train"]
    # 7 stands still: a person without identity; 3 is a car; 4 is out of the benchmark; 5 is hidden
    assert persons == ["A/1", "A/6"] and persons_of(records) == [[0, -1, 1], [0, -1]]
    assert records[0]["annotations"][2]["bbox"] == [149, 5, 160, 55], "clipped to the image"
    options = MotOptions(every=1, classes=(1, 3), unlabeled_classes=(), min_visibility=0)
    records, persons = load_mot(tmp_path, options)["train"]
    assert persons == ["A/1", "A/5", "A/6"], "the flag of class 3 is 0"


def test_the_columns_of_2015(tmp_path: Path) -> None:
    for name in ("A", "B"):
        rows = [(f, 1, 20, 6, 20, 50, 1, -1, -1, -1) for f in (1, 2)]
        write_mot_sequence(tmp_path / name, rows, frames=2)
    assert persons_of(load_mot(tmp_path, ALL)["test"][0]) == [[0], [0]]


def test_the_files_load_and_have_queries(folder: Path) -> None:
    train, test = convert_mot(folder, folder, "walk", ALL)
    assert len(train.table.names) == 6 and train.table.num_pids == 2
    assert len(test.table.query_ids) == 2
    assert test.protocols == ("all",), "no person is in two sequences"
    assert load_person_search_json(train.path)[0]["file_name"] == str(
        folder / "S-01/img1/000001.jpg"
    )
    protocol = load_json_protocol(test.path, "all")
    assert len(protocol.queries) == 2 and len(protocol.positive_query) == 6
    assert "queries" in json.loads(test.path.read_text())


def test_global_ids_give_a_protocol_across_cameras(tmp_path: Path) -> None:
    for name in ("A", "B", "C"):
        write_mot_sequence(tmp_path / name, walker(1, 1, 2) + walker(2, 1, 2, 90), frames=2)
    rows = walker(8, 1, 2)
    write_mot_sequence(tmp_path / "0", rows, frames=2)
    options = MotOptions(every=1, global_ids=True, test_share=0.7)
    test = convert_mot(tmp_path, tmp_path, "walk", options)[1]
    assert test.protocols == ("all", "multi_view")
    assert len(load_json_protocol(test.path, "multi_view").positive_query) == 6 * 4


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("gt/gt.txt", "1,1,5,5\n", r"gt.txt:1: 4 columns"),
        ("gt/gt.txt", "1,1,5,5,9,9,1,1,1\n1,x,5,5,9,9,1,1,1\n", r"gt.txt:2: numbers are expected"),
        ("gt/gt.txt", "", "contains no boxes"),
        ("gt/gt.txt", "1,1,nan,5,9,9,1,1,1\n", "not finite"),
        ("gt/gt.txt", "77,1,5,5,9,9,1,1,1\n", "frame 77"),
        ("seqinfo.ini", "nothing", "does not describe"),
        ("seqinfo.ini", "[Sequence]\nframeRate=0\nimWidth=5\nimHeight=5\n", "frameRate is 0"),
        ("seqinfo.ini", "[Sequence]\nimDir=x\nframeRate=1\nimWidth=5\nimHeight=5\n", "no frames"),
    ],
)
def test_broken_sequences_are_named(folder: Path, file: str, content: str, message: str) -> None:
    (folder / "S-01" / file).write_text(content)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        load_mot(folder, ALL)


def test_no_sequence_no_info_and_an_empty_split(folder: Path, tmp_path_factory) -> None:
    with pytest.raises(FileNotFoundError, match="no MOT sequence(.|\n)*gt/gt.txt"):
        load_mot(tmp_path_factory.mktemp("empty"), ALL)
    with pytest.raises(ValueError, match="the train split by sequence would have 0 frames"):
        load_mot(folder / "S-01", MotOptions(split="sequence", test_share=0.1, every=1))
    (folder / "S-02" / "seqinfo.ini").unlink()
    with pytest.raises(FileNotFoundError, match="seqinfo.ini does not exist"):
        load_mot(folder, ALL)


@pytest.mark.parametrize("values", [{"split": "random"}, {"every": -1}, {"test_share": 1.0}])
def test_options_are_checked(values: dict) -> None:
    with pytest.raises(ValueError, match=next(iter(values))):
        MotOptions(**values)


def test_a_file_in_another_encoding_is_named(folder: Path) -> None:
    (folder / "S-01" / "seqinfo.ini").write_bytes("[Sequence]\nname=caf\u00e9".encode("latin-1"))
    with pytest.raises(ValueError, match=r"seqinfo\.ini is not a UTF-8 text file"):
        load_mot(folder, ALL)
