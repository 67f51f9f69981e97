# SPDX-License-Identifier: Apache-2.0
"""A gallery in Milvus, opened for searching.

The server ranks the rows of persons and tracklets. If some are of a run that may not have finished,
the rows of their images say which of them exist. They are grouped here, because not every server
groups results. If too few are left, more rows are requested.

Shape shorthand: n persons of one image, D embedding dimension.
"""

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from person_search.search.errors import GalleryError
from person_search.search.gallery import Gallery, same_boxes
from person_search.search.milvus_client import MOST, quoted
from person_search.search.milvus_index import IndexChoice
from person_search.search.milvus_store import (
    FRAME,
    IMAGE,
    INDEX,
    MANIFEST,
    OPEN,
    RUNNING,
    TRACKLET,
    UNKNOWN,
    MilvusStore,
    Record,
    digest,
    shortened,
    span_of,
)
from person_search.search.store import Manifest
from person_search.search.table import GalleryImage, ImageKey, Match, SearchFilter, count
from person_search.search.tracklets import crop_quality

SELECTIVE = 0.2
"""Below this share of rows that pass the filters, more of the index is searched."""
EXACT_SHARE = 0.02
"""Below this share, everything is searched: on the server, if its indices are complete."""
TOGETHER = 32
"""Tracklets whose frames are requested at a time."""
HIT_FIELDS = ["pk", "image", "batch", "number", "kind", "file", "first", "last", "text"]


class MilvusGallery(Gallery):
    """The current state of a gallery; what is written later is found after a while.

    Args:
        store: The gallery.
    """

    store: MilvusStore

    def __init__(self, store: MilvusStore) -> None:
        super().__init__(store)
        self.client = store.client
        facts = store.facts()
        self.choice = IndexChoice.parse(facts.get(INDEX))
        self.times = span_of(facts)
        self.num_running = sum(key.startswith(RUNNING) for key in facts)
        self._run = Manifest.from_bytes(facts[MANIFEST], store.location, store.location).run
        self.camera_names = store.camera_names()
        # strong requests: what was written before is visible to the weaker ones that follow
        self.num_rows = self.client.count(store.persons_name, "")
        self.num_images = self.client.count(store.images_name, f"kind in [{IMAGE}, {FRAME}]")
        self.num_failed = self.client.count(store.images_name, "failed == true")
        self.num_tracklets = self.client.count(store.persons_name, f"kind == {TRACKLET}")
        self.num_persons = self.num_rows - self.num_tracklets
        self._open = list(store.facts(OPEN).values())
        self._is_indexed = self.choice.kind == "FLAT" or (
            not self.num_running and self.client.is_indexed(store.persons_name)
        )

    # ---- images ----------------------------------------------------------------------------------

    def _records(self, keys: Sequence[str]) -> dict[str, Record]:
        rows = self.client.rows_by_key(self.store.images_name, keys, ["pk", "text"], "Bounded")
        return {row["pk"]: Record.of_row(row) for row in rows}

    def _record(self, key: str) -> Record:
        found = self._records([key])
        if key not in found or not found[key].entry.is_shown:
            raise LookupError(f"the gallery has no image {key}.")
        return found[key]

    def image(self, key: str) -> GalleryImage:
        """See :class:`Gallery`."""
        return _image(self._record(key))

    def list_images(
        self, offset: int, limit: int, camera: str = ""
    ) -> tuple[int, list[GalleryImage]]:
        """See :class:`Gallery`. The order is that of the keys; the first 16,384 can be listed."""
        where = f"kind in [{IMAGE}, {FRAME}]"
        if camera:
            where += f" and camera == {quoted([shortened(camera)])[1:-1]}"
        total = self.client.count(self.store.images_name, where, "Bounded")
        limit = min(limit, MOST - offset)
        if limit <= 0:
            return total, []
        rows = self.client.query(
            self.store.images_name,
            filter=where,
            output_fields=["pk", "text"],
            offset=offset,
            limit=limit,
            consistency_level="Bounded",
        )
        return total, [_image(Record.of_row(row)) for row in rows]

    def all_images(self) -> Iterator[GalleryImage]:
        """See :class:`Gallery`."""
        return map(_image, self.store.records(f"kind in [{IMAGE}, {FRAME}]"))

    def persons_in(self, key: str) -> tuple[np.ndarray, np.ndarray]:
        """See :class:`Gallery`."""
        ((record, vectors),) = self.store.read_vectors([self._record(key)])
        return record.boxes.copy(), vectors

    def persons_of(self, matches: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
        """See :class:`Gallery`."""
        found: list[Mapping[str, Any]] = []
        for match in matches:
            members = self._members_at(match) if "tracklet" in match else []
            found += [self._match(one, number, 1.0).to_json() for one, number in members] or [match]
        return found

    def _members_at(self, match: Mapping[str, Any]) -> list[tuple[Record, int]]:
        """Returns the frames of the tracklet of a match, and the number of its person in each."""
        for root, path in self.store.places_of([match["image"]]):
            key = digest(self.store.roots[root], path, match["frame"])
            for record in self._records([key]).values():
                (numbers,) = np.nonzero(same_boxes(record.boxes, match["box"]))
                if len(numbers) and record.tracklets:
                    tracklet = record.tracklets[numbers[0]]
                    file = self.store.file_key(record.entry)
                    where = f'file == "{file}" and kind == {FRAME}'
                    return [
                        (one, one.tracklets.index(tracklet))
                        for one in self.store.records(where)
                        if tracklet in one.tracklets
                    ]
        return []

    # ---- search ----------------------------------------------------------------------------------

    def _find(
        self,
        query_feat: np.ndarray,
        top: int | None,
        wanted: SearchFilter,
        keys: Sequence[ImageKey],
        files: Sequence[str | os.PathLike],
        per_image: bool,
        every_frame: bool,
        method: str,
    ) -> list[Match]:
        if method == "approximate" and self.choice.kind == "FLAT":
            raise GalleryError(
                f"the gallery '{self.store.location}' has no approximate index; build one with "
                "'person-search compact --index', or search with the method 'exact'."
            )
        if not len(self):
            return []
        where = self._filter(wanted, keys, files, every_frame)
        share = 1.0
        if method != "exact" and self.choice.kind != "FLAT" and where != self._kinds(every_frame):
            passing = self.client.count(self.store.persons_name, where, "Bounded")
            share = passing / max(self.num_rows, 1)
        few = method == "auto" and share < EXACT_SHARE
        exact = method == "exact" or few
        # graphs compare all rows by themselves where few pass a filter
        here = not self._is_indexed if few else exact and not self.choice.can_be_exact
        most = self.num_rows if top is None else min(top, self.num_rows)
        limit = 2 * most
        while True:
            params = self.choice.search_params(limit, min(1.0, share / SELECTIVE), exact)
            if here or limit > MOST:
                hits = self._scan(query_feat, where)
                limit = len(hits) + 1  # rows may have been added since the gallery was opened
            else:
                hits = self._search(query_feat, where, limit, params)
            matches = self._group(hits, wanted, keys, most, per_image)
            if len(matches) >= most or len(hits) < limit:
                if len(hits) >= limit or exact or self.choice.kind == "FLAT":
                    break
                exact = True  # the visited part of the index holds too few
                if not self.choice.can_be_exact:
                    break
            else:
                limit *= 4
        if wanted.min_similarity is not None:
            matches = [match for match in matches if match.sim >= wanted.min_similarity]
        return matches

    def _kinds(self, every_frame: bool) -> str:
        if every_frame:
            return f"kind in [{IMAGE}, {FRAME}]"
        if not self._open:
            return f"kind in [{IMAGE}, {TRACKLET}]"
        # a video that is being indexed has no tracklets yet
        files = quoted(self._open)
        return (
            f"((kind in [{IMAGE}, {TRACKLET}] and file not in {files}) or "
            f"(kind == {FRAME} and file in {files}))"
        )

    def _filter(
        self,
        wanted: SearchFilter,
        keys: Sequence[ImageKey],
        files: Sequence[str | os.PathLike],
        every_frame: bool,
    ) -> str:
        parts = [self._kinds(every_frame)]
        if wanted.cameras:
            parts.append(f"camera in {quoted(map(shortened, sorted(wanted.cameras)))}")
        if wanted.since is not None or wanted.until is not None:
            parts.append(f"time > {UNKNOWN / 2!r}")
        if wanted.since is not None:
            parts.append(f"last_time >= {wanted.since!r}")
        if wanted.until is not None:
            parts.append(f"time <= {wanted.until!r}")
        if wanted.min_score > 0:
            parts.append(f"score >= {float(np.float32(wanted.min_score))!r}")
        if keys:
            parts.append(f"image not in {quoted(keys)}")
        if skipped := [
            digest(self.store.roots[root], path) for root, path in self.store.places_of(files)
        ]:
            parts.append(f"file not in {quoted(skipped)}")
        return " and ".join(parts)

    def _search(
        self, query_feat: np.ndarray, where: str, limit: int, params: dict[str, Any]
    ) -> list[dict[str, Any]]:
        (hits,) = self.client.search(
            self.store.persons_name,
            [query_feat],
            limit=limit,
            filter=where,
            output_fields=HIT_FIELDS,
            search_params=params,
            consistency_level="Bounded",
        )
        return [{**hit["entity"], "sim": float(hit["distance"])} for hit in hits]

    def _scan(self, query_feat: np.ndarray, where: str) -> list[dict[str, Any]]:
        """Compares all rows here: for lists that are longer than a server returns."""
        rows = []
        for row in self.client.rows(self.store.persons_name, where, [*HIT_FIELDS, "feat"]):
            row["sim"] = float(np.vecdot(np.float32(row.pop("feat")), query_feat))
            rows.append(row)
        return sorted(rows, key=lambda row: -row["sim"])

    def _group(
        self,
        hits: Sequence[dict[str, Any]],
        wanted: SearchFilter,
        keys: Sequence[ImageKey],
        most: int,
        per_image: bool,
    ) -> list[Match]:
        """Returns matches of the rows that exist, each image once if ``per_image``."""
        single = [hit for hit in hits if hit["kind"] != TRACKLET]
        persons = {hit["pk"]: Record.of_person(hit) for hit in single}
        if (
            self.num_running
            or len(single) < len(hits)
            or any(record.entry.run > self._run for record in persons.values())
        ):
            records = self._records(list(dict.fromkeys(hit["image"] for hit in hits)))
            batches = {key: record.batch for key, record in records.items()}
            hits = [hit for hit in hits if batches.get(hit["image"]) == hit["batch"]]
        valid = []
        seen: set[str] = set()
        for hit in hits:
            if hit["kind"] != TRACKLET:
                if per_image and hit["image"] in seen:
                    continue
                seen.add(hit["image"])
            valid.append(hit)
        matches: list[Match] = []
        for start in range(0, len(valid), TOGETHER):
            block = valid[start : start + TOGETHER]
            frames = self._frames([hit for hit in block if hit["kind"] == TRACKLET])
            for hit in block:
                if hit["kind"] == TRACKLET:
                    match = self._tracklet(hit, frames[hit["file"]], wanted, keys)
                    matches += [match] if match else []
                else:
                    matches.append(self._match(persons[hit["pk"]], 0, hit["sim"]))
            if len(matches) >= most:
                break
        return matches[:most]

    def _frames(self, hits: Sequence[dict[str, Any]]) -> dict[str, list[Record]]:
        """Returns the frames of the videos of tracklets, in the time of these tracklets."""
        found: dict[str, list[Record]] = {hit["file"]: [] for hit in hits}
        if hits:
            places = [
                f'(file == "{hit["file"]}" and offset >= {hit["first"]!r} '
                f"and offset <= {hit['last']!r})"
                for hit in hits
            ]
            where = f"kind == {FRAME} and ({' or '.join(places)})"
            for row in self.client.rows(
                self.store.images_name, where, ["pk", "file", "text"], "Bounded"
            ):
                found[row["file"]].append(Record.of_row(row))
        return found

    def _tracklet(
        self,
        hit: Mapping[str, Any],
        frames: Iterable[Record],
        wanted: SearchFilter,
        keys: Sequence[ImageKey],
    ) -> Match | None:
        """Describes a tracklet by its best crop among the frames that may be found, if any."""
        members = []
        for record in sorted(frames, key=lambda one: one.entry.frame or 0):
            time = record.entry.time
            if hit["number"] not in record.tracklets or record.key in keys:
                continue
            number = record.tracklets.index(hit["number"])
            if wanted.since is not None and (time is None or time < wanted.since):
                continue
            if wanted.until is not None and (time is None or time > wanted.until):
                continue
            if record.boxes[number, 4] >= np.float32(wanted.min_score):
                members.append((record, number))
        if not members:
            return None
        offsets = [record.entry.offset or 0.0 for record, _ in members]
        boxes = np.array([record.boxes[number] for record, number in members])
        record, number = members[int(crop_quality(boxes).argmax())]
        return replace(
            self._match(record, number, hit["sim"]),
            frames=len(members),
            first=min(offsets),
            last=max(offsets),
        )

    def _match(self, record: Record, number: int, sim: float) -> Match:
        image = _image(record)
        x1, y1, x2, y2, score = map(float, record.boxes[number])
        path = str(self.store.named_path(image.root, image.path))
        return Match.of(image, path, (x1, y1, x2, y2), score, sim)

    # ---- facts -----------------------------------------------------------------------------------

    def _size_facts(self) -> list[tuple[str, str]]:
        dim = self.store.manifest.dim
        megabytes = f"{4 * self.num_rows * dim / 1e6:.1f} MB"
        return [
            ("persons", str(self.num_persons)),
            ("embeddings", f"dimension {dim}, {megabytes}"),
            ("server", f"Milvus {self.client.version.removeprefix('milvus_')}"),
        ]

    def _index_facts(self) -> list[tuple[str, str]]:
        tracklets = [("tracklets", f"{self.num_tracklets} in videos")]
        open_videos = [("being indexed", count(len(self._open), "video"))]
        running = [("runs", f"{self.num_running} running or interrupted ('compact' forgets these)")]
        return [
            *(tracklets if self.num_tracklets else []),
            *(open_videos if self._open else []),
            *(running if self.num_running else []),
            ("index", self.choice.describe()),
        ]

    def _num_untimed(self) -> int:
        where = f"kind in [{IMAGE}, {FRAME}] and time < {UNKNOWN / 2!r}"
        return self.client.count(self.store.images_name, where)


def _image(record: Record) -> GalleryImage:
    entry = record.entry
    return GalleryImage(
        ImageKey(record.key),
        entry.root,
        entry.path,
        entry.frame,
        entry.offset,
        entry.time,
        entry.camera,
        (entry.size, entry.mtime_ns),
        (entry.height, entry.width),
    )
