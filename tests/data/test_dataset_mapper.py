# SPDX-License-Identifier: Apache-2.0
"""The mapper: boxes and identities stay together, and errors name bad input."""

import copy
import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.config import get_cfg
from detectron2.data import MapDataset
from detectron2.data import transforms as T
from detectron2.structures import BoxMode
from hypothesis import given
from hypothesis import strategies as st
from mat_trees import small_cuhk_sysu, write_image
from PIL import Image

from person_search.config import add_person_search_config
from person_search.data import (
    MAPPER_REGISTRY,
    BadImageError,
    PersonSearchMapper,
    RecordImageReader,
    build_mapper,
    load_cuhk_sysu,
)
from person_search.schema import NO_QUERY_ID

HEIGHT, WIDTH = 60, 100


def make_record(path: Path, boxes: list, pids: list | None = None, queries: tuple = ()) -> dict:
    pids = list(range(len(boxes))) if pids is None else pids
    mode = BoxMode.XYXY_ABS
    return {
        "file_name": str(path),
        "image_id": 7,
        "height": HEIGHT,
        "width": WIDTH,
        "cam_id": 3,
        "annotations": [
            {"bbox": list(box), "bbox_mode": mode, "category_id": 0, "person_id": pid}
            for box, pid in zip(boxes, pids, strict=True)
        ],
        "queries": [
            {"query_id": index, "bbox": list(box), "bbox_mode": mode} for index, box in queries
        ],
    }


@pytest.fixture
def image_file(tmp_path: Path) -> Path:
    path = tmp_path / "image_file.jpg"
    write_image(path, HEIGHT, WIDTH)
    return path


@pytest.fixture
def cfg():
    cfg = get_cfg()
    add_person_search_config(cfg)
    cfg.INPUT.MIN_SIZE_TRAIN = (120,)
    cfg.INPUT.MIN_SIZE_TEST = 30
    cfg.INPUT.RANDOM_FLIP = "none"
    return cfg


def make_mapper(*augmentations, is_train: bool = True, on_bad_image: str = "raise"):
    return PersonSearchMapper(
        is_train,
        augmentations=list(augmentations),
        image_format="BGR",
        on_bad_image=on_bad_image,
    )


def test_train_output(cfg, image_file: Path) -> None:
    record = make_record(image_file, [(10, 5, 30, 50), (60, 0, 100, 60)], [4, -1])
    before = copy.deepcopy(record)
    output = build_mapper(cfg, True)(record)
    assert record == before, "the record belongs to the data set and must not change"
    assert output["image"].shape == (3, 120, 200) and output["image"].dtype == torch.uint8
    assert (output["height"], output["width"], output["image_id"]) == (HEIGHT, WIDTH, 7)
    assert not {"annotations", "queries", "bad_image"} & set(output)
    instances = output["instances"]
    assert instances.image_size == (120, 200)
    assert instances.gt_boxes.tensor.tolist() == [[20, 10, 60, 100], [120, 0, 200, 120]]
    assert instances.gt_classes.tolist() == [0, 0]
    assert instances.gt_pids.tolist() == [4, -1] and instances.gt_pids.dtype == torch.int64


def test_test_output(cfg, image_file: Path) -> None:
    record = make_record(
        image_file, [(10, 10, 30, 50)], queries=((12, (10, 10, 30, 50)), (5, (-4, 0, 50, 70)))
    )
    output = build_mapper(cfg, False)(record)
    assert set(output) == {
        "image",
        "height",
        "width",
        "image_id",
        "file_name",
        "cam_id",
        "queries",
    }
    assert output["image"].shape == (3, 30, 50)
    assert (output["height"], output["width"], output["cam_id"]) == (HEIGHT, WIDTH, 3)
    queries = output["queries"]
    assert queries.image_size == (30, 50)
    assert queries.pred_boxes.tensor.tolist() == [[5, 5, 15, 25], [0, 0, 25, 30]]
    assert queries.query_ids.tolist() == [12, 5] and queries.pred_classes.tolist() == [0, 0]


def test_a_test_image_without_queries_has_empty_fields(cfg, image_file: Path) -> None:
    queries = build_mapper(cfg, False)(make_record(image_file, []))["queries"]
    assert len(queries) == 0 and queries.pred_boxes.tensor.shape == (0, 4)
    assert queries.query_ids.dtype == torch.int64


def test_true_boxes_follow_the_queries(cfg, image_file: Path) -> None:
    # the second box reaches over the border, the third lies outside
    boxes = [(10, 10, 30, 50), (80, 20, 120, 70), (130, 70, 140, 90)]
    record = make_record(image_file, boxes, queries=[(4, (10, 10, 30, 50))])
    cfg.TEST.PERSON_SEARCH.VARIANTS = ["cws", "gt+cws"]
    queries = build_mapper(cfg, is_train=False)(record)["queries"]
    assert queries.query_ids.tolist() == [4, NO_QUERY_ID, NO_QUERY_ID, NO_QUERY_ID]
    # half the size; in place of the third the pixel next to it
    expected = [[5, 5, 15, 25], [5, 5, 15, 25], [40, 10, 50, 30], [49.5, 29.5, 50, 30]]
    np.testing.assert_allclose(queries.pred_boxes.tensor.numpy(), expected)
    cfg.TEST.PERSON_SEARCH.VARIANTS = []
    assert len(build_mapper(cfg, is_train=False)(record)["queries"]) == 1
    cfg.TEST.PERSON_SEARCH.GALLERY_BOXES = "gt"
    assert len(build_mapper(cfg, is_train=False)(record)["queries"]) == 4


def test_an_image_without_persons_keeps_all_fields(cfg, image_file: Path) -> None:
    instances = build_mapper(cfg, True)(make_record(image_file, []))["instances"]
    assert instances.gt_boxes.tensor.shape == (0, 4)
    assert instances.gt_pids.shape == instances.gt_classes.shape == (0,)
    assert instances.gt_pids.dtype == torch.int64


def paint(path: Path, box: tuple[int, int, int, int]) -> None:
    """Writes a black image in which exactly ``box`` (XYXY) is white; PNG keeps the edges."""
    pixels = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    pixels[box[1] : box[3], box[0] : box[2]] = 255
    Image.fromarray(pixels).save(path)


@pytest.mark.parametrize(
    "augmentation",
    [
        T.RandomFlip(prob=1.0),
        T.RandomFlip(prob=1.0, horizontal=False, vertical=True),
        T.RandomCrop("absolute", (50, 80)),
        T.Resize((180, 300)),
    ],
    ids=["flip", "flip upside down", "crop", "resize"],
)
def test_the_box_stays_on_the_person(tmp_path: Path, augmentation: T.Augmentation) -> None:
    path, box = tmp_path / "image_file.png", (12, 20, 40, 45)
    paint(path, box)
    output = make_mapper(augmentation)(make_record(path, [box]))
    rows, columns = np.nonzero(output["image"][0].numpy() > 127)
    seen = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
    assert np.allclose(output["instances"].gt_boxes.tensor[0], seen, atol=1)


@given(data=st.data())
def test_identities_follow_their_boxes(tmp_path_factory, data) -> None:
    """Each person's box is as wide as its identity plus 2, whatever the transforms."""
    count = data.draw(st.integers(0, 6))
    boxes, pids = [], []
    for pid in data.draw(st.permutations(range(count))):
        left = data.draw(st.integers(-20, WIDTH))
        top = data.draw(st.integers(-20, HEIGHT))
        boxes.append((left, top, left + pid + 2, top + 10))
        pids.append(pid)
    path = tmp_path_factory.getbasetemp() / "identities.png"
    if not path.exists():
        paint(path, (0, 0, 1, 1))
    flip = T.RandomFlip(prob=1.0) if data.draw(st.booleans()) else T.RandomFlip(prob=0.0)
    output = make_mapper(T.Resize((2 * HEIGHT, 2 * WIDTH)), flip)(make_record(path, boxes, pids))
    instances = output["instances"]

    clipped = np.clip(np.array(boxes).reshape(-1, 4), 0, [WIDTH, HEIGHT] * 2)
    areas = (clipped[:, 2:] - clipped[:, :2]).min(axis=1)
    expected = {
        pid: 2 * (box[2] - box[0])
        for pid, box, side in zip(pids, clipped, areas, strict=True)
        if side > 0
    }
    widths = (instances.gt_boxes.tensor[:, 2] - instances.gt_boxes.tensor[:, 0]).tolist()
    assert dict(zip(instances.gt_pids.tolist(), widths, strict=True)) == expected
    kept = [pid for pid in pids if pid in expected]
    assert instances.gt_pids.tolist() == kept, "the order must be that of the annotations"


def test_a_crop_drops_the_rows_it_empties(tmp_path: Path) -> None:
    path = tmp_path / "image_file.png"
    paint(path, (0, 0, 1, 1))
    left, right = (2, 2, 20, 50), (80, 2, 98, 50)
    output = make_mapper(T.CropTransform(0, 0, 50, HEIGHT))(make_record(path, [right, left]))
    assert output["instances"].gt_pids.tolist() == [1]
    assert output["instances"].gt_boxes.tensor.tolist() == [list(left)]


def test_the_config_turns_augmentations_on(cfg, image_file: Path) -> None:
    cfg.INPUT.RANDOM_FLIP = "horizontal"
    cfg.INPUT.CROP.ENABLED = True
    cfg.INPUT.CROP.TYPE, cfg.INPUT.CROP.SIZE = "absolute", [30, 50]
    kinds = [type(a).__name__ for a in build_mapper(cfg, True).augmentations.augs]
    assert kinds == ["RandomCrop", "ResizeShortestEdge", "RandomFlip"]
    assert build_mapper(cfg, True)(make_record(image_file, []))["image"].shape == (3, 120, 200)
    kinds = [type(a).__name__ for a in build_mapper(cfg, False).augmentations.augs]
    assert kinds == ["ResizeShortestEdge"]


def test_the_channel_order_is_that_of_the_config(cfg, tmp_path: Path) -> None:
    path = tmp_path / "red.png"
    Image.new("RGB", (WIDTH, HEIGHT), (255, 0, 0)).save(path)
    for order in ("RGB", "BGR"):
        cfg.INPUT.FORMAT = order
        image = build_mapper(cfg, True)(make_record(path, []))["image"]
        assert image[order.index("R")].min() == 255 and image[order.index("G")].max() == 0


def test_targets_can_be_added_in_a_subclass(cfg, image_file: Path) -> None:
    class Mirrored(PersonSearchMapper):
        def instances_from_annotations(self, record, annotations, transforms, image_size):
            instances = super().instances_from_annotations(
                record, annotations, transforms, image_size
            )
            names = [type(t).__name__ for t in transforms.transforms]
            instances.gt_flipped = torch.full((len(instances),), "HFlipTransform" in names)
            return instances

    MAPPER_REGISTRY.register(Mirrored)
    cfg.DATALOADER.MAPPER, cfg.INPUT.RANDOM_FLIP = "Mirrored", "horizontal"
    mapper = build_mapper(cfg, True)
    assert isinstance(mapper, Mirrored)
    record = make_record(image_file, [(10, 5, 30, 50), (200, 5, 230, 50)])
    flips = {tuple(mapper(record)["instances"].gt_flipped.tolist()) for _ in range(30)}
    assert flips == {(True,), (False,)}


def test_a_box_over_the_border_is_clipped_and_one_outside_dropped_with_one_warning(
    cfg, image_file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    record = make_record(image_file, [(-10, 5, 30, 70), (100, 5, 130, 50), (5, 60, 20, 80)])
    mapper = build_mapper(cfg, True)
    with caplog.at_level(logging.WARNING):
        outputs = [mapper(record) for _ in range(3)]
    instances = outputs[-1]["instances"]
    assert instances.gt_pids.tolist() == [0]
    assert instances.gt_boxes.tensor.tolist() == [[0, 10, 60, 120]]
    warnings = [r.getMessage() for r in caplog.records if "outside" not in r.name]
    assert len(warnings) == 1
    assert str(image_file) in warnings[0] and "[100, 5, 130, 50]" in warnings[0]


def test_a_query_box_outside_the_image_names_query_and_file(cfg, image_file: Path) -> None:
    record = make_record(image_file, [], queries=((31, (100, 0, 130, 50)),))
    with pytest.raises(ValueError, match=r"query 31: .*outside.*image_file\.jpg.*60 x 100"):
        build_mapper(cfg, False)(record)


@pytest.mark.parametrize("is_train", [True, False])
def test_an_image_of_another_size_is_named_with_both_sizes(cfg, image_file, is_train) -> None:
    write_image(image_file, 50, 80)
    with pytest.raises(ValueError, match=r"image_file\.jpg is 50 x 80 .*says 60 x 100"):
        build_mapper(cfg, is_train)(make_record(image_file, []))


def cut_off(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def scribble(path: Path) -> None:
    path.write_bytes(b"not an image")


BREAKS = {"cut off": cut_off, "no image": scribble, "missing": Path.unlink}


@pytest.mark.parametrize("is_train", [True, False])
@pytest.mark.parametrize("how", BREAKS)
def test_an_unreadable_image_ends_the_run_and_is_named(cfg, image_file, is_train, how) -> None:
    BREAKS[how](image_file)
    with pytest.raises(BadImageError, match=r"image_file\.jpg.*DATALOADER\.ON_BAD_IMAGE"):
        build_mapper(cfg, is_train)(make_record(image_file, []))


def test_skip_takes_another_image_in_training(
    cfg, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = small_cuhk_sysu(tmp_path / "data")
    scribble(root / "Image" / "SSM" / "s2.jpg")
    cfg.DATALOADER.ON_BAD_IMAGE = "skip"
    records = load_cuhk_sysu(root, "train")
    loader = MapDataset(records, build_mapper(cfg, True))
    with caplog.at_level(logging.WARNING):
        names = {Path(loader[1]["file_name"]).name for _ in range(5)}
    assert names <= {"s1.jpg", "s3.jpg"}
    assert "skipping the unreadable image" in caplog.text and "s2.jpg" in caplog.text


@pytest.mark.parametrize("recorded", [(HEIGHT, WIDTH), (0, 0)])
def test_skip_gives_a_marked_black_image_in_testing(cfg, image_file, recorded, caplog) -> None:
    scribble(image_file)
    cfg.DATALOADER.ON_BAD_IMAGE = "skip"
    record = make_record(image_file, [(5, 5, 90, 80)], queries=((3, (10, 10, 30, 50)),))
    record["height"], record["width"] = recorded
    with caplog.at_level(logging.WARNING):
        output = build_mapper(cfg, False)(record)
    assert output["bad_image"] is True and output["image"].max() == 0
    assert output["queries"].query_ids.tolist() == [3]
    assert (output["height"], output["width"]) == ((60, 100) if recorded[0] else (80, 90))
    assert str(image_file) in caplog.text


def test_a_readable_image_of_unknown_size_is_used(cfg, image_file: Path) -> None:
    record = make_record(image_file, [])
    record["height"] = record["width"] = 0
    output = build_mapper(cfg, False)(record)
    assert (output["height"], output["width"]) == (HEIGHT, WIDTH)
    assert "bad_image" not in output


def test_skip_gives_up_where_nothing_can_be_read(tmp_path: Path) -> None:
    mapper = make_mapper(on_bad_image="skip")
    with pytest.raises(BadImageError, match="10 consecutive images.*9.jpg"):
        for index in range(20):
            assert mapper(make_record(tmp_path / f"{index}.jpg", [])) is None


def test_unknown_names_are_answered_with_those_allowed(cfg) -> None:
    cfg.DATALOADER.MAPPER = "Maper"
    with pytest.raises(ValueError, match=r"DATALOADER\.MAPPER is 'Maper'.*PersonSearchMapper"):
        build_mapper(cfg, True)
    with pytest.raises(ValueError, match=r"ON_BAD_IMAGE is 'ignore'.*'raise', 'skip'"):
        make_mapper(on_bad_image="ignore")


def test_the_reader_of_records_names_and_skips_for_other_users(tmp_path: Path, caplog) -> None:
    record = make_record(tmp_path / "absent.jpg", [])
    with pytest.raises(BadImageError, match=r"absent\.jpg.*ON_BAD_IMAGE"):
        RecordImageReader("RGB")(record)
    assert RecordImageReader("RGB", "skip")(record) is None and "absent.jpg" in caplog.text
