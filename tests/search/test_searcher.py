# SPDX-License-Identifier: Apache-2.0
"""Frames of boxes, galleries and rankings, on a model whose answers can be worked out by hand."""

import json

import numpy as np
import pytest
import torch
from color_model import ColorModel, paint

from person_search.config import build_config
from person_search.data import BadImageError
from person_search.search import Gallery, Match, PersonSearcher

RED, GREEN, BLUE = (250, 0, 0), (0, 250, 0), (0, 0, 250)


@pytest.fixture
def searcher() -> PersonSearcher:
    # pictures of 100 x 80 are enlarged to 200 x 160
    return PersonSearcher(ColorModel(), image_format="RGB", min_size=160, max_size=400)


def test_embedding_is_that_of_the_box(searcher, tmp_path) -> None:
    path = paint(tmp_path / "a.png", {(0, 0, 50, 80): RED, (50, 0, 100, 80): BLUE})
    feats = searcher.embed(path, [(10, 10, 40, 70), (60, 10, 90, 70), (-20, 10, 40, 70)])
    assert np.allclose(feats, [[1, 0, 0], [0, 0, 1], [1, 0, 0]], atol=0.05)
    assert searcher.embed(path, []).shape == (0, 3)


def test_channel_order_of_the_model(tmp_path) -> None:
    path = paint(tmp_path / "a.png", {(0, 0, 100, 80): RED})
    searcher = PersonSearcher(ColorModel(), image_format="BGR", min_size=80, max_size=400)
    assert np.allclose(searcher.embed(path, [(1, 1, 90, 70)]), [[0, 0, 1]], atol=0.05)


def test_box_outside_is_refused(searcher, tmp_path) -> None:
    path = paint(tmp_path / "a.png", {})
    with pytest.raises(ValueError, match="outside"):
        searcher.embed(path, [(200, 10, 240, 70)])


def test_detections_come_in_the_frame_of_the_picture(searcher, tmp_path) -> None:
    path = paint(tmp_path / "a.png", {(0, 0, 50, 80): RED, (50, 0, 100, 80): BLUE})
    gallery = searcher.build_gallery([path])
    assert gallery.boxes.tolist() == [[0, 0, 50, 80], [50, 0, 100, 80]]
    assert gallery.image_index.tolist() == [0, 0] and gallery.left_out == {}


def test_low_scores_do_not_enter_the_gallery(tmp_path) -> None:
    path = paint(tmp_path / "a.png", {(0, 0, 100, 80): RED})
    model = ColorModel()
    for thresh, expected in ((0.5, 2), (0.7, 1), (0.95, 0)):  # scores are 0.9 and 0.6
        searcher = PersonSearcher(model, min_size=80, max_size=100, score_thresh=thresh)
        assert len(searcher.build_gallery([path])) == expected


def test_search_ranks_by_similarity_and_names_each_picture_once(searcher, tmp_path) -> None:
    halves = [(RED, BLUE), (GREEN, GREEN), ((250, 120, 0), (250, 60, 0))]
    paths = [
        paint(tmp_path / f"{i}.png", {(0, 0, 50, 80): a, (50, 0, 100, 80): b})
        for i, (a, b) in enumerate(halves)
    ]
    gallery = searcher.build_gallery(paths)
    matches = gallery.search(np.array([1.0, 0, 0]))
    assert [(m.rank, m.path) for m in matches] == [
        (1, str(paths[0])), (2, str(paths[2])), (3, str(paths[1])),
    ]  # fmt: skip
    assert matches[1].box == (50, 0, 100, 80), "the more similar one of the picture"
    assert [m.rank for m in gallery.search(np.array([1.0, 0, 0]), 2)] == [1, 2]
    skipped = gallery.search(np.array([1.0, 0, 0]), skip=str(paths[0]))
    assert [m.path for m in skipped] == [str(paths[2]), str(paths[1])]
    everyone = gallery.search(np.array([1.0, 0, 0]), per_image=False)
    assert len(everyone) == 6 and [m.rank for m in everyone] == [1, 2, 3, 4, 5, 6]


def test_unreadable_pictures_are_named_and_left_out(searcher, tmp_path, caplog) -> None:
    good = paint(tmp_path / "good.png", {(0, 0, 100, 80): RED})
    bad, absent = tmp_path / "bad.png", tmp_path / "absent.png"
    bad.write_text("nothing")
    gallery = searcher.build_gallery([bad, good, absent], progress=True)
    assert gallery.paths == [str(good)] and set(gallery.image_index.tolist()) == {0}
    assert set(gallery.left_out) == {str(bad), str(absent)}
    assert "bad.png" in caplog.text and "absent.png" in caplog.text


def test_no_readable_picture(searcher, tmp_path) -> None:
    (tmp_path / "bad.png").write_text("nothing")
    with pytest.raises(BadImageError, match=r"none of the 1 pictures.*bad\.png"):
        searcher.build_gallery([tmp_path / "bad.png"])


def test_errors_of_the_model_are_not_taken_for_bad_pictures(tmp_path) -> None:
    class Broken(ColorModel):
        def forward(self, batched_inputs):
            raise ValueError("a defect")

    path = paint(tmp_path / "a.png", {})
    with pytest.raises(ValueError, match="a defect"):
        PersonSearcher(Broken(), min_size=80, max_size=100).build_gallery([path])


def test_empty_gallery_gives_no_match() -> None:
    empty = Gallery([], np.zeros(0, int), np.zeros((0, 4)), np.zeros(0), np.zeros((0, 3)))
    assert empty.search(np.array([1.0, 0, 0])) == []


def test_match_as_json() -> None:
    match = Match(1, "a.png", (1.04, 2.0, 3.06, 4.0), 0.123456, -0.5)
    assert json.loads(json.dumps(match.to_json())) == {
        "rank": 1, "image": "a.png", "box": [1.0, 2.0, 3.1, 4.0],
        "score": 0.1235, "similarity": -0.5,
    }  # fmt: skip


# ---- loading a trained model ---------------------------------------------------------------------


@pytest.fixture
def cfg(tiny_run):
    return build_config(tiny_run / "config.yaml")


def test_query_and_detection_of_one_box_agree(cfg, tiny_run, pictures) -> None:
    """A real model: embedding the box of a detection gives the detection's embedding."""
    searcher = PersonSearcher.from_config(cfg, str(tiny_run / "weights.pth"))
    gallery = searcher.build_gallery(pictures[:1])
    assert len(gallery) > 0
    assert np.allclose(np.linalg.norm(gallery.reid_feats, axis=1), 1, atol=1e-4)
    feats = searcher.embed(pictures[0], gallery.boxes[:1])
    assert feats[0] @ gallery.reid_feats[0] > 0.999


def test_weights_must_be_named(cfg) -> None:
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.WEIGHTS = ""
    with pytest.raises(ValueError, match="no weights are given"):
        PersonSearcher.from_config(cfg)


def test_absent_weights(cfg) -> None:
    with pytest.raises(FileNotFoundError, match="there is no weight file 'nowhere.pth'"):
        PersonSearcher.from_config(cfg, "nowhere.pth")


@pytest.mark.parametrize("content", [b"", b"no weights\n", b"PK\x03\x04 cut short"])
def test_damaged_weights(content: bytes, cfg, tmp_path) -> None:
    (tmp_path / "bad.pth").write_bytes(content)
    with pytest.raises(ValueError, match=r"bad\.pth' is damaged, or is none"):
        PersonSearcher.from_config(cfg, str(tmp_path / "bad.pth"))


def test_weights_of_another_model(cfg, tmp_path) -> None:
    torch.save({"model": {"something.else": torch.zeros(3)}}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match=r"other\.pth.* is of another architecture"):
        PersonSearcher.from_config(cfg, str(tmp_path / "other.pth"))
