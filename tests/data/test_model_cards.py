# SPDX-License-Identifier: Apache-2.0
"""Drawn images and photographs are told apart, and the card of a training."""

import json
import math

import cv2
import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from person_search.config import config_hash, default_config
from person_search.data import color_detail, kind_of_images, training_card
from person_search.data.datasets.builtin import register_person_search_json
from person_search.data.model_cards import MEASURED_IMAGES, dataset_kind
from person_search.data.synthetic.camera import build_camera
from person_search.utils.model_card import KINDS


def drawn_scene(number: int, size: tuple[int, int] = (160, 120)) -> np.ndarray:
    """A place of the synthetic data with its sensor noise, without persons."""
    camera = build_camera(5, 1, number, size, 0.3)
    image = camera.place[: size[1], : size[0]] + camera.noise[: size[1], : size[0], None]
    return image.clip(0, 255).astype(np.uint8)


def textured(number: int, gray: bool = False) -> np.ndarray:
    """Colors that vary at all scales, as in a photograph."""
    rng, image = np.random.default_rng(number), np.full((120, 160, 3), 128.0)
    for scale in (2, 4, 8, 16, 32):
        noise = rng.normal(0, 12, (120 // scale + 2, 160 // scale + 2, 3))
        noise = noise.mean(2, keepdims=True).repeat(3, 2) if gray else noise
        image += cv2.resize(noise, (160, 120), interpolation=cv2.INTER_CUBIC)
    return image.clip(0, 255).astype(np.uint8)


def test_drawn_and_textured_images_are_far_apart() -> None:
    drawn = [color_detail(drawn_scene(i)) for i in range(6)]
    real = [color_detail(textured(i)) for i in range(6)]
    assert max(drawn) < 0.45 < min(real)
    assert kind_of_images(drawn) == "drawn" and kind_of_images(real) == "photographs"


def test_size_noise_and_compression_do_not_matter() -> None:
    image = textured(0)
    detail = color_detail(image)
    large = cv2.resize(image, (640, 480), interpolation=cv2.INTER_CUBIC)
    assert color_detail(large) == pytest.approx(detail, abs=0.05)
    assert color_detail(np.ascontiguousarray(image[:, :, ::-1])) == pytest.approx(detail, abs=0.1)
    content = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 60])[1]
    assert color_detail(cv2.imdecode(content, cv2.IMREAD_COLOR)) == pytest.approx(detail, abs=0.1)
    for shape in ((1, 1, 3), (3, 900, 3)):
        assert not 0 < color_detail(np.zeros(shape, np.uint8))


def test_gray_images_say_nothing() -> None:
    assert math.isnan(color_detail(textured(0, gray=True)))
    assert kind_of_images([math.nan, math.nan]) == kind_of_images([]) == "unknown"
    assert kind_of_images([math.nan, 0.6, 0.6, 0.6, 0.6]) == "photographs"


@pytest.mark.parametrize(
    ("detail", "number", "kind"),
    [
        (0.42, 32, "photographs"), (0.42, 4, "unknown"), (0.6, 1, "photographs"),
        (0.25, 8, "drawn"), (0.25, 1, "unknown"), (0.36, 1000, "unknown"),
    ],
)  # fmt: skip
def test_few_images_must_be_far_from_the_threshold(detail, number, kind) -> None:
    assert kind_of_images([detail] * number) == kind


# ---- data sets ---------------------------------------------------------------------------------
def write_json(folder, image: np.ndarray, **keys) -> str:
    folder.mkdir(exist_ok=True)
    images, boxes = [], []
    for number in range(MEASURED_IMAGES + 3):
        Image.fromarray(image).save(folder / f"{number}.png")
        images.append({"id": number, "file_name": f"{number}.png", "width": 160, "height": 120})
        boxes.append({"id": number, "image_id": number, "bbox": [5, 5, 30, 60],
                      "person_id": number % 3})  # fmt: skip
    (folder / "d.json").write_text(json.dumps({"images": images, "annotations": boxes, **keys}))
    return str(folder / "d.json")


def test_card_of_a_training(tmp_path) -> None:
    register_person_search_json("photos", write_json(tmp_path / "a", textured(0)))
    register_person_search_json("art", write_json(tmp_path / "b", textured(0), kind="drawn"))
    cfg = default_config()
    cfg.DATASETS.TRAIN = ("photos",)
    cfg.MODEL.LICENSE = "MIT"
    card = training_card(cfg)
    assert (card.kind, card.identities, card.images) == ("photographs", 3, MEASURED_IMAGES + 3)
    assert card.data == ("photos",) and card.license == "MIT" and not card.metrics
    assert card.versions["torch"] == torch.__version__ and card.config == config_hash(cfg)
    cfg.DATASETS.TRAIN = ("art",)
    assert training_card(cfg, "hhcl teacher").kind == "drawn"
    assert training_card(cfg, "hhcl teacher").method == "hhcl teacher"
    cfg.DATASETS.TRAIN = ("photos", "art")
    assert training_card(cfg).kind == "mixed"


def test_kinds_of_the_builtin_data_sets() -> None:
    kinds = {name: MetadataCatalog.get(f"{name}_{split}").image_kind
             for name in ("cuhk_sysu", "prw", "synthetic_cuhk_sysu", "synthetic_prw")
             for split in ("train", "test")}  # fmt: skip
    assert kinds == {
        "cuhk_sysu": "photographs",
        "prw": "photographs",
        "synthetic_cuhk_sysu": "drawn",
        "synthetic_prw": "drawn",
    }
    assert set(kinds.values()) < set(KINDS)


def test_a_wrong_kind_names_the_data_set(tmp_path) -> None:
    MetadataCatalog.get("sketched").image_kind = "sketch"
    with pytest.raises(ValueError, match="'sketched' has the kind 'sketch'; allowed: drawn, photo"):
        dataset_kind("sketched", [])
    MetadataCatalog.pop("sketched")
    file = write_json(tmp_path / "a", textured(0), kind="sketch")
    register_person_search_json("mine", file)
    with pytest.raises(ValueError, match="kind is 'sketch'; allowed: drawn, photographs"):
        DatasetCatalog.get("mine")


def test_unreadable_images_are_left_to_the_training(tmp_path) -> None:
    (tmp_path / "bad.png").write_bytes(b"no image")
    assert (
        dataset_kind("unregistered_name", [{"file_name": str(tmp_path / "bad.png")}]) == "unknown"
    )
    MetadataCatalog.pop("unregistered_name", None)


# ---- config hash -------------------------------------------------------------------------------
def test_the_config_hash_covers_what_the_model_computes() -> None:
    cfg = default_config()
    plain = config_hash(cfg)
    for key, value in (("MODEL.WEIGHTS", "x.pth"), ("MODEL.DEVICE", "cpu"), ("SEED", 3),
                       ("MODEL.LICENSE", "MIT"), ("SOLVER.MAX_ITER", 7)):  # fmt: skip
        cfg.merge_from_list([key, value])
    assert config_hash(cfg) == plain
    for key, value in (("MODEL.REID.EMBED_DIM", 64), ("INPUT.MIN_SIZE_TEST", 100)):
        other = cfg.clone()
        other.merge_from_list([key, value])
        assert config_hash(other) != plain
    cfg.MODEL.NEW_KEY = 1  # of a project
    assert config_hash(cfg) != plain
