# SPDX-License-Identifier: Apache-2.0
"""PoseTrack21, MovieNet-PS and CDPS as annotation files; damaged and incomplete trees."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from dataset_trees import write_cdps, write_movienet, write_posetrack21
from json_trees import small_document
from scipy.io import loadmat, savemat

from person_search.data import load_json_protocol, load_person_search_json
from person_search.data.datasets.cdps import LAYOUT as CDPS
from person_search.data.datasets.cdps import cdps_documents
from person_search.data.datasets.convert import convert_documents
from person_search.data.datasets.json_document import parse_document
from person_search.data.datasets.movienet import LAYOUT as MOVIENET
from person_search.data.datasets.movienet import movienet_documents
from person_search.data.datasets.posetrack21 import LAYOUT as POSETRACK
from person_search.data.datasets.posetrack21 import posetrack21_documents


def labels_of(path: Path) -> list[list[int]]:
    return [[a["person_id"] for a in r["annotations"]] for r in load_person_search_json(path)]


# ---- PoseTrack21 ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "folder", ["posetrack_person_search", "annotations/posetrack_person_search"]
)
def test_posetrack21(tmp_path: Path, folder: str) -> None:
    root = write_posetrack21(tmp_path / "PoseTrack21", folder)
    train, test = convert_documents(posetrack21_documents(root), root, tmp_path, "pt", POSETRACK)
    assert labels_of(train.path) == [[0, 1], [0], [2, 0]]
    assert labels_of(test.path) == [[0, 1], [0, 1], [0], [2]]
    records = load_person_search_json(test.path)
    assert [record["cam_id"] for record in records] == [3, 3, 4, 4], "a camera per video"
    assert records[0]["annotations"][0]["bbox"] == [10, 5, 30.5, 65]
    protocol = load_json_protocol(test.path, "all")
    assert [(q.image_id, q.person_id) for q in protocol.queries] == [(0, 0), (1, 1)]
    assert protocol.positive_image.tolist() == [1, 2, 0], "every image except the query's own"
    assert test.protocols == ("all", "multi_view") and train.protocols == ()


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("val", lambda d: d.pop("images"), r"val\.json.*\n.*images is null; a list is expected"),
        ("train", lambda d: d["annotations"][1].pop("bbox"), r"annotations\[1\].*bbox and person"),
        ("val", lambda d: d["annotations"][0].update(image_id=5), "image_id 5 is not an image"),
        ("train", lambda d: d["images"][1].update(id=d["images"][0]["id"]), r"images\[1\].*new id"),
        ("query", lambda d: d["images"][0].update(file_name="x/9.jpg"), r"val\.json lacks the im"),
        ("query", lambda d: d["annotations"][0].update(person_id=99), "val.json lacks person 99"),
    ],
)
def test_damaged_posetrack21(tmp_path: Path, file: str, change: Callable, message: str) -> None:
    root = write_posetrack21(tmp_path)
    path = root / "posetrack_person_search" / f"{file}.json"
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))
    with pytest.raises(ValueError, match=message):
        posetrack21_documents(root)


def test_a_box_that_is_no_box(tmp_path: Path) -> None:
    root = write_posetrack21(tmp_path)
    documents = posetrack21_documents(root)
    documents["test"]["annotations"][0]["bbox"] = "left"
    with pytest.raises(ValueError, match=r"annotations\[0\]: bbox is 'left'"):
        convert_documents(documents, root, root, "pt", POSETRACK)
    assert not (root / "pt_test.json").exists()


# ---- MovieNet-PS ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("places", "cuhk_train"),
    [(("annotation", "Image/SSM"), False), (("anno_mvn-cs", "Image"), True)],
)
def test_movienet(tmp_path: Path, places: tuple[str, str], cuhk_train: bool) -> None:
    root = write_movienet(tmp_path, *places, cuhk_train=cuhk_train)
    train, test = convert_documents(movienet_documents(root), root, root, "mvn", MOVIENET)
    assert labels_of(train.path) == [[0, 1], [0]], "images of training persons only"
    assert labels_of(test.path) == [[0, 1], [0], [1]]
    record = load_person_search_json(train.path)[0]
    assert record["annotations"][0]["bbox"] == [10, 5, 40, 75]
    assert Path(record["file_name"]) == root / places[1] / "tt1_s1.jpg"
    assert test.protocols[:2] == ("g2000", "g4000")
    protocol = load_json_protocol(test.path, "g4000")
    assert protocol.gallery.tolist() == [[1, 2, 0], [2, 1, -1]]
    assert protocol.positive_query.tolist() == [0, 1] and protocol.positive_image.tolist() == [1, 2]
    assert [query.image_id for query in protocol.queries] == [0, 0]


def test_one_gallery_size_of_movienet(tmp_path: Path) -> None:
    root = write_movienet(tmp_path)
    documents = movienet_documents(root, gallery_sizes=[4000])
    assert list(documents["test"]["protocols"]) == ["g4000"]


def resave(path: Path, name: str, change: Callable[[np.ndarray], object]) -> None:
    value = loadmat(path)[name]
    change(value)
    savemat(path, {name: value})


def test_damaged_movienet(tmp_path: Path) -> None:
    root = write_movienet(tmp_path)
    folder = root / "annotation" / "test" / "train_test"
    told: list[str] = []
    resave(folder / "Train_app10.mat", "Train",
           lambda train: train[0, 2][0].__setitem__(1, np.array([[1, 2, 3, 4]])))  # fmt: skip
    assert movienet_documents(root, report=told.append)["train"]["annotations"]
    assert "1 labels without a box in Images.mat are not used" in told[1]
    other = [[9, 9, 9, 9]]
    resave(folder / "TestG4000.mat", "TestG4000",
           lambda test: test[0, 0]["Query"]["idlocate"].__setitem__((0, 0), other))  # fmt: skip
    with pytest.raises(ValueError, match=r"TestG4000\.mat has other queries.*--gallery-sizes 4000"):
        movienet_documents(root)
    savemat(root / "annotation" / "pool_2000.mat", {"pool": np.array(["tt2_s1.jpg"], object)})
    with pytest.raises(ValueError, match=r"pool_\*\.mat lack 2 images"):
        movienet_documents(root, gallery_sizes=[2000])
    (folder / "TestG2000.mat").write_bytes((folder / "TestG2000.mat").read_bytes()[:400])
    with pytest.raises(ValueError, match=r"TestG2000\.mat is not a readable MATLAB file"):
        movienet_documents(root, gallery_sizes=[2000])


# ---- CDPS ----------------------------------------------------------------------------------------


def test_cdps(tmp_path: Path) -> None:
    root = write_cdps(tmp_path)
    train, test = convert_documents(cdps_documents(root), root, root, "cdps", CDPS)
    assert labels_of(train.path) == [[0, -1], [0, 1]]
    assert labels_of(test.path) == [[0, -1], [0], [1, 0], []]
    records = load_person_search_json(test.path)
    assert [record["cam_id"] for record in records] == [1, 1, 2, 2]
    np.testing.assert_allclose(records[0]["annotations"][0]["bbox"], [24, 9, 40, 81], atol=1e-9)
    assert test.protocols[0] == "listed"
    protocol = load_json_protocol(test.path, "listed")
    assert [(q.image_id, q.person_id) for q in protocol.queries] == [(0, 0)]
    assert protocol.gallery.tolist() == [[1, 2, 3]] and protocol.positive_image.tolist() == [1, 2]


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("c1.json", '{"a": 1}', "a list is expected"),
        ("c1.json", '[{"file_path": "x.jpg", "image_id": 1, "ids": [1], "bboxes": []}]',
         r"\[0\] is"),
        ("c1.json", '[{"file_path": "x.jpg", "image_id": 1, "ids": [1], "bboxes": [[9,9,9,9]]}]',
         "not relative to the image"),
        ("search-new.json", '[{"5": {"query": "zzz", "gallery": []}}]', "'zzz' is in no c<digit>"),
        ("search-new.json", '[{"77": {"query": "test_c1_0", "gallery": []}}]',
         "person 77 is not in"),
        ("search-new.json", "[5]", "entry 0"),
    ],
)  # fmt: skip
def test_damaged_cdps(tmp_path: Path, file: str, content: str, message: str) -> None:
    root = write_cdps(tmp_path)
    (root / "test/s1/g1" / file).write_text(content)
    with pytest.raises(ValueError, match=message):
        cdps_documents(root)


# ---- all of them ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("write", "read", "layout", "file"),
    [
        (write_posetrack21, posetrack21_documents, POSETRACK, "posetrack_person_search/val.json"),
        (write_posetrack21, posetrack21_documents, POSETRACK,
         "images/val/000003_c_val/000001.jpg"),
        (write_movienet, movienet_documents, MOVIENET, "annotation/pool_4000.mat"),
        (write_movienet, movienet_documents, MOVIENET, "Image/SSM/tt2_s1.jpg"),
        (write_cdps, cdps_documents, CDPS, "test/s1/g1/search-new.json"),
        (write_cdps, cdps_documents, CDPS, "train/s1/g1/c1_0.jpg"),
    ],
)  # fmt: skip
def test_a_missing_file_is_named(
    tmp_path: Path, write: Callable, read: Callable, layout, file: str
) -> None:
    root = write(tmp_path / "set")
    (root / file).unlink()
    with pytest.raises(FileNotFoundError) as caught:
        convert_documents(read(root), root, root, "set", layout)
    first = str(caught.value).splitlines()[0]
    assert first.startswith(f"{layout.title} is incomplete: ") and Path(file).name in first
    with pytest.raises(FileNotFoundError, match="was not found"):
        read(tmp_path / "nowhere")


@pytest.mark.parametrize("name", ["Pedestrian", "PEOPLE", "person", "people "])
def test_coco_categories_of_persons(name: str) -> None:
    document = small_document(categories=[{"id": 3, "name": "dog"}, {"id": 7, "name": name}])
    for row, one in enumerate(document["annotations"]):
        one["category_id"] = 3 if row == 0 else 7
    table, faults = parse_document(document)
    assert not faults and table.usable.tolist() == [False] + [True] * 6
