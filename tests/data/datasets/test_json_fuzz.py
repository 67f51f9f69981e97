# SPDX-License-Identifier: Apache-2.0
"""Any value anywhere in an annotation file is read or reported as a fault, without a crash."""

import copy
import itertools
import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from json_trees import small_document, write_json_set

from person_search.data import AnnotationFileError, load_person_search_json
from person_search.data.datasets.annotations import AnnotationTable
from person_search.data.datasets.check import check_json_dataset
from person_search.data.datasets.json_document import parse_document

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
