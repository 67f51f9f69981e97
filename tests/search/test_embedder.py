# SPDX-License-Identifier: Apache-2.0
"""Box frames, embeddings and identities of a model whose output is known in advance."""

import numpy as np
import pytest
import torch
from color_model import ColorModel, paint

from person_search.config import build_config
from person_search.search import PersonEmbedder, read_image

RED, GREEN, BLUE = (250, 0, 0), (0, 250, 0), (0, 0, 250)


@pytest.fixture
def embedder() -> PersonEmbedder:
    # images of 100 x 80 are enlarged to 200 x 160
    return PersonEmbedder(ColorModel(), image_format="RGB", min_size=160, max_size=400)


def test_embedding_is_that_of_the_box(embedder, tmp_path) -> None:
    path = paint(tmp_path / "a.png", {(0, 0, 50, 80): RED, (50, 0, 100, 80): BLUE})
    feats = embedder.embed(path, [(10, 10, 40, 70), (60, 10, 90, 70), (-20, 10, 40, 70)])
    assert np.allclose(feats, [[1, 0, 0], [0, 0, 1], [1, 0, 0]], atol=0.05)
    assert embedder.embed(path, []).shape == (0, 3)


def test_channel_order_of_the_model(tmp_path) -> None:
    path = paint(tmp_path / "a.png", {(0, 0, 100, 80): RED})
    embedder = PersonEmbedder(ColorModel(), image_format="BGR", min_size=80, max_size=400)
    assert np.allclose(embedder.embed(path, [(1, 1, 90, 70)]), [[0, 0, 1]], atol=0.05)


def test_box_outside_is_refused(embedder, tmp_path) -> None:
    path = paint(tmp_path / "a.png", {})
    with pytest.raises(ValueError, match="outside"):
        embedder.embed(path, [(200, 10, 240, 70)])


def test_detections_come_in_the_frame_of_the_image(embedder, tmp_path) -> None:
    path = paint(tmp_path / "a.png", {(0, 0, 50, 80): RED, (50, 0, 100, 80): BLUE})
    found = embedder.detect(read_image(path))
    assert found.pred_boxes.tensor.tolist() == [[0, 0, 50, 80], [50, 0, 100, 80]]


def test_low_scores_are_left_out(tmp_path) -> None:
    image = read_image(paint(tmp_path / "a.png", {(0, 0, 100, 80): RED}))
    model = ColorModel()
    for thresh, expected in ((0.5, 2), (0.7, 1), (0.95, 0)):  # scores are 0.9 and 0.6
        embedder = PersonEmbedder(model, min_size=80, max_size=100, score_thresh=thresh)
        assert len(embedder.detect(image)) == expected


def test_length_of_the_embedding(embedder) -> None:
    assert embedder.embed_dim == 3


def test_identity_is_that_of_weights_and_settings() -> None:
    def identity(value: float = 1.0, **settings):
        model = ColorModel()
        model.weight = torch.nn.Parameter(torch.full((2,), value))
        return PersonEmbedder(model, **settings).identity

    assert identity().differences(identity()) == []
    assert "weights" in identity().differences(identity(2.0))[0]
    assert identity().differences(identity(min_size=400)) == ["INPUT.MIN_SIZE_TEST (800, here 400)"]
    strict = identity(score_thresh=0.9)
    assert identity().differences(strict) == []
    assert len(identity().differences(strict, detection=True)) == 1


def test_low_precision_belongs_to_the_detection(monkeypatch) -> None:
    """Images of a gallery share one precision; a query may have another one."""
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True})
    exact = PersonEmbedder(ColorModel()).identity
    assert exact == PersonEmbedder(ColorModel(), precision="eager").identity
    low = PersonEmbedder(ColorModel(), precision="auto").identity
    assert exact.differences(low) == []
    assert exact.differences(low, detection=True) == ["TEST.PRECISION (None, here bfloat16)"]
    monkeypatch.setattr(torch.cpu, "get_capabilities", dict)
    assert exact == PersonEmbedder(ColorModel(), precision="auto").identity


# ---- loading a trained model ---------------------------------------------------------------------


@pytest.fixture
def cfg(tiny_run):
    return build_config(tiny_run / "config.yaml")


def test_query_and_detection_of_one_box_agree(cfg, tiny_run, images) -> None:
    """A real model: embedding the box of a detection gives the detection's embedding."""
    embedder = PersonEmbedder.from_config(cfg, str(tiny_run / "weights.pth"))
    found = embedder.detect(read_image(images[0], embedder.image_format))
    assert len(found) > 0
    reid_feats = found.reid_feats.numpy()
    assert np.allclose(np.linalg.norm(reid_feats, axis=1), 1, atol=1e-4)
    feats = embedder.embed(images[0], found.pred_boxes.tensor[:1].tolist())
    assert feats[0] @ reid_feats[0] > 0.999


def test_optimized_model_finds_the_same(cfg, tiny_run, images) -> None:
    cfg = cfg.clone()
    cfg.defrost()
    results = []
    for cfg.TEST.PRECISION in ("eager", "float32"):
        embedder = PersonEmbedder.from_config(cfg, str(tiny_run / "weights.pth"))
        results.append((embedder.identity, embedder.detect(images[0])))
    (identity, eager), (other, fast) = results
    assert identity == other and len(eager) == len(fast) > 0
    boxes = [found.pred_boxes.tensor for found in (eager, fast)]
    torch.testing.assert_close(*boxes, atol=1e-2, rtol=0)
    torch.testing.assert_close(eager.reid_feats, fast.reid_feats, atol=1e-4, rtol=0)


def test_identity_needs_no_file_names(cfg, tiny_run, tmp_path) -> None:
    """The same weights in another file, on another machine, are the same model."""
    mine = PersonEmbedder.from_config(cfg, str(tiny_run / "weights.pth")).identity
    torch.save(torch.load(tiny_run / "weights.pth"), tmp_path / "copy.pth")
    other = cfg.clone()
    other.defrost()
    other.MODEL.WEIGHTS = "elsewhere.pth"
    assert mine == PersonEmbedder.from_config(other, str(tmp_path / "copy.pth")).identity
    other.MODEL.PSDIFF.STEPS += 1
    changed = PersonEmbedder.from_config(other, str(tmp_path / "copy.pth")).identity
    assert [d.split(" ")[0] for d in mine.differences(changed)] == ["MODEL.PSDIFF.STEPS"]


def test_weights_must_be_named(cfg) -> None:
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.WEIGHTS = ""
    with pytest.raises(ValueError, match="no weights are given"):
        PersonEmbedder.from_config(cfg)


def test_absent_weights(cfg) -> None:
    with pytest.raises(FileNotFoundError, match="the weight file 'nowhere.pth' does not exist"):
        PersonEmbedder.from_config(cfg, "nowhere.pth")


@pytest.mark.parametrize("content", [b"", b"no weights\n", b"PK\x03\x04 cut short"])
def test_damaged_weights(content: bytes, cfg, tmp_path) -> None:
    (tmp_path / "bad.pth").write_bytes(content)
    with pytest.raises(ValueError, match=r"bad\.pth' is (empty|not a checkpoint|truncated)"):
        PersonEmbedder.from_config(cfg, str(tmp_path / "bad.pth"))


def test_weights_of_another_model(cfg, tmp_path) -> None:
    torch.save({"model": {"something.else": torch.zeros(3)}}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match=r"other\.pth.* is for another architecture"):
        PersonEmbedder.from_config(cfg, str(tmp_path / "other.pth"))
