# SPDX-License-Identifier: Apache-2.0
"""Exports of CVAT and Label Studio: identities, frames, files, and what is refused."""

import json
from pathlib import Path

import numpy as np
import pytest
from dataset_trees import (
    cvat_box,
    label_studio_box,
    label_studio_choice,
    label_studio_task,
    write_cvat_images,
    write_cvat_video,
)
from mat_trees import write_image

from person_search.data import load_json_protocol, load_person_search_json
from person_search.data.datasets.convert import convert_labels
from person_search.data.datasets.label_tools import LabelOptions, load_labels


def anna(name: str = "anna", key: str = "person_id") -> dict:
    return {"attributes": {key: name}}


@pytest.fixture
def cvat(tmp_path: Path) -> Path:
    """Anna in three images of two folders, Bert in two, and an unknown person."""
    return write_cvat_images(
        tmp_path,
        {
            "gate/1.jpg": [cvat_box(10, **anna()), cvat_box(70, **anna("bert"))],
            "gate/2.jpg": [cvat_box(12.5, **anna(" anna ")), cvat_box(90, **anna("Unknown"))],
            "hall/1.jpg": [cvat_box(30, **anna()), cvat_box(60, **anna("")), cvat_box(9, "car")],
            "hall/2.jpg": [cvat_box(40, **anna("bert"))],
        },
    )


def persons(frames) -> list[list]:
    return [frame.persons for frame in frames]


def read(file: Path, kind: str = "cvat", images: Path | None = None, **options):
    told: list[str] = []
    folder = images or file.parent
    frames, names = load_labels(kind, file, folder, LabelOptions(**options), told.append)
    return frames, names, told


# ---- CVAT ----------------------------------------------------------------------------------------


def test_an_attribute_of_cvat_is_the_identity(cvat: Path) -> None:
    frames, names, told = read(cvat)
    assert persons(frames) == [["anna", "bert"], ["anna", None], ["anna", None], ["bert"]]
    assert names == ["gate", "hall"] and told == ["using the attribute 'person_id' as identity"]
    assert frames[1].boxes[0].tolist() == [12.5, 5, 32.5, 65]
    assert {frame.image_size for frame in frames} == {(90, 160)}
    assert [frame.camera for frame in frames] == [None] * 4
    assert [f.camera for f in read(cvat, camera_from_folder=True)[0]] == [1, 1, 2, 2]


def test_the_file_of_an_export_can_be_trained_and_tested_on(cvat: Path) -> None:
    options = LabelOptions(camera_from_folder=True)
    (one,) = convert_labels("cvat", cvat, cvat.parent, cvat.parent, "mine", options)
    assert one.path == cvat.parent / "mine.json" and one.protocols == ("all", "multi_view")
    records = load_person_search_json(one.path)
    assert [len(record["annotations"]) for record in records] == [2, 2, 2, 1]
    assert one.table.num_pids == 2 and Path(records[0]["file_name"]).is_file()
    assert len(load_json_protocol(one.path, "all").queries) == 4, "per person and camera"
    train, test = convert_labels("cvat", cvat, cvat.parent, cvat.parent, "mine",
                                 LabelOptions(single=False, split="identity"))  # fmt: skip
    assert (train.path.name, test.path.name) == ("mine_train.json", "mine_test.json")
    assert train.table.num_pids == test.table.num_pids == 1


def test_labels_as_identities(tmp_path: Path) -> None:
    boxes = {"a.jpg": [cvat_box(10, "anna"), cvat_box(60, "bert")], "b.jpg": [cvat_box(9, "anna")]}
    file = write_cvat_images(tmp_path, boxes)
    frames, names, told = read(file)
    assert persons(frames) == [["anna", "bert"], ["anna"]] and told == [
        "using the label as identity"
    ]
    assert persons(read(file, identity="none", labels=("anna",))[0]) == [[None], [None]]
    assert persons(read(file, identity="label", labels=("bert",))[0]) == [["bert"], []]


def test_tracks_of_a_video(tmp_path: Path) -> None:
    def track(number: int, *boxes: str) -> str:
        return f'<track id="{number}" label="person">{"".join(boxes)}</track>'

    tracks = [
        track(0, *(cvat_box(10 + f, "", frame=f, outside=int(f == 3)) for f in range(4))),
        track(1, *(cvat_box(90, "", frame=f, outside=0) for f in (1, 2))),
    ]
    file = write_cvat_video(tmp_path, tracks, frames=5)
    frames, _, told = read(file)
    assert persons(frames) == [
        ["annotations/0"], ["annotations/0", "annotations/1"], ["annotations/0", "annotations/1"],
        [], [],
    ]  # fmt: skip
    assert told == ["using the track as identity"]
    assert [frame.path.name for frame in frames][:2] == ["frame_000000.PNG", "frame_000001.PNG"]
    assert frames[0].image_size == (90, 160)
    assert [f.path.stem[-1] for f in read(file, every=2)[0]] == ["0", "2", "4"]
    named = [
        text.replace("</box>", '<attribute name="who">eva</attribute></box>') for text in tracks
    ]
    assert persons(read(write_cvat_video(tmp_path, named, 5), identity="who")[0])[1] == ["eva"] * 2
    for number in range(5):  # frames by another program: the order counts
        path = tmp_path / "images" / f"frame_{number:06d}.PNG"
        path.rename(path.with_name(f"v{number + 40}.png"))
    assert [f.path.name for f in read(file, identity="track")[0]][:2] == ["v40.png", "v41.png"]
    (tmp_path / "images" / "v40.png").unlink()
    (tmp_path / "images" / "v41.png").unlink()
    (tmp_path / "images" / "v42.png").unlink()
    with pytest.raises(
        FileNotFoundError, match=r"1 frames that .*images lacks \(2 images\), .* 2;"
    ):
        read(file)


def test_a_rotated_box(tmp_path: Path) -> None:
    file = write_cvat_images(tmp_path, {"a.jpg": [cvat_box(10, rotation=90, **anna())]})
    # 20 x 60 around (20, 35) becomes 60 x 20
    np.testing.assert_allclose(read(file)[0][0].boxes, [[-10, 25, 50, 45]], atol=1e-9)


def test_other_shapes_are_counted(tmp_path: Path) -> None:
    shapes = '<polygon label="person" points="1,1;2,2;3,1"/>' * 2
    file = write_cvat_images(tmp_path, {"a.jpg": [cvat_box(10, **anna()), shapes]})
    assert read(file)[2][0] == "leaving out 2 x polygon"


@pytest.mark.parametrize(
    ("content", "options", "message"),
    [
        ("<annotations><image", {}, r"not XML, or is truncated"),
        ("<html></html>", {}, r"root <html>"),
        ("<annotations></annotations>", {}, "neither images nor tracks"),
        ('<annotations><image id="0" name="gate/1.jpg" width="160"/></annotations>', {},
         "<image> height is absent"),
        ("", {"identity": "who"}, r"no box has the attribute 'who'; attributes: \['person_id'\]"),
        ("", {"identity": "track"}, "only CVAT for video has tracks"),
        ("", {"labels": ("dog",)}, r"none of the labels \['car', 'person'\] is \['dog'\]"),
    ],
)  # fmt: skip
def test_refused_cvat(cvat: Path, content: str, options: dict, message: str) -> None:
    if content:
        cvat.write_text(content)
    with pytest.raises(ValueError, match=message) as caught:
        read(cvat, **options)
    assert "\n" not in str(caught.value)


def test_two_attributes_or_none(tmp_path: Path) -> None:
    two = {"attributes": {"person_id": "a", "track": "3"}}
    file = write_cvat_images(tmp_path, {"a.jpg": [cvat_box(10, **two)]})
    with pytest.raises(ValueError, match=r"\['person_id', 'track'\] may be the identity"):
        read(file)
    file = write_cvat_images(tmp_path, {"a.jpg": [cvat_box(10)]})
    with pytest.raises(ValueError, match=r"no identities: the labels are \['person'\]"):
        read(file)
    file = write_cvat_images(tmp_path, {"a.jpg": []})
    with pytest.raises(ValueError, match="contains no boxes in 1 images"):
        read(file)


def test_images_that_are_missing(cvat: Path) -> None:
    (cvat.parent / "hall" / "2.jpg").unlink()
    with pytest.raises(FileNotFoundError, match=r"names 1 of 4 images .*hall/2\.jpg; .*--images"):
        read(cvat)
    with pytest.raises(FileNotFoundError, match="does not exist"):
        read(cvat, images=cvat.parent / "nowhere")


def test_options_are_checked() -> None:
    with pytest.raises(ValueError, match="every is 0"):
        LabelOptions(every=0)


# ---- Label Studio --------------------------------------------------------------------------------


@pytest.fixture
def studio(tmp_path: Path) -> Path:
    """Uploaded, local and remote images; one that was skipped and one without annotations."""
    for seed, name in enumerate(("a.jpg", "set/b c.jpg", "c.jpg")):
        write_image(tmp_path / name, 90, 160, seed)
    tasks = [
        label_studio_task(1, "/data/upload/3/0a1b2c3d-a.jpg", label_studio_box("r1", 10),
                          label_studio_choice("r1", "anna"), label_studio_box("r2", 70)),
        label_studio_task(2, "/data/local-files/?d=set/b%20c.jpg", label_studio_box("r3", 20),
                          label_studio_choice("r3", "anna")),
        label_studio_task(3, "https://cams.example/x/c.jpg?size=1", label_studio_box("r4", 30),
                          label_studio_choice("r4", "bert"), label_studio_choice("r9", "carl")),
        label_studio_task(4, "d.jpg", label_studio_box("r5", 30), was_cancelled=True),
        {"id": 5, "data": {"image": "e.jpg"}, "annotations": []},
    ]  # fmt: skip
    path = tmp_path / "export.json"
    path.write_text(json.dumps(tasks))
    return path


def test_a_choice_per_region_is_the_identity(studio: Path) -> None:
    frames, _, told = read(studio, "label_studio")
    assert persons(frames) == [["anna", None], ["anna"], ["bert"]]
    assert [frame.path.name for frame in frames] == ["a.jpg", "b c.jpg", "c.jpg"]
    np.testing.assert_allclose(frames[0].boxes, [[10, 5, 30, 65], [70, 5, 90, 65]])
    assert told == ["using the attribute 'person_id' as identity"]
    assert frames[0].image_size == (90, 160)


def change(path: Path, *keys: object, value: object) -> None:
    """Changes one value in a JSON file."""
    document = json.loads(path.read_text())
    inner = document
    for key in keys[:-1]:
        inner = inner[key]
    inner[keys[-1]] = value
    path.write_text(json.dumps(document))


def test_texts_numbers_and_labels_apart(studio: Path) -> None:
    box = {**label_studio_box("r1", 10), "type": "rectangle"}
    del box["value"]["rectanglelabels"]
    label = {"id": "r1", "type": "labels", "from_name": "l", "value": {"labels": ["Person"]}}
    text = {"id": "r1", "type": "textarea", "from_name": "who", "value": {"text": ["eva"]}}
    number = {"id": "r1", "type": "number", "from_name": "no", "value": {"number": 7}}
    change(studio, 0, "annotations", 0, "result", value=[box, label, text, number])
    assert persons(read(studio, "label_studio", identity="who")[0])[0] == ["eva"]
    assert persons(read(studio, "label_studio", identity="no")[0])[0] == ["7"]
    for given, known in ((0, "0"), (None, None)):
        number["value"] = {"number": given}
        change(studio, 0, "annotations", 0, "result", value=[box, label, text, number])
        assert persons(read(studio, "label_studio", identity="no")[0])[0] == [known]


def test_the_annotation_marked_as_ground_truth_is_used(studio: Path) -> None:
    tasks = json.loads(studio.read_text())
    first = {**tasks[0]["annotations"][0], "ground_truth": True}
    tasks[0]["annotations"] = [first, {"id": 8, "result": []}]
    studio.write_text(json.dumps(tasks))
    assert persons(read(studio, "label_studio")[0])[0] == ["anna", None]


@pytest.mark.parametrize(
    ("keys", "value", "message"),
    [
        ((0, "annotations", 0, "result", 0, "image_rotation"), 90, r"tasks\[0\].*turned by 90"),
        ((0, "annotations", 0, "result", 0, "value"), {}, r"tasks\[0\] \(id 1\): 'x' is absent"),
        ((1, "data"), {"text": "hello"}, r"tasks\[1\] \(id 2\): data names no image"),
    ],
)
def test_refused_tasks(studio: Path, keys: tuple, value: object, message: str) -> None:
    change(studio, *keys, value=value)
    with pytest.raises(ValueError, match=message):
        read(studio, "label_studio")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"a": 1}', "export a list of tasks"),
        ('[{"image": "a.jpg", "label": []}]', "'JSON-MIN' does not say"),
        ('[{"id": 1', "truncated"),
    ],
)
def test_refused_exports(studio: Path, content: str, message: str) -> None:
    studio.write_text(content)
    with pytest.raises(ValueError, match=message):
        read(studio, "label_studio")
