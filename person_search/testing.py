# SPDX-License-Identifier: Apache-2.0
"""Tests to inherit: a new data set or model implements two methods and gets all of these checks.

Usage::

    class TestMyModel(PersonSearchModelTests):
        def build(self, seed):
            torch.manual_seed(seed)
            return build_model(my_tiny_cfg())

        def training_input(self, persons):
            return {"image": ..., "instances": ...}

    class TestMyData(PersonSearchDatasetTests):
        def load(self, split):
            return load_my_data(ROOT, split)

        def load_protocols(self):
            return [load_my_protocol(ROOT)]
"""

import numpy as np
import torch
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage
from torch import nn

from person_search.interface import PersonSearchModel
from person_search.schema import UNLABELED_PID, SearchProtocol, record_problems


class PersonSearchDatasetTests:
    """Checks for every data set, collected by pytest in subclasses named ``Test...``.

    Attributes:
        box_tolerance: Pixels by which boxes may exceed the image; 1 for 1-based boxes.
    """

    box_tolerance = 0.0

    def load(self, split: str) -> list[dict]:
        """Returns the records of ``train`` or ``test``."""
        raise NotImplementedError("implement load() and return the records of the split")

    def load_protocols(self) -> list[SearchProtocol]:
        """Returns every search protocol of the data set."""
        raise NotImplementedError("implement load_protocols() and return the search protocols")

    def test_records_follow_the_schema(self) -> None:
        """Records have the keys and types of ``person_search.schema``."""
        for split in ("train", "test"):
            records = self.load(split)
            assert records, f"the {split} split is empty"
            for record in records:
                problems = record_problems(record, split == "test", self.box_tolerance)
                assert not problems, f"{record['file_name']}: {problems}"

    def test_order_is_stable(self) -> None:
        """Loading twice returns the same records in the same order."""
        for split in ("train", "test"):
            assert self.load(split) == self.load(split)

    def test_ids_and_files_are_unique(self) -> None:
        """``image_id`` and ``file_name`` are unique within a split."""
        for split in ("train", "test"):
            records = self.load(split)
            for key in ("image_id", "file_name"):
                assert len({record[key] for record in records}) == len(records), (split, key)

    def test_splits_share_no_image(self) -> None:
        """No image is in both splits."""
        train, test = ({r["file_name"] for r in self.load(s)} for s in ("train", "test"))
        assert not train & test

    def test_train_pids_are_contiguous(self) -> None:
        """Training identities are 0, 1, ... without gaps."""
        pids = {a["person_id"] for record in self.load("train") for a in record["annotations"]}
        pids.discard(UNLABELED_PID)
        assert pids == set(range(len(pids))), "training identities must be 0, 1, ... without gaps"

    def test_records_and_protocols_have_the_same_queries(self) -> None:
        """The protocols together list exactly the queries of the records."""
        attached = {
            query["query_id"]: (record["image_id"], tuple(query["bbox"]))
            for record in self.load("test")
            for query in record["queries"]
        }
        all_listed: dict[int, tuple] = {}
        for protocol in self.load_protocols():  # each may list a part of the queries
            listed = {q.query_id: (q.image_id, tuple(q.box)) for q in protocol.queries}
            assert len(listed) == len(protocol.queries), "query_id is not unique"
            assert listed.items() <= attached.items(), protocol.name
            all_listed |= listed
        assert all_listed == attached

    def test_each_query_has_a_match(self) -> None:
        """Every query has a positive in its gallery."""
        for protocol in self.load_protocols():
            found = set(protocol.positive_query.tolist())
            assert found == set(range(len(protocol.queries))), protocol.name

    def test_matches_are_in_the_gallery(self) -> None:
        """The image of every positive is in the gallery of its query."""
        for protocol in self.load_protocols():
            for query, image in zip(protocol.positive_query, protocol.positive_image, strict=True):
                if protocol.gallery is None:
                    assert image not in protocol.excluded_images(query), protocol.name
                else:
                    assert image in protocol.gallery[query], protocol.name

    def test_matches_are_boxes_of_the_person(self) -> None:
        """Every positive is an annotated box of the query's identity."""
        boxes_of: dict[tuple[int, int], list] = {}
        for record in self.load("test"):
            for annotation in record["annotations"]:
                key = record["image_id"], annotation["person_id"]
                boxes_of.setdefault(key, []).append(annotation["bbox"])
        for protocol in self.load_protocols():
            columns = (protocol.positive_query, protocol.positive_image, protocol.positive_box)
            for query, image, box in zip(*columns, strict=True):
                held = boxes_of.get((int(image), protocol.queries[query].person_id), [])
                assert any(np.allclose(box, other) for other in held), (protocol.name, query)

    def test_protocols_name_images_of_the_test_split(self) -> None:
        """Queries and galleries refer to images of the test split."""
        images = {record["image_id"] for record in self.load("test")} | {-1}
        for protocol in self.load_protocols():
            assert {query.image_id for query in protocol.queries} <= images
            listed = protocol.excluded if protocol.gallery is None else protocol.gallery
            assert set(np.unique(listed).tolist()) <= images, protocol.name
            assert protocol.gallery is None or protocol.gallery.dtype == np.int32


class PersonSearchModelTests:
    """Checks that a model implements :class:`~person_search.interface.PersonSearchModel`.

    The model has a tiny size; ``docs/data_flow.md``, section 3, describes inputs and outputs.

    Attributes:
        image_size: (h, w) of the test images.
        batch_tolerance: Allowed deviation of an image's output in a batch from that of the image
            alone.
    """

    image_size = (48, 64)
    batch_tolerance = 1e-5

    def build(self, seed: int) -> nn.Module:
        """Returns a new tiny model, the same for the same seed."""
        raise NotImplementedError("implement build() and return the tiny model")

    def training_input(self, persons: int) -> dict:
        """Returns an input as from the mapper in training, with 0 to 2 persons."""
        raise NotImplementedError("implement training_input() and return one input")

    def image_input(
        self, image_id: int = 0, queries: int = 0, size: tuple[int, int] | None = None
    ) -> dict:
        """Returns an input as from the mapper in testing, for an image twice as large on disk."""
        h, w = size or self.image_size
        generator = torch.Generator().manual_seed(image_id)
        image = torch.randint(0, 256, (3, h, w), generator=generator, dtype=torch.uint8)
        boxes = torch.tensor([[0.1, 0.1, 0.4, 0.9], [0.5, 0.2, 0.7, 0.8]][:queries]).view(-1, 4)
        return {
            "image": image,
            "height": 2 * h,
            "width": 2 * w,
            "image_id": image_id,
            "queries": Instances(
                (h, w),
                pred_boxes=Boxes(boxes * torch.tensor([w, h, w, h])),
                pred_classes=torch.zeros(queries, dtype=torch.int64),
            ),
        }

    def predict(self, model: nn.Module, inputs: list[dict]) -> list[dict]:
        """Returns the outputs in eval mode, without gradients."""
        with torch.no_grad():
            return model.eval()(inputs)

    def test_implements_the_interface(self) -> None:
        """The model has the methods of the interface."""
        assert isinstance(self.build(0), PersonSearchModel)

    def test_losses_are_finite_and_reach_every_weight(self) -> None:
        """Losses are named ``loss_*`` and every trainable weight has a finite gradient."""
        model = self.build(0).train()
        with EventStorage():
            losses = model([self.training_input(2), self.training_input(1)])
        assert losses and all(name.startswith("loss_") for name in losses)
        sum(losses.values()).backward()
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                assert parameter.grad is not None, f"{name} has no gradient"
                assert torch.isfinite(parameter.grad).all(), name

    def test_an_image_without_persons_trains(self) -> None:
        """Losses of an image without persons are finite."""
        model = self.build(0).train()
        with EventStorage():
            losses = model([self.training_input(0)])
        total = sum(losses.values())
        assert torch.isfinite(total)
        total.backward()

    def test_output_has_the_fields_and_the_frame_of_the_image(self) -> None:
        """Detections have all fields and the size of the original image."""
        output = self.predict(self.build(0), [self.image_input(queries=2)])[0]
        found = output["instances"]
        h, w = self.image_size
        assert found.image_size == (2 * h, 2 * w)
        assert len(found.scores) == len(found.pred_classes) == len(found.pred_boxes)
        assert (found.pred_classes == 0).all()
        dim = output["query_feats"].shape[1]
        assert output["query_feats"].shape == (2, dim) and found.reid_feats.shape[1] == dim

    def test_embeddings_are_float32_of_unit_length(self) -> None:
        """Embeddings of detections and queries are normalized."""
        output = self.predict(self.build(0), [self.image_input(queries=2)])[0]
        for feats in (output["instances"].reid_feats, output["query_feats"]):
            assert feats.dtype == torch.float32
            torch.testing.assert_close(feats.norm(dim=1), torch.ones(len(feats)))

    def test_a_batch_equals_single_images(self) -> None:
        """A batch of mixed sizes returns the outputs of its images."""
        model, (h, w) = self.build(0), self.image_size
        sizes = [(h, w), (2 * h, 2 * w), (h, w)]
        inputs = [self.image_input(i, queries=i, size=size) for i, size in enumerate(sizes)]
        close = {"atol": self.batch_tolerance, "rtol": 0.0}
        for item, together in zip(inputs, self.predict(model, inputs), strict=True):
            (alone,) = self.predict(model, [item])
            assert len(alone["instances"]) == len(together["instances"])
            for field in ("scores", "reid_feats"):
                ours, theirs = (x["instances"].get(field) for x in (alone, together))
                torch.testing.assert_close(ours, theirs, **close)
            torch.testing.assert_close(alone["query_feats"], together["query_feats"], **close)

    def test_the_same_seed_gives_the_same_output(self) -> None:
        """Inference is repeatable."""
        first, again = (
            self.predict(self.build(3), [self.image_input(5, queries=1)])[0] for _ in range(2)
        )
        torch.testing.assert_close(first["instances"].scores, again["instances"].scores)
        torch.testing.assert_close(first["query_feats"], again["query_feats"])

    def test_given_boxes_get_the_embeddings_of_queries(self) -> None:
        """``inference`` with given boxes returns the embeddings of queries with these boxes."""
        model, item = self.build(0), self.image_input(queries=2)
        boxes = item["queries"].pred_boxes
        given = Instances(self.image_size, pred_boxes=boxes, pred_classes=torch.zeros(2).long())
        expected = self.predict(model, [item])[0]["query_feats"]
        with torch.no_grad():
            (result,) = model.inference([item], detected_instances=[given], do_postprocess=False)
        torch.testing.assert_close(result.pred_boxes.tensor, boxes.tensor)
        torch.testing.assert_close(result.reid_feats, expected)

    def test_no_queries_give_no_query_embeddings(self) -> None:
        """An image without queries has no ``query_feats``."""
        output = self.predict(self.build(0), [self.image_input(queries=0)])[0]
        assert len(output["query_feats"]) == 0
