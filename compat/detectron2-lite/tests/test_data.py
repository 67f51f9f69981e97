# SPDX-License-Identifier: Apache-2.0
"""Catalogs, samplers, loaders, mapper and COCO files."""

import itertools
import json
import pickle

import numpy as np
import pycocotools.mask as mask_util
import pytest
import torch
from detectron2.config import get_cfg
from detectron2.data import (
    DatasetCatalog,
    DatasetFromList,
    DatasetMapper,
    MapDataset,
    MetadataCatalog,
    ToIterableDataset,
    build_batch_data_loader,
    build_detection_test_loader,
    build_detection_train_loader,
    detection_utils,
    get_detection_dataset_dicts,
    samplers,
)
from detectron2.data.common import AspectRatioGroupedDataset
from detectron2.data.datasets import load_coco_json, register_coco_instances
from detectron2.structures import BoxMode
from PIL import Image


@pytest.fixture
def catalogs():
    """Removes the data sets that a test registers."""
    before = set(DatasetCatalog), set(MetadataCatalog)
    yield DatasetCatalog, MetadataCatalog
    for catalog, names in zip((DatasetCatalog, MetadataCatalog), before, strict=True):
        for name in set(catalog) - names:
            catalog.remove(name)


def make_record(image_id=0, **annotation):
    annotation = {
        "bbox": [1, 1, 3, 3],
        "bbox_mode": BoxMode.XYXY_ABS,
        "category_id": 0,
    } | annotation
    return {
        "file_name": f"{image_id}.png",
        "image_id": image_id,
        "height": 8,
        "width": 8,
        "annotations": [annotation],
    }


class TestCatalogs:
    def test_register_and_get(self, catalogs):
        DatasetCatalog.register("zoo", lambda: [1, 2])
        assert DatasetCatalog.get("zoo") == [1, 2] and "zoo" in DatasetCatalog.list()
        with pytest.raises(AssertionError, match="already registered"):
            DatasetCatalog.register("zoo", lambda: [])
        with pytest.raises(KeyError, match="zoo"):
            DatasetCatalog.get("farm")

    def test_metadata_is_kept_and_constant(self, catalogs):
        metadata = MetadataCatalog.get("zoo").set(thing_classes=["ape"])
        assert MetadataCatalog.get("zoo") is metadata
        metadata.thing_classes = ["ape"]
        with pytest.raises(AssertionError, match="different value"):
            metadata.thing_classes = ["bee"]
        with pytest.raises(AttributeError, match="zoo"):
            _ = metadata.colors
        assert metadata.get("colors", 3) == 3
        assert metadata.as_dict() == {"name": "zoo", "thing_classes": ["ape"]}
        assert metadata.class_names == ["ape"]

    def test_records_are_filtered_and_joined(self, catalogs):
        DatasetCatalog.register("a", lambda: [make_record(1), make_record(2, iscrowd=1)])
        DatasetCatalog.register("b", lambda: [make_record(3)])
        ids = [r["image_id"] for r in get_detection_dataset_dicts(["a", "b"])]
        assert ids == [1, 3]
        assert len(get_detection_dataset_dicts("a", filter_empty=False)) == 2
        with pytest.raises(KeyError, match="nowhere"):
            get_detection_dataset_dicts(["a", "nowhere"])

    def test_classes_must_agree(self, catalogs):
        for name in ("a", "b"):
            DatasetCatalog.register(name, lambda: [make_record(1)])
            MetadataCatalog.get(name).thing_classes = [name]
        with pytest.raises(ValueError, match="thing_classes"):
            get_detection_dataset_dicts(["a", "b"])
        assert len(get_detection_dataset_dicts(["a", "b"], check_consistency=False)) == 2


class TestSamplers:
    def test_each_epoch_is_a_permutation(self):
        stream = list(itertools.islice(samplers.TrainingSampler(7, seed=1), 21))
        epochs = [stream[i : i + 7] for i in (0, 7, 14)]
        assert all(sorted(epoch) == list(range(7)) for epoch in epochs)
        assert epochs[0] != epochs[1]

    def test_processes_share_one_stream(self, monkeypatch):
        whole = list(itertools.islice(samplers.TrainingSampler(7, seed=1), 20))
        for rank in range(2):
            sampler = samplers.TrainingSampler(7, seed=1)
            sampler._rank, sampler._world_size = rank, 2
            assert list(itertools.islice(sampler, 10)) == whole[rank::2]

    @pytest.mark.parametrize("size", [1, 5, 16])
    @pytest.mark.parametrize("world_size", [1, 3, 8])
    def test_inference_covers_everything_once(self, size, world_size):
        parts = [
            samplers.InferenceSampler._get_local_indices(size, world_size, rank)
            for rank in range(world_size)
        ]
        assert list(itertools.chain(*parts)) == list(range(size))
        assert max(map(len, parts)) - min(map(len, parts)) <= 1

    def test_subset_stays_the_same(self):
        sampler = samplers.RandomSubsetTrainingSampler(20, 0.25, seed_shuffle=1, seed_subset=2)
        assert len(set(itertools.islice(sampler, 100))) == 5

    def test_rare_categories_repeat(self):
        records = [make_record(i, category_id=int(i == 0)) for i in range(4)]
        factors = samplers.RepeatFactorTrainingSampler.repeat_factors_from_category_frequency(
            records, 1.0, sqrt=False
        )
        assert factors.tolist() == pytest.approx([4, 4 / 3, 4 / 3, 4 / 3])
        stream = samplers.RepeatFactorTrainingSampler(factors, seed=0)
        first = list(itertools.islice(stream, 800))
        assert first.count(0) / len(first) == pytest.approx(0.5, abs=0.05)

    def test_groups_do_not_mix(self):
        sampler = samplers.GroupedBatchSampler(
            samplers.TrainingSampler(9, seed=0), [0, 1, 2] * 3, 2
        )
        for batch in itertools.islice(sampler, 20):
            assert batch[0] % 3 == batch[1] % 3

    @pytest.mark.parametrize(("size", "error"), [(0, ValueError), (2.5, TypeError)])
    def test_bad_size(self, size, error):
        with pytest.raises(error):
            samplers.TrainingSampler(size)


class TestDatasets:
    def test_list_is_serialized_or_copied(self):
        original = [{"a": 1}, {"a": 2}]
        for serialize in (True, False):
            dataset = DatasetFromList(original, serialize=serialize)
            dataset[1]["a"] = 9
            assert len(dataset) == 2 and dataset[1]["a"] == 2
        assert DatasetFromList(original, copy=False, serialize=False)[0] is original[0]

    def test_map_replaces_what_fails(self):
        mapped = MapDataset([0, 1, 2, 3], lambda x: None if x == 2 else x * 10)
        assert mapped[3] == 30 and mapped[2] in (0, 10, 30)
        assert pickle.loads(pickle.dumps(mapped))[1] == 10

    def test_aspect_ratios_do_not_mix(self):
        shapes = [{"width": w, "height": 5} for w in (3, 9, 4, 8, 2, 7)]
        batches = list(AspectRatioGroupedDataset(shapes, 2))
        assert [[s["width"] for s in batch] for batch in batches] == [[3, 4], [9, 8]]

    def test_workers_share_the_sampler(self):
        dataset = ToIterableDataset(DatasetFromList(list(range(12))), samplers.InferenceSampler(12))
        loader = torch.utils.data.DataLoader(dataset, num_workers=2, batch_size=None)
        assert sorted(loader) == list(range(12))


class TestLoaders:
    def test_batches_of_an_uneven_set(self):
        dataset, sampler = DatasetFromList(list(range(7))), samplers.InferenceSampler(7)
        loader = build_batch_data_loader(dataset, sampler, 3, drop_last=False)
        assert list(loader) == [[0, 1, 2], [3, 4, 5], [6]]
        assert len(list(build_batch_data_loader(dataset, sampler, 3))) == 2

    def test_from_config(self, catalogs):
        DatasetCatalog.register("a", lambda: [make_record(i) for i in range(5)])
        cfg = get_cfg()
        cfg.DATASETS.TRAIN = ("a",)
        cfg.DATALOADER.NUM_WORKERS = 0
        cfg.SOLVER.IMS_PER_BATCH = 2
        batch = next(iter(build_detection_train_loader(cfg, mapper=lambda record: record)))
        assert len(batch) == 2
        test_loader = build_detection_test_loader(
            cfg, "a", mapper=lambda record: record["image_id"]
        )
        assert list(test_loader) == [[0], [1], [2], [3], [4]]
        cfg.DATALOADER.SAMPLER_TRAIN = "Whatever"
        with pytest.raises(ValueError, match="Whatever"):
            build_detection_train_loader(cfg, mapper=lambda record: record)

    def test_batch_size_must_fit(self):
        dataset = DatasetFromList([1, 2])
        with pytest.raises(AssertionError):
            build_batch_data_loader(dataset, samplers.InferenceSampler(2), 0)
        with pytest.raises(ValueError, match="mutually exclusive"):
            build_batch_data_loader(
                dataset, samplers.InferenceSampler(2), 2, single_gpu_batch_size=2
            )


class TestMapper:
    @pytest.fixture
    def record(self, tmp_path):
        Image.fromarray(np.arange(8 * 8 * 3, dtype=np.uint8).reshape(8, 8, 3)).save(
            tmp_path / "0.png"
        )
        return make_record(0, person_id=4) | {"file_name": str(tmp_path / "0.png")}

    def test_training(self, record):
        cfg = get_cfg()
        cfg.INPUT.MIN_SIZE_TRAIN = (16,)
        cfg.INPUT.RANDOM_FLIP = "none"
        crowd = record["annotations"][0] | {"iscrowd": 1}
        empty = record["annotations"][0] | {"bbox": [2, 2, 2, 5]}
        record["annotations"] += [crowd, empty]
        mapped = DatasetMapper(cfg, True)(record)
        assert mapped["image"].shape == (3, 16, 16) and mapped["image"].dtype == torch.uint8
        assert mapped["instances"].gt_boxes.tensor.tolist() == [[2, 2, 6, 6]]
        assert "annotations" not in mapped and len(record["annotations"]) == 3

    def test_inference_keeps_only_the_image(self, record):
        cfg = get_cfg()
        cfg.INPUT.MIN_SIZE_TEST = 4
        mapped = DatasetMapper(cfg, False)(record)
        assert mapped["image"].shape == (3, 4, 4) and mapped["height"] == 8
        assert "instances" not in mapped and "annotations" not in mapped

    def test_channel_order(self, record):
        rgb = detection_utils.read_image(record["file_name"], "RGB")
        bgr = detection_utils.read_image(record["file_name"], "BGR")
        assert rgb[0, 0].tolist() == [0, 1, 2] and bgr[0, 0].tolist() == [2, 1, 0]
        gray = detection_utils.read_image(record["file_name"], "L")
        assert gray.shape == (8, 8, 1)

    def test_wrong_size_is_named(self, record):
        record["width"] = 9
        with pytest.raises(detection_utils.SizeMismatchError, match=r"0\.png.*\(8, 8\).*\(9, 8\)"):
            DatasetMapper(get_cfg(), True)(record)

    def test_boxes_are_clipped_to_the_image(self):
        annotation = {"bbox": [-5, 2, 40, 6], "bbox_mode": BoxMode.XYWH_ABS}
        out = detection_utils.transform_instance_annotations(annotation, [], (20, 30))
        assert out["bbox"].tolist() == [0, 2, 30, 8]

    def test_no_annotations(self):
        instances = detection_utils.annotations_to_instances([], (4, 5))
        assert len(instances) == 0 and instances.gt_boxes.tensor.shape == (0, 4)


class TestCoco:
    def content(self, **annotation):
        annotation = {"id": 1, "image_id": 1, "category_id": 7, "bbox": [0, 0, 2, 2]} | annotation
        return {
            "images": [{"id": 1, "file_name": "1.png", "height": 5, "width": 5}],
            "categories": [{"id": 7, "name": "ape"}, {"id": 3, "name": "bee"}],
            "annotations": [annotation],
        }

    def load(self, tmp_path, content, name="set"):
        path = tmp_path / "set.json"
        path.write_text(json.dumps(content))
        return load_coco_json(str(path), "", name)

    def test_registered(self, catalogs, tmp_path):
        path = tmp_path / "set.json"
        path.write_text(json.dumps(self.content(bbox=[0.5, 1, 3.5, 5.25])))
        register_coco_instances("own", {"note": 1}, path, "images")
        (record,) = DatasetCatalog.get("own")
        assert record["file_name"] == "images/1.png" and record["image_id"] == 1
        (annotation,) = record["annotations"]
        assert annotation["bbox"] == [0.5, 1, 3.5, 5.25]
        assert annotation["bbox_mode"] == BoxMode.XYWH_ABS
        metadata = MetadataCatalog.get("own")
        assert (metadata.json_file, metadata.evaluator_type, metadata.note) == (path, "coco", 1)
        with pytest.raises(AssertionError, match="not a path"):
            register_coco_instances("other", {}, None, "images")

    def test_categories_are_numbered_by_id(self, catalogs, tmp_path):
        records = self.load(tmp_path, self.content())
        assert records[0]["annotations"][0]["category_id"] == 1
        assert MetadataCatalog.get("set").thing_classes == ["bee", "ape"]
        raw = self.load(tmp_path, self.content(), name=None)
        assert raw[0]["annotations"][0]["category_id"] == 7

    def test_polygons_without_area_are_left_out(self, catalogs, tmp_path):
        records = self.load(tmp_path, self.content(segmentation=[[0, 0, 1, 1]]))
        assert records[0]["annotations"] == []

    @pytest.mark.parametrize(
        ("change", "error"),
        [
            ({"bbox": []}, ValueError),
            ({"category_id": 5}, KeyError),
            ({"ignore": 1}, AssertionError),
        ],
    )
    def test_broken_files(self, catalogs, tmp_path, change, error):
        with pytest.raises(error):
            self.load(tmp_path, self.content(**change))


@pytest.mark.parametrize("options", [{"min_keypoints": 1}, {"proposal_files": ["x.pkl"]}])
def test_absent_options_say_so(catalogs, options):
    DatasetCatalog.register("a", lambda: [make_record(1)])
    with pytest.raises(ImportError, match="install Detectron2"):
        get_detection_dataset_dicts("a", **options)


def test_precomputed_proposals_are_absent(catalogs):
    DatasetCatalog.register("a", lambda: [make_record(1)])
    cfg = get_cfg()
    cfg.MODEL.LOAD_PROPOSALS = True
    for build in (build_detection_train_loader, build_detection_test_loader):
        with pytest.raises(ImportError, match="LOAD_PROPOSALS = True is not in detectron2-lite"):
            build(cfg, "a") if build is build_detection_test_loader else build(cfg)


class TestMasksAndKeypoints:
    square = [[1.0, 1, 5, 1, 5, 5, 1, 5]]

    @pytest.mark.parametrize("mask_format", ["polygon", "bitmask"])
    def test_polygons(self, mask_format):
        annotation = make_record(segmentation=self.square)["annotations"][0]
        flip = [detection_utils.T.HFlipTransform(8)]
        out = detection_utils.transform_instance_annotations(annotation, flip, (8, 8))
        instances = detection_utils.annotations_to_instances([out], (8, 8), mask_format)
        assert instances.gt_masks.get_bounding_boxes().tensor.tolist() == [[3, 1, 7, 5]]
        kept, mask = detection_utils.filter_empty_instances(instances, return_mask=True)
        assert len(kept) == 1 and mask.tolist() == [True]

    def test_run_lengths(self):
        mask = np.zeros((8, 8), dtype=np.uint8, order="F")
        mask[:, :2] = 1
        annotation = make_record(segmentation=mask_util.encode(mask))["annotations"][0]
        flip = [detection_utils.T.HFlipTransform(8)]
        out = detection_utils.transform_instance_annotations(annotation, flip, (8, 8))
        assert out["segmentation"][:, 6:].all() and not out["segmentation"][:, :6].any()
        instances = detection_utils.annotations_to_instances([out, out], (8, 8), "bitmask")
        assert instances.gt_masks.tensor.shape == (2, 8, 8)
        with pytest.raises(ValueError, match="MASK_FORMAT"):
            detection_utils.annotations_to_instances([out], (8, 8), "polygon")

    def test_keypoints_are_flipped(self, catalogs):
        MetadataCatalog.get("points").set(
            keypoint_names=["left", "nose", "right"], keypoint_flip_map=[("left", "right")]
        )
        indices = detection_utils.create_keypoint_hflip_indices("points")
        assert indices == [2, 1, 0]
        annotation = make_record(keypoints=[1, 2, 2, 4, 4, 1, 20, 3, 2])["annotations"][0]
        flip = [detection_utils.T.HFlipTransform(8)]
        with pytest.raises(ValueError, match="keypoint_hflip_indices"):
            detection_utils.transform_instance_annotations(dict(annotation), flip, (8, 8))
        out = detection_utils.transform_instance_annotations(
            annotation, flip, (8, 8), keypoint_hflip_indices=indices
        )
        assert out["keypoints"].tolist() == [[0, 0, 0], [4, 4, 1], [7, 2, 2]]
        instances = detection_utils.annotations_to_instances([out], (8, 8))
        assert instances.gt_keypoints.tensor.shape == (1, 3, 3)
