# SPDX-License-Identifier: Apache-2.0
"""Faults of an annotation file are all reported, each with its place."""

import copy
import gzip
import itertools
import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from json_trees import small_document, write_json_set

from person_search.data import AnnotationFileError, IrregularityLog, load_person_search_json
from person_search.data.datasets.annotations import AnnotationTable
from person_search.data.datasets.check import check_json_dataset
from person_search.data.datasets.json_document import parse_document


def change(section: str, row: int, **values: object) -> dict:
    """The small document with values of one entry replaced; ``...`` removes a key."""
    document = small_document(queries=[{"annotation_id": 101}], categories=[])
    entry = document[section][row]
    entry.update(values)
    for key in [key for key, value in values.items() if value is ...]:
        del entry[key]
    return document


BAD = {
    "unknown image": (change("annotations", 1, image_id=99), "annotations[1]: image_id 99 is not"),
    "duplicate image id": (
        change("images", 1, id=11),
        "images[1]: id 11 is already used by images[0]",
    ),
    "duplicate name": (
        change("images", 1, file_name="a//./1.jpg"),
        "images[1]: file_name 'a/1.jpg' is already used by images[0]",
    ),
    "duplicate annotation": (
        change("annotations", 2, id=101),
        "annotations[2]: id 101 is already used",
    ),
    "image id of text": (change("images", 0, id="11"), "images[0]: id is '11'; an integer"),
    "image id too large": (change("images", 0, id=2**31), "images[0]: id is 2147483648; allowed"),
    "negative image id": (change("images", 0, id=-2), "images[0]: id is -2; allowed"),
    "boolean id": (change("images", 0, id=True), "images[0]: id is True"),
    "no file name": (change("images", 0, file_name=...), "images[0]: file_name is absent"),
    "empty file name": (change("images", 0, file_name=" "), "images[0]: file_name is ' '"),
    "size of text": (change("images", 0, width="160"), "images[0]: width is '160'"),
    "size of zero": (change("images", 0, height=0), "images[0]: height is 0"),
    "camera of text": (change("images", 0, cam_id="door"), "images[0]: cam_id is 'door'"),
    "no box": (change("annotations", 0, bbox=...), "annotations[0]: bbox is absent"),
    "short box": (change("annotations", 0, bbox=[1, 2, 3]), "annotations[0]: bbox is [1, 2, 3]"),
    "box of text": (change("annotations", 0, bbox=["1", 2, 3, 4]), "annotations[0]: bbox is ['1'"),
    "nan": (change("annotations", 0, bbox=[float("nan"), 2, 3, 4]), "which is not finite"),
    "infinite": (change("annotations", 0, bbox=[1, 2, float("inf"), 4]), "annotations[0]: bbox is"),
    "huge": (change("annotations", 0, bbox=[10**400, 2, 3, 4]), "annotations[0]: bbox is"),
    "wrong order": (
        change("annotations", 0, bbox=[30, 65, -20, -60]),
        "annotations[0]: the box [30.0, 65.0, -20.0, -60.0] has a negative width or height",
    ),
    "outside": (
        change("annotations", 0, bbox=[161, 5, 20, 60]),
        "annotations[0]: the box [161.0, 5.0, 20.0, 60.0] [x, y, width, height] lies outside",
    ),
    "person of PRW": (change("annotations", 0, person_id=-2), "annotations[0]: person_id is -2"),
    "person of float": (change("annotations", 0, person_id=7.0), "person_id is 7.0; an integer"),
    "mixed persons": (change("annotations", 0, person_id="anna"), "others text ('anna')"),
    "unknown person": (
        change("annotations", 0) | {"persons": [{"id": 3}]},
        "annotations[0]: person_id 7 is not among the persons",
    ),
    "query without identity": (
        change("queries", 0, annotation_id=102),
        "queries[0]: annotation_id 102 has no person_id",
    ),
    "query of an unknown annotation": (
        change("queries", 0, annotation_id=5),
        "queries[0]: annotation_id 5 is not among the annotations",
    ),
    "query of an unknown person": (
        change("queries", 0, annotation_id=..., image_id=11, bbox=[1, 1, 9, 9], person_id=8),
        "queries[0]: person_id 8 is not that of any annotation",
    ),
    "query in an unknown image": (
        change("queries", 0, annotation_id=..., image_id=10, bbox=[1, 1, 9, 9], person_id=7),
        "queries[0]: image_id 10 is not among the images",
    ),
    "query without area": (
        change("queries", 0, annotation_id=..., image_id=11, bbox=[1, 1, 0, 9], person_id=7),
        "queries[0]: the box [1.0, 1.0, 0.0, 9.0] has no area",
    ),
    "query of nothing": (change("queries", 0, annotation_id=...), "queries[0]: neither"),
    "query of both": (change("queries", 0, image_id=11), "queries[0]: give annotation_id, or"),
    "gallery of unknown image": (
        change("queries", 0) | {"galleries": [[12, 99]]},
        "galleries[0]: [99] are not among the images",
    ),
    "galleries of other length": (
        change("queries", 0) | {"galleries": [[12], [12]]},
        "galleries is a list of 2; 1 lists",
    ),
    "galleries without queries": (
        small_document(galleries=[[12]]),
        "the file has galleries but no queries",
    ),
    "match outside the gallery": (
        change("queries", 0)
        | {
            "protocols": {
                "mine": {
                    "galleries": [[12]],
                    "matches": [{"query_id": 0, "image_id": 13, "bbox": [1, 2, 3, 4]}],
                }
            }
        },
        "protocols.mine.matches[0]: image_id 13 is not in the gallery",
    ),
    "reserved protocol": (
        change("queries", 0) | {"protocols": {"all": {"galleries": [[12]]}}},
        "the name 'all' is not allowed",
    ),
    "unknown category": (
        change("annotations", 0, category_id=9) | {"categories": [{"id": 1, "name": "person"}]},
        "annotations[0]: category_id 9 is not among the categories",
    ),
    "no person category": (
        small_document(categories=[{"id": 1, "name": "car"}, {"id": 2, "name": "dog"}]),
        "none of ['car', 'dog'] is 'person'",
    ),
    "no images": ({"annotations": []}, "the key 'images' is absent"),
    "empty images": ({"images": [], "annotations": []}, "images is an empty list"),
    "images not a list": (
        small_document(images={"id": 1}),
        "images is {'id': 1}; a list of objects",
    ),
    "image not an object": (small_document(images=[11]), "images[0]: is 11; an object"),
    "a list": ([1, 2], "the file contains [1, 2]; an object with the lists images"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_content_is_named(tmp_path: Path, name: str) -> None:
    document, message = BAD[name]
    path = write_json_set(tmp_path, document)
    with pytest.raises(AnnotationFileError) as raised:
        load_person_search_json(path)
    assert message in str(raised.value) and str(path) in str(raised.value)
    assert not list(tmp_path.glob(".person_search/set.json.v*")) or "box" in message


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "the file is empty (0 bytes)"),
        (b" \n", "the file is empty (2 bytes)"),
        (b"images", "not JSON: Expecting value, line 1, column 1"),
        (b'{"images": [{"id": 1', "the file is truncated"),
        ('{"images": [{"file_name": "é'.encode(), "the file is truncated"),
        (b'{"images": [],}', "line 1, column 15"),
        (
            b'{"images": [{"id": 1, "file_name": "\\ud83d.jpg"}], "annotations": []}',
            "file_name is '\\ud83d.jpg'",
        ),
        (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        (b'{"images": "\xff"}', "not UTF-8"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"images": ' + b"9" * 5000 + b"}", "Exceeds the limit"),
    ],
    ids=lambda value: "" if isinstance(value, bytes) else value[:20],
)
def test_files_with_other_content(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "set.json"
    path.write_bytes(content)
    with pytest.raises(AnnotationFileError) as raised:
        load_person_search_json(path)
    assert message in str(raised.value)


def test_a_missing_file_and_a_folder(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere.json does not exist"):
        load_person_search_json(tmp_path / "nowhere.json")
    with pytest.raises(AnnotationFileError, match="is a folder"):
        load_person_search_json(tmp_path)


def test_a_byte_order_mark_is_accepted(tmp_path: Path) -> None:
    path = write_json_set(tmp_path)
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert len(load_person_search_json(path)) == 4


def test_all_faults_come_at_once(tmp_path: Path) -> None:
    document = change("annotations", 0, bbox=[1, 2])
    document["images"][3]["id"] = 11
    document["annotations"][1]["image_id"] = 99
    with pytest.raises(AnnotationFileError) as raised:
        load_person_search_json(write_json_set(tmp_path, document))
    findings = raised.value.findings
    assert any("bbox is [1, 2]" in finding for finding in findings)
    assert any("id 11 is already used" in finding for finding in findings)
    assert any("image_id 99" in finding for finding in findings)
    assert any("annotations[6]: image_id 14" in finding for finding in findings)


def test_many_faults_are_counted(tmp_path: Path) -> None:
    document = small_document()
    document["annotations"] = [{"image_id": 99, "bbox": [1, 2, 3, 4]}] * 40
    with pytest.raises(AnnotationFileError, match="has 40 faults(.|\n)*and 30 more; tools/check"):
        load_person_search_json(write_json_set(tmp_path, document))


def test_corners_in_place_of_sizes_are_suspected(tmp_path: Path) -> None:
    document = small_document()
    for annotation in document["annotations"]:
        x, y, w, h = annotation["bbox"]
        annotation["bbox"] = [x, y, x + w, y + h]
    with pytest.raises(
        AnnotationFileError, match=r"boxes lie far outside.*corners \(x1, y1, x2, y2\)"
    ):
        load_person_search_json(write_json_set(tmp_path, document))


def test_a_few_overhanging_boxes_are_not_corners(tmp_path: Path) -> None:
    document = small_document()
    # as corners they would be valid as well, but they hardly overhang
    for annotation in document["annotations"]:
        annotation["bbox"] = [5, 5, 150, 88]
    log = IrregularityLog()
    load_person_search_json(write_json_set(tmp_path, document), irregularities=log)
    assert {item.kind for item in log} >= {"box_over_border"}


@pytest.mark.parametrize(
    ("content", "hint"),
    [(gzip.compress(b"{}"), "compressed with gzip"), ("{}".encode("utf-16"), "UTF-16")],
    ids=["gzip", "utf-16"],
)
def test_other_encodings_are_recognized(tmp_path: Path, content: bytes, hint: str) -> None:
    path = tmp_path / "set.json"
    path.write_bytes(content)
    with pytest.raises(AnnotationFileError, match=f"not UTF-8 text .*{hint}"):
        load_person_search_json(path)


def test_relative_boxes_are_suspected(tmp_path: Path) -> None:
    document = small_document(queries=[{"annotation_id": 101}])
    for annotation in document["annotations"]:
        x, y, w, h = annotation["bbox"]
        annotation["bbox"] = [x / 160, y / 90, w / 160, h / 90]
    with pytest.raises(AnnotationFileError, match="7 of 7 boxes lie between 0 and 1.*in pixels"):
        load_person_search_json(write_json_set(tmp_path, document))


def test_a_few_tiny_boxes_are_not_relative(tmp_path: Path) -> None:
    document = small_document()
    document["annotations"][0]["bbox"] = [0, 0, 0.5, 0.5]
    assert len(load_person_search_json(write_json_set(tmp_path, document))) == 4


@pytest.mark.parametrize("name", ["Person", "pedestrian", "PEOPLE", " person "])
def test_names_of_the_person_category(tmp_path: Path, name: str) -> None:
    """Roboflow adds the name of the project as category 0."""
    document = small_document(categories=[{"id": 0, "name": "cctv"}, {"id": 1, "name": name}])
    for annotation in document["annotations"]:
        annotation["category_id"] = 1
    document["annotations"][1]["category_id"] = 0
    records = load_person_search_json(write_json_set(tmp_path, document))
    assert [len(record["annotations"]) for record in records] == [1, 2, 2, 1]


def test_annotation_ids_may_be_huge(tmp_path: Path) -> None:
    """The crowds of COCO have ids above 2^31."""
    document = small_document(queries=[{"annotation_id": 900_100_259_690}])
    document["annotations"][0]["id"] = 900_100_259_690
    records = load_person_search_json(write_json_set(tmp_path, document))
    assert [len(record["queries"]) for record in records] == [1, 0, 0, 0]


def test_line_ends_and_paths_of_windows(tmp_path: Path) -> None:
    path = write_json_set(tmp_path)
    text = json.dumps(json.loads(path.read_text()), indent=1).replace("\n", "\r\n")
    path.write_bytes(text.replace("a/", "a\\\\").replace("b/", "b\\\\").encode("utf-8-sig"))
    records = load_person_search_json(path)
    assert records[0]["file_name"] == str(tmp_path / "a/1.jpg")


WHOLE = small_document(
    info={"description": "all there is"},
    categories=[{"id": 1, "name": "person"}],
    persons=[{"id": 3}, {"id": 7}],
    queries=[
        {"id": 0, "annotation_id": 101},
        {"id": 1, "image_id": 12, "bbox": [90, 5, 20, 60], "person_id": 3},
    ],
    galleries=[[12, 13], [14]],
    protocols={
        "mine": {
            "galleries": [[12], None],
            "matches": [{"query_id": 0, "image_id": 12, "bbox": [1, 2, 3, 4]}],
        }
    },
)


def paths_of(value: object, path: tuple = ()) -> list[tuple]:
    """Every place in a document, as the keys that lead there."""
    inner = value.items() if isinstance(value, dict) else enumerate(value)
    found = []
    for key, child in inner:
        found.append((*path, key))
        if isinstance(child, dict | list):
            found += paths_of(child, (*path, key))
    return found


PLACES = paths_of(WHOLE)
NUMBERS = itertools.count()
VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 200),
    st.sampled_from([2**31, -(2**63), 2**64, 10**400]),
    st.floats(allow_nan=True, allow_infinity=True),
    st.text(max_size=3),
    st.lists(st.integers(-3, 200), max_size=5),
    st.dictionaries(st.text(max_size=2), st.integers(0, 3), max_size=2),
)


def changed(places: list[tuple], values: list) -> dict:
    document = copy.deepcopy(WHOLE)
    for path, value in zip(places, values, strict=True):
        inner = document
        try:
            for key in path[:-1]:
                inner = inner[key]
            inner[path[-1]] = value
        except (KeyError, IndexError, TypeError):  # an earlier change took the place away
            continue
    return document


CHANGES = st.lists(st.tuples(st.sampled_from(PLACES), VALUES), min_size=1, max_size=3)


def test_the_whole_document_is_sound() -> None:
    assert parse_document(copy.deepcopy(WHOLE))[1] == []
    assert len(PLACES) > 80


@settings(max_examples=300)
@given(changes=CHANGES)
def test_parsing_never_crashes(changes: list) -> None:
    tables, findings = parse_document(changed(*map(list, zip(*changes, strict=True))))
    assert all(isinstance(finding, str) and finding for finding in findings)
    if not findings:
        again = AnnotationTable.unpack(tables.pack())
        assert again.names == tables.names and again.galleries.keys() == tables.galleries.keys()


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("fuzz")
    write_json_set(path, WHOLE)
    return path


@settings(max_examples=60)
@given(changes=CHANGES)
def test_the_check_and_the_reader_agree(folder: Path, changes: list) -> None:
    path = folder / f"{next(NUMBERS)}.json"  # clocks of file systems are too coarse for one name
    path.write_text(json.dumps(changed(*map(list, zip(*changes, strict=True)))))
    report = check_json_dataset(path)
    try:
        records = load_person_search_json(path)
    except AnnotationFileError as e:
        assert report.errors and all(any(f in x for x in report.errors) for f in e.findings)
    except FileNotFoundError:
        assert any("does not exist" in error for error in report.errors)
    else:
        assert len(records) == len(json.loads(path.read_text())["images"])
