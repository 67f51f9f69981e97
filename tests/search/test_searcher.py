# SPDX-License-Identifier: Apache-2.0
"""Frames of boxes, galleries and rankings, on a model whose answers can be worked out by hand."""

import numpy as np
import pytest
import torch
from color_model import ColorModel, paint

from person_search.config import build_config
from person_search.search import PersonSearcher, read_picture

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
    found = searcher.detect(read_picture(path))
    assert found.pred_boxes.tensor.tolist() == [[0, 0, 50, 80], [50, 0, 100, 80]]


def test_low_scores_are_left_out(tmp_path) -> None:
    picture = read_picture(paint(tmp_path / "a.png", {(0, 0, 100, 80): RED}))
    model = ColorModel()
    for thresh, expected in ((0.5, 2), (0.7, 1), (0.95, 0)):  # scores are 0.9 and 0.6
        searcher = PersonSearcher(model, min_size=80, max_size=100, score_thresh=thresh)
        assert len(searcher.detect(picture)) == expected


def test_length_of_the_embedding(searcher) -> None:
    assert searcher.embed_dim == 3


def test_identity_is_that_of_weights_and_settings() -> None:
    def identity(value: float = 1.0, **settings):
        model = ColorModel()
        model.weight = torch.nn.Parameter(torch.full((2,), value))
        return PersonSearcher(model, **settings).identity

    assert identity().differences(identity()) == []
    assert "weights" in identity().differences(identity(2.0))[0]
    assert identity().differences(identity(min_size=400)) == ["INPUT.MIN_SIZE_TEST (800, here 400)"]
    strict = identity(score_thresh=0.9)
    assert identity().differences(strict) == []
    assert len(identity().differences(strict, detection=True)) == 1


# ---- loading a trained model ---------------------------------------------------------------------


@pytest.fixture
def cfg(tiny_run):
    return build_config(tiny_run / "config.yaml")


def test_query_and_detection_of_one_box_agree(cfg, tiny_run, pictures) -> None:
    """A real model: embedding the box of a detection gives the detection's embedding."""
    searcher = PersonSearcher.from_config(cfg, str(tiny_run / "weights.pth"))
    found = searcher.detect(read_picture(pictures[0], searcher.image_format))
    assert len(found) > 0
    reid_feats = found.reid_feats.numpy()
    assert np.allclose(np.linalg.norm(reid_feats, axis=1), 1, atol=1e-4)
    feats = searcher.embed(pictures[0], found.pred_boxes.tensor[:1].tolist())
    assert feats[0] @ reid_feats[0] > 0.999


def test_identity_needs_no_file_names(cfg, tiny_run, tmp_path) -> None:
    """The same weights in another file, on another machine, are the same model."""
    mine = PersonSearcher.from_config(cfg, str(tiny_run / "weights.pth")).identity
    torch.save(torch.load(tiny_run / "weights.pth"), tmp_path / "copy.pth")
    other = cfg.clone()
    other.defrost()
    other.MODEL.WEIGHTS = "elsewhere.pth"
    assert mine == PersonSearcher.from_config(other, str(tmp_path / "copy.pth")).identity
    other.MODEL.PSDIFF.STEPS += 1
    changed = PersonSearcher.from_config(other, str(tmp_path / "copy.pth")).identity
    assert [d.split(" ")[0] for d in mine.differences(changed)] == ["MODEL.PSDIFF.STEPS"]


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
