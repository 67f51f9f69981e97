# SPDX-License-Identifier: Apache-2.0
"""``person-search label``: proposals, edits, the file, the page."""

import importlib.util
import io
import json
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from galleries import unit_vectors
from page_tiny import (
    LEFT,
    TOKEN,
    Access,
    Page,
    answering,
    bind,
    embedder,
    make_gallery,
    paint_halves,
)
from page_visit import chromium, images_are_loaded, look, needs_browser, until
from PIL import Image

from person_search.data import load_person_search_json, load_prw
from person_search.data.synthetic import SyntheticConfig, write_prw
from person_search.search import (
    Gallery,
    GalleryStore,
    IndexOptions,
    find_sources,
    index_images,
    labeling,
)
from person_search.search.copying import copy
from person_search.search.errors import GalleryError
from person_search.search.labeling import UNLABELED, Edit, Labeling, propose_groups
from person_search.search.page.label_app import create_label_app

pytest.importorskip("sklearn")
__all__ = ["chromium", "look"]  # fixtures


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three colors in four images: persons 0, 4, 6 are red, 1, 2, 7 green, 3, 5 blue."""
    return make_gallery(tmp_path)


@pytest.fixture
def made(folder: Path, tmp_path: Path) -> Labeling:
    return Labeling(Gallery.open(folder), tmp_path / "labels.json")


def groups(made: Labeling) -> dict[str, set[int]]:
    return {one["name"]: set(one["persons"]) for one in made.facts()["groups"]}


# ---- proposals -----------------------------------------------------------------------------------


def test_colors_are_grouped(made: Labeling) -> None:
    assert sorted(map(sorted, groups(made).values())) == [[0, 4, 6], [1, 2, 7], [3, 5]]
    facts = made.facts()
    assert facts["unlabeled"] == [] and not facts["undo"] and facts["images"] == 4
    last = next(one for one in facts["groups"] if 0 in one["persons"])["persons"][-1]
    assert last == 6, "the orange one looks least like its group"


def test_persons_of_a_synthetic_data_set(tmp_path: Path) -> None:
    """Embeddings of the true boxes: the colors of five parts of the body."""
    options = SyntheticConfig(train_images=16, test_images=4, train_ids=6, test_ids=2,
                              width=240, height=180, difficulty=0, look_alike_share=0,
                              labeled_share=1, quirks=False)  # fmt: skip
    write_prw(tmp_path, options, progress=False)
    feats, pids, images = [], [], []
    for record in load_prw(tmp_path, "train"):
        pixels = np.asarray(Image.open(record["file_name"]).convert("RGB"), float)
        for one in record["annotations"]:
            x1, y1, x2, y2 = (round(value) for value in one["bbox"])
            inner = pixels[y1:y2, x1 + (x2 - x1) // 3 : x2 - (x2 - x1) // 3]
            parts = [part.reshape(-1, 3) for part in np.array_split(inner, 5)]
            feat = np.concatenate([np.median(part, axis=0) for part in parts]) - 100
            feats.append(feat / np.linalg.norm(feat))
            pids.append(one["person_id"])
            images.append(record["image_id"])
    found = propose_groups(np.array(feats, np.float32), np.array(images))
    truth = np.array(pids)
    same = found[:, None] == found[None]
    same &= (found >= 0)[:, None] & ~np.eye(len(found), dtype=bool)
    right = truth[:, None] == truth[None]
    precision = (same & right).sum() / same.sum()
    assert len(found) > 80 and (found >= 0).mean() > 0.7 and precision > 0.9, precision
    for group in range(found.max() + 1):
        own = np.array(images)[found == group]
        assert len(own) == len(set(own.tolist())) >= 2, "a person is in an image once"


def test_too_few_persons_are_no_group() -> None:
    feats = unit_vectors(np.random.default_rng(0), 2, 4)
    assert propose_groups(feats, np.arange(2)).tolist() == [UNLABELED] * 2
    assert propose_groups(feats[:0], np.arange(0)).tolist() == []


def test_two_alike_in_one_image(tmp_path: Path) -> None:
    feats = np.repeat(np.eye(4, dtype=np.float32)[:2], 3, axis=0)
    found = propose_groups(feats, np.array([0, 1, 1, 0, 1, 2]))
    assert found[[0, 3, 4, 5]].tolist() == [1, 0, 0, 0]
    assert sorted(found[[1, 2]].tolist()) == [UNLABELED, 1]


# ---- edits ---------------------------------------------------------------------------------------


def test_merge_split_reject_remove_and_undo(made: Labeling) -> None:
    before = groups(made)
    made.edit(Edit("merge", [0, 3]))
    assert {0, 3, 4, 5, 6} in groups(made).values() and len(groups(made)) == 2
    made.edit(Edit("split", [3, 5]))
    assert {3, 5} in groups(made).values()
    made.edit(Edit("reject", [6]))
    made.edit(Edit("remove", [7]))
    facts = made.facts()
    assert facts["unlabeled"] == [6] and facts["removed"] == 1
    made.edit(Edit("merge", [1, 6]))  # a person without identity joins
    assert {1, 2, 6} in groups(made).values()
    for _ in range(5):
        made.edit(Edit("undo"))
    assert groups(made) == before
    with pytest.raises(ValueError, match="nothing to undo"):
        made.edit(Edit("undo"))


def test_names_and_marks(made: Labeling) -> None:
    made.edit(Edit("rename", [0], "  Anna  K. "))
    assert groups(made)["Anna K."] == {0, 4, 6}
    with pytest.raises(ValueError, match=r"another group is named 'Anna K\.'; merge"):
        made.edit(Edit("rename", [1], "Anna K."))
    made.edit(Edit("check", [4]))
    facts = made.facts()
    assert [one["checked"] for one in facts["groups"]] == [False, False, True], "checked ones last"
    made.edit(Edit("merge", [0, 1]))
    assert groups(made)["Anna K."] == {0, 1, 2, 4, 6, 7}
    assert next(o for o in made.facts()["groups"] if o["name"] == "Anna K.")["twice"]
    made.edit(Edit("check", [0]))
    assert not any(one["checked"] for one in made.facts()["groups"])


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (Edit("merge", []), "no such persons; they are numbered 0 to 7"),
        (Edit("split", [8]), "no such persons"),
        (Edit("split", [-1]), "no such persons"),
        (Edit("rename", [0], "  "), "1 to 100 characters"),
        (Edit("rename", [0], "x" * 101), "1 to 100 characters"),
        (Edit("paint", [0]), "unknown action 'paint'"),
    ],
)
def test_invalid_edits(made: Labeling, edit: Edit, message: str) -> None:
    before = made.output.read_text()
    with pytest.raises(ValueError, match=message):
        made.edit(edit)
    assert made.output.read_text() == before
    made.edit(Edit("reject", [0]))
    with pytest.raises(ValueError, match="choose a person of a group"):
        made.edit(Edit("rename", [0], "Eva"))


def test_an_edit_that_cannot_be_written_is_not_applied(made: Labeling, monkeypatch) -> None:
    before = groups(made)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(labeling, "write_document", full)
    with pytest.raises(OSError, match="No space"):
        made.edit(Edit("reject", [0]))
    assert groups(made) == before and not made.facts()["undo"]


# ---- the file ------------------------------------------------------------------------------------


def test_the_file_can_be_trained_on(made: Labeling, tmp_path: Path) -> None:
    made.edit(Edit("remove", [7]))
    made.edit(Edit("reject", [3]))
    records = load_person_search_json(made.output)
    assert [len(record["annotations"]) for record in records] == [2, 2, 2, 1]
    assert records[0]["file_name"] == str(tmp_path / "images" / "a.png")
    assert records[0]["annotations"][0]["bbox"] == list(LEFT)
    assert records[1]["annotations"][1]["person_id"] == UNLABELED
    assert [record["cam_id"] for record in records] == [1, 1, 2, 2]
    names = {one["file_name"] for one in json.loads(made.output.read_text())["images"]}
    assert names == {f"images/{x}.png" for x in "abcd"}, "the data set can be moved"


def test_labeling_is_continued(made: Labeling, folder: Path, tmp_path: Path) -> None:
    for edit in (Edit("rename", [0], "Anna"), Edit("check", [0]), Edit("remove", [7])):
        made.edit(edit)
    again = Labeling(Gallery.open(folder), made.output)
    assert again.facts() == {**made.facts(), "undo": False}
    paint_halves(tmp_path / "images" / "e.png", ((250, 0, 0), (0, 0, 250)))
    index_images(embedder(), folder, find_sources([tmp_path / "images"]))
    more = Labeling(Gallery.open(folder), made.output).facts()
    assert len(more["unlabeled"]) == 2 and more["removed"] == 1 and more["images"] == 5


def test_labeling_is_continued_with_a_lower_score(folder: Path, tmp_path: Path) -> None:
    """Persons that the file was not about have not been removed."""
    output = tmp_path / "labels.json"
    made = Labeling(Gallery.open(folder), output, min_score=0.8)
    assert json.loads(output.read_text())["info"]["min_score"] == 0.8 and len(made.boxes) == 4
    made.edit(Edit("remove", [3]))
    again = Labeling(Gallery.open(folder), output)
    facts = again.facts()
    assert facts["removed"] == 1 and len(again.boxes) == 8
    assert len(facts["unlabeled"]) == 4 + len(made.facts()["unlabeled"])
    again.edit(Edit("split", facts["unlabeled"][:1]))
    text = output.read_text()
    with pytest.raises(ValueError, match=r"of score 0 or more; with --min-score 0\.8 some would"):
        Labeling(Gallery.open(folder), output, min_score=0.8)
    assert output.read_text() == text


def test_labels_without_a_person_in_the_gallery(made: Labeling, folder: Path, tmp_path) -> None:
    text = made.output.read_text()
    (tmp_path / "images" / "d.png").unlink()
    options = IndexOptions(prune=True)
    index_images(embedder(), folder, find_sources([tmp_path / "images"]), options)
    with pytest.raises(
        ValueError, match=r"has 2 persons that the gallery lacks, .*'images/d\.png'"
    ):
        Labeling(Gallery.open(folder), made.output)
    assert made.output.read_text() == text
    assert Labeling(Gallery.open(folder), tmp_path / "other.json").num_images == 3


def test_more_images_than_a_server_lists_at_once(folder: Path, tmp_path: Path, monkeypatch) -> None:
    pytest.importorskip("milvus_lite", reason="galleries in Milvus need the extra 'milvus'")
    monkeypatch.setattr("person_search.search.milvus_gallery.MOST", 3)
    source = GalleryStore.open(folder)
    dim, model = source.manifest.dim, source.manifest.model
    target = GalleryStore.open_or_create(f"milvus+lite://{tmp_path}/g.db", dim, model)
    copy(source, target)
    assert len(target.gallery().list_images(0, 4)[1]) == 3
    assert Labeling(target.gallery(), tmp_path / "labels.json").num_images == 4
    target.close()


def test_other_files_are_not_overwritten(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "mine.json"
    path.write_text('{"images": [], "annotations": []}')
    with pytest.raises(ValueError, match=r"mine\.json exists and was not written by"):
        Labeling(Gallery.open(folder), path)
    assert path.read_text() == '{"images": [], "annotations": []}'


def test_no_persons(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(GalleryError, match=r"has 0 persons of score 0\.95 or more in 4 images"):
        Labeling(Gallery.open(folder), tmp_path / "l.json", min_score=0.95)
    only = Labeling(Gallery.open(folder), tmp_path / "l.json", min_score=0.8)
    assert len(only.boxes) == 4


# ---- the page ------------------------------------------------------------------------------------


@pytest.fixture
def page(made: Labeling) -> Iterator[Page]:
    with closing(bind("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
        access = Access(TOKEN, port)
        app = create_label_app(made, access)
        with answering(app, listening):
            yield Page(None, app, access, port)


def test_the_interface(page: Page, made: Labeling) -> None:
    assert page.get("/api/label", authorization="").status == 403
    facts = page.get("/api/label").json
    assert facts["file"] == "labels.json" and len(facts["groups"]) == 3
    place = f"/api/label/{facts['edition']}"
    crop = Image.open(io.BytesIO(page.get(f"{place}/0").body))
    assert np.allclose(crop.getpixel((crop.width // 2, crop.height // 2)), (250, 0, 0), atol=12)
    assert Image.open(io.BytesIO(page.get(f"{place}/0?scene=1").body)).size[0] > 100
    answer = page.post("/api/label", {"action": "reject", "persons": [0]})
    assert answer.status == 200 and answer.json["unlabeled"] == [0]
    assert made.facts()["unlabeled"] == [0]
    for body, words in (({"action": "split", "persons": [99]}, "no such persons"),
                        ({"action": "split", "path": "x"}, "body.path")):  # fmt: skip
        answer = page.post("/api/label", body)
        assert answer.status == 422 and words in answer.json["error"]
    assert page.get(f"{place}/99").status == 422
    assert page.get("/api/gallery").status == 404
    everyone = list(range(8))
    answer = page.post("/api/label", {"action": "reject", "persons": everyone * 5_000})
    assert answer.status == 200 and answer.json["unlabeled"] == everyone
    answer = page.post("/api/label", {"action": "reject", "persons": everyone * 25_000})
    assert answer.status == 413 and "longer than 512 kB" in answer.json["error"]


@needs_browser
def test_in_a_browser(chromium, page: Page, made: Labeling, look) -> None:
    context = chromium.new_context(viewport={"width": 1100, "height": 800})
    context.set_default_timeout(60_000)
    tab = context.new_page()
    told: list[str] = []
    tab.on("console", lambda message: told.append(message.text))
    sent: list[dict] = []
    tab.on("request", lambda one: sent.append(one.post_data_json) if one.post_data else None)
    tab.goto(page.address)
    tab.wait_for_selector("#summary:has-text('3 groups (0 checked), 0 persons without identity')")
    assert tab.locator(".crop-of img").count() == 8 and images_are_loaded(tab)
    look(tab, "label", full_page=True)
    # the mouse: a red one and a blue one, whose groups are merged
    tab.click(".crop-of[data-person='0']")
    tab.click(".crop-of[data-person='3']")
    assert tab.inner_text("#count") == "2 selected"
    look(tab, "label_selected")
    tab.click("[data-action=merge]")
    tab.wait_for_selector("#status:has-text('Merged.')")
    assert {0, 3, 4, 5, 6} in groups(made).values()
    # the keyboard alone
    tab.keyboard.press("u")
    tab.wait_for_selector("#status:has-text('Undone.')")
    tab.focus(".crop-of >> nth=0")
    tab.keyboard.press("m")
    tab.wait_for_selector("#error:has-text('two groups or more')")
    tab.keyboard.press("ArrowRight")
    tab.keyboard.press("x")
    tab.wait_for_selector("#status:has-text('without identity')")
    rejected = made.facts()["unlabeled"]
    assert len(rejected) == 1
    assert tab.evaluate("document.activeElement.dataset.person") == str(rejected[0])
    tab.keyboard.press("ArrowUp")  # the group before
    tab.keyboard.press("r")
    tab.wait_for_selector("#naming[open]")
    tab.keyboard.type("Anna")
    tab.keyboard.press("Enter")
    tab.wait_for_selector("h2:has-text('Anna')")
    tab.keyboard.press("a")
    tab.keyboard.press("c")
    tab.wait_for_selector(".checked h2:has-text('Anna')")
    assert len(groups(made)["Anna"]) > len(sent[-1]["persons"]) == 1, "of all selected ones"
    tab.keyboard.press("v")
    tab.wait_for_selector("#large[open]")
    until(tab, "document.getElementById('large-image').naturalWidth > 0")
    tab.keyboard.press("Escape")
    look(tab, "label_edited", full_page=True)
    assert "Anna" in made.output.read_text() and told == []
    context.close()


# ---- the command ---------------------------------------------------------------------------------


def test_the_command(tiny_run: Path, search_tool, tmp_path: Path, monkeypatch, capsys) -> None:
    """Indexes, proposes and writes in this process; the page ends as soon as it would serve."""
    monkeypatch.setattr("uvicorn.Server.run", lambda one, sockets: None)
    model = {"config_file": tiny_run / "config.yaml", "weights": tiny_run / "weights.pth"}
    output = tmp_path / "own" / "labels.json"
    options = {"output": output, "port": 0, **model}
    assert search_tool("label", source=tmp_path / "images", **options) == 0
    shown = capsys.readouterr().out
    assert "4 images with" in shown and "The labeling of" in shown and "?token=" in shown
    assert shown.splitlines()[-1] == str(output)
    first = output.read_text()
    assert search_tool("label", output=output, port=0) == 0, "without a model"
    assert output.read_text() == first


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"source": "images"}, "--source requires --config-file"),
        ({"min_size": 1}, "--min-size is 1; it must be at least 2"),
        ({"no_token": True, "host": "0.0.0.0", "port": 0}, "--no-token is for loopback"),
        ({"port": 0}, "is not a gallery"),
    ],
)
def test_wrong_options(search_tool, capsys, tmp_path: Path, options: dict, message: str) -> None:
    assert search_tool("label", output=tmp_path / "l.json", **options) == 2
    assert message in capsys.readouterr().err


def test_what_is_missing_is_named(search_tool, capsys, tmp_path: Path, monkeypatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "sklearn" else find(name)
    )
    assert search_tool("label", output=tmp_path / "l.json") == 2
    assert "pip install 'person-search[label]'" in capsys.readouterr().err
