# SPDX-License-Identifier: Apache-2.0
"""Checks to inherit: a test class for a new data set gets all of them for two methods of its own.

Usage::

    class TestMyData(PersonSearchDatasetTests):
        def load(self, split):
            return load_my_data(ROOT, split)

        def load_protocols(self):
            return [load_my_protocol(ROOT)]
"""

import numpy as np

from person_search.schema import UNLABELED_PID, SearchProtocol, record_problems


class PersonSearchDatasetTests:
    """What every data set must keep to. Collected by pytest in subclasses named ``Test...``."""

    box_tolerance = 0.0
    """By how many pixels boxes may reach over the border; 1 where they are 1-based."""

    def load(self, split: str) -> list[dict]:
        """Returns the records of ``train`` or ``test``."""
        raise NotImplementedError("return the records of the split")

    def load_protocols(self) -> list[SearchProtocol]:
        """Returns every search protocol of the data set."""
        raise NotImplementedError("return the search protocols")

    def test_records_keep_to_the_schema(self) -> None:
        for split in ("train", "test"):
            records = self.load(split)
            assert records, f"the {split} split is empty"
            for record in records:
                problems = record_problems(record, split == "test", self.box_tolerance)
                assert not problems, f"{record['file_name']}: {problems}"

    def test_order_is_stable(self) -> None:
        for split in ("train", "test"):
            assert self.load(split) == self.load(split)

    def test_ids_and_files_are_unique(self) -> None:
        for split in ("train", "test"):
            records = self.load(split)
            for key in ("image_id", "file_name"):
                assert len({record[key] for record in records}) == len(records), (split, key)

    def test_splits_share_no_image(self) -> None:
        train, test = ({r["file_name"] for r in self.load(s)} for s in ("train", "test"))
        assert not train & test

    def test_train_pids_are_contiguous(self) -> None:
        pids = {a["person_id"] for record in self.load("train") for a in record["annotations"]}
        pids.discard(UNLABELED_PID)
        assert pids == set(range(len(pids))), "identities must be 0, 1, ... without gaps"

    def test_records_and_protocols_hold_the_same_queries(self) -> None:
        attached = {
            query["query_id"]: (record["image_id"], tuple(query["bbox"]))
            for record in self.load("test")
            for query in record["queries"]
        }
        for protocol in self.load_protocols():
            listed = {q.query_id: (q.image_id, tuple(q.box)) for q in protocol.queries}
            assert len(listed) == len(protocol.queries), "query_id is not unique"
            assert listed == attached, protocol.name

    def test_each_query_has_a_match(self) -> None:
        for protocol in self.load_protocols():
            found = set(protocol.positive_query.tolist())
            assert found == set(range(len(protocol.queries))), protocol.name

    def test_matches_lie_in_the_gallery(self) -> None:
        for protocol in self.load_protocols():
            for query, image in zip(protocol.positive_query, protocol.positive_image, strict=True):
                if protocol.gallery is None:
                    assert image not in protocol.excluded[query], protocol.name
                else:
                    assert image in protocol.gallery[query], protocol.name

    def test_matches_are_boxes_of_the_person(self) -> None:
        boxes_of: dict[tuple[int, int], list] = {}
        for record in self.load("test"):
            for annotation in record["annotations"]:
                key = record["image_id"], annotation["person_id"]
                boxes_of.setdefault(key, []).append(annotation["bbox"])
        for protocol in self.load_protocols():
            for query, image, box in zip(
                protocol.positive_query,
                protocol.positive_image,
                protocol.positive_box,
                strict=True,
            ):
                held = boxes_of.get((int(image), protocol.queries[query].person_id), [])
                assert any(np.allclose(box, other) for other in held), (protocol.name, query)

    def test_protocols_name_images_of_the_test_split(self) -> None:
        images = {record["image_id"] for record in self.load("test")} | {-1}
        for protocol in self.load_protocols():
            assert {query.image_id for query in protocol.queries} <= images
            listed = protocol.excluded if protocol.gallery is None else protocol.gallery
            assert set(np.unique(listed).tolist()) <= images, protocol.name
            assert protocol.gallery is None or protocol.gallery.dtype == np.int32
