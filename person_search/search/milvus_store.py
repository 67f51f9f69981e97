# SPDX-License-Identifier: Apache-2.0
"""A gallery in Milvus: two collections, of which one holds the persons and one everything else.

    NAME           one row per person and per tracklet: embedding, and what filters need
    NAME_images    one row per image, frame and end of a video, with the boxes of its persons; also
                   the manifest, the folders and the cameras

An image exists once its row in the second collection is written, which is a single row and follows
those of its persons. All rows of persons carry the batch of the image that they belong to (its file
size, modification time and number of persons); rows of another batch are invisible, and deleted
when they are met. All keys are functions of the image, so that writing again replaces.

A row marks each run from its start to its orderly end. What finished runs have written is complete,
so a search need not compare the batches: the rows of the persons say all that a match needs.

Several runs may write at a time.
"""

import base64
import hashlib
import json
import time as clock
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import numpy as np

from person_search.search.entries import END_OF_VIDEO, FLOAT, Entry, checksum, with_persons
from person_search.search.errors import GalleryDamagedError, GalleryError
from person_search.search.identity import ModelIdentity
from person_search.search.locations import MilvusAddress
from person_search.search.milvus_client import BLOCK, Connection
from person_search.search.milvus_index import INDEX, IndexChoice, build_index, wanted_kind
from person_search.search.names import to_stored
from person_search.search.remote import Place
from person_search.search.store import CompactReport, GalleryStore, Keep, Manifest
from person_search.search.tracklets import Tracklets, group_frames

if TYPE_CHECKING:
    from person_search.search.milvus_gallery import MilvusGallery

DESCRIPTION = "person-search gallery, version 1"
IMAGE, FRAME, TRACKLET, END, FAILED, OPEN, CAMERA, ROOT, FACTS = range(9)
"""Kinds of rows. ``OPEN`` marks a video that is being indexed, whose frames have no tracklets."""
UNKNOWN = -1e300
"""Unknown time; no filter by time includes it."""
MANIFEST, SPAN, RUNNING = "manifest", "span", "running"
"""Keys of the rows with facts, besides ``INDEX``; the last two begin those of writers and runs."""
MAX_CAMERA = 1000
BOX_LETTERS = 28
"""Length of a box with its score as text."""
IMAGES_PER_COMMIT, PERSONS_PER_COMMIT, SECONDS_PER_COMMIT = 1_000, 2_000, 2.0
SECONDS_UNSEEN = 60.0
"""How long a weak request may fail to find what has been written; servers guarantee 5."""
PERSON_FIELDS = ("pk", "image", "batch", "number")


def digest(*parts: object) -> str:
    """Returns 22 letters that stand for the parts."""
    text = "\0".join(map(str, parts)).encode("utf-8", "surrogateescape")
    return base64.urlsafe_b64encode(hashlib.blake2b(text, digest_size=16).digest())[:22].decode()


def shortened(camera: str) -> str:
    """Returns a camera name as filters know it."""
    return camera.encode("utf-8", "backslashreplace")[:MAX_CAMERA].decode("utf-8", "ignore")


@dataclass(frozen=True)
class Record:
    """A row of an image: its entry with the boxes of its persons.

    Attributes:
        key: Key of the row.
        entry: The entry.
        batch: Batch of its persons.
        boxes: Boxes and scores (n, 5).
        tracklets: Numbers of the tracklets of its persons; at the end of a video, their number.
    """

    key: str
    entry: Entry
    batch: str
    boxes: np.ndarray
    tracklets: list[int]

    @classmethod
    def of(cls, entry: Entry, root: str, boxes: np.ndarray) -> "Record":
        """Returns the record of an entry in a folder."""
        key = digest(root, entry.path, "" if entry.frame is None else entry.frame)
        batch = digest(entry.size, entry.mtime_ns, entry.every, len(boxes))[:10]
        return cls(key, entry, batch, boxes, [])

    @classmethod
    def of_row(cls, row: Mapping[str, Any]) -> "Record":
        """Inverse of :meth:`to_row`.

        Raises:
            GalleryDamagedError: If the text is damaged.
        """
        try:
            content = json.loads(row["text"])
            entry = Entry.from_line(content["entry"].encode())
            if entry is None:
                raise ValueError("its checksum is wrong")
            boxes = np.frombuffer(base64.b64decode(content["boxes"]), FLOAT).reshape(-1, 5)
            return cls(row["pk"], entry, content["batch"], boxes, content["tracklets"])
        except (ValueError, KeyError, TypeError) as e:
            raise GalleryDamagedError(f"the row '{row['pk']}' is damaged: {e}.") from e

    @classmethod
    def of_person(cls, row: Mapping[str, Any]) -> "Record":
        """Returns the record of an image with one of its persons, from the row of this person."""
        entry = Entry.from_line(row["text"][BOX_LETTERS:].encode())
        if entry is None:
            raise GalleryDamagedError(f"the row '{row['pk']}' is damaged: its checksum is wrong.")
        box = np.frombuffer(base64.b64decode(row["text"][:BOX_LETTERS]), FLOAT).reshape(1, 5)
        return cls(row["image"], entry, row["batch"], box, [])

    @cached_property
    def line(self) -> str:
        """The entry as text."""
        return self.entry.to_line()[:-1].decode()

    @property
    def kind(self) -> int:
        """Kind of the row."""
        if self.entry.frame == END_OF_VIDEO:
            return END
        if self.entry.error:
            return FAILED
        return IMAGE if self.entry.frame is None else FRAME

    def person_keys(self) -> list[str]:
        """Returns the keys of the rows of its persons, or of the tracklets of a video."""
        count = self.tracklets[0] if self.kind == END and self.tracklets else len(self.boxes)
        return [f"{self.key}{self.batch}{number:x}" for number in range(count)]

    def to_row(self, file: str) -> dict[str, Any]:
        """Returns the row."""
        boxes = base64.b64encode(self.boxes.astype(FLOAT).tobytes()).decode()
        content = {
            "entry": self.line,
            "batch": self.batch,
            "boxes": boxes,
            "tracklets": self.tracklets,
        }
        return {
            **_plain_row(self.key, self.kind, json.dumps(content)),
            "file": file,
            "failed": bool(self.entry.error),
            "offset": self.entry.offset or 0.0,
            "time": UNKNOWN if self.entry.time is None else self.entry.time,
            "camera": shortened(self.entry.camera),
        }


def _plain_row(key: str, kind: int, text: str) -> dict[str, Any]:
    return {
        "pk": key, "kind": kind, "text": text, "feat": [0.0, 0.0], "file": "", "failed": False,
        "offset": 0.0, "time": UNKNOWN, "camera": "",
    }  # fmt: skip


class MilvusStore(GalleryStore):
    """A gallery in Milvus.

    Args:
        address: Address of the gallery.

    Raises:
        GalleryError: If the server is away or refuses, or there is no gallery of this version.
    """

    location: MilvusAddress

    def __init__(self, address: MilvusAddress) -> None:
        self.location = address
        self.persons_name, self.images_name = address.collection, f"{address.collection}_images"
        self.client = Connection(address)
        try:
            if not self.client.has_collection(self.persons_name):
                raise GalleryError(
                    f"there is no gallery '{address}'. Create one from a folder of images or a "
                    "video with 'person-search index'."
                )
            self._check_collections()
            self.client.load(self.persons_name)
            self.client.load(self.images_name)
            self.manifest = self._read_manifest()
        except BaseException:
            self.client.close()
            raise

    @staticmethod
    def exists(address: MilvusAddress) -> bool:
        """Whether there is a gallery, complete or not, or a collection of another program."""
        client = Connection(address)
        try:
            return bool(client.has_collection(address.collection))
        finally:
            client.close()

    @classmethod
    def create(cls, address: MilvusAddress, dim: int, model: ModelIdentity) -> "MilvusStore":
        """Creates an empty gallery.

        The collection of the persons is made last, so that a gallery is complete if it exists.
        """
        client = Connection(address)
        try:
            kinds = client.types
            text = {"datatype": kinds.VARCHAR}
            common = {
                "pk": {**text, "max_length": 64, "is_primary": True},
                "kind": {"datatype": kinds.INT8},
                "file": {**text, "max_length": 32},
                "time": {"datatype": kinds.DOUBLE},
                "camera": {**text, "max_length": MAX_CAMERA},
            }
            images = f"{address.collection}_images"
            if not client.has_collection(images):
                fields = {
                    **common,
                    "feat": {"datatype": kinds.FLOAT_VECTOR, "dim": 2},
                    "failed": {"datatype": kinds.BOOL},
                    "offset": {"datatype": kinds.DOUBLE},
                    "text": {**text, "max_length": 65_535},
                }
                _create_collection(client, images, fields, ("file",))
            client.load(images)
            row = _plain_row(MANIFEST, FACTS, Manifest(dim, model).to_bytes().decode())
            client.upsert(images, [row])
            fields = {
                **common,
                "feat": {"datatype": kinds.FLOAT_VECTOR, "dim": dim},
                "text": {**text, "max_length": 65_535},
                "image": {**text, "max_length": 32},
                "batch": {**text, "max_length": 16},
                "number": {"datatype": kinds.INT32},
                "score": {"datatype": kinds.FLOAT},
                "last_time": {"datatype": kinds.DOUBLE},
                "first": {"datatype": kinds.DOUBLE},
                "last": {"datatype": kinds.DOUBLE},
            }
            _create_collection(client, address.collection, fields, ("camera", "time"))
        finally:
            client.close()
        return cls(address)

    def _check_collections(self) -> None:
        for name in (self.persons_name, self.images_name):
            if not self.client.has_collection(name):
                raise GalleryError(self._not_ours(f"'{name}' is missing"))
            found = self.client.describe_collection(name)
            names = {field["name"] for field in found["fields"]}
            lacking = {"pk", "kind", "file", "feat", "camera", "text"} - names
            if lacking:
                raise GalleryError(self._not_ours(f"it has no field '{min(lacking)}'"))

    def _not_ours(self, why: str) -> str:
        return (
            f"the collection of '{self.location}' belongs to another program ({why}); choose "
            "another name."
        )

    def close(self) -> None:
        """See :class:`GalleryStore`."""
        self.client.close()

    # ---- facts about the gallery -----------------------------------------------------------------

    def _read_manifest(self) -> Manifest:
        for row in self.client.rows_by_key(self.images_name, [MANIFEST], ["text"]):
            return Manifest.from_bytes(row["text"], self.location, self.location)
        raise GalleryError(self._not_ours("it has no manifest"))

    @contextmanager
    def writing(self) -> Iterator[int]:
        """See :class:`GalleryStore`. Several runs may write at a time."""
        running = f"{RUNNING}{uuid4().hex}"
        self.write_fact(running, "")  # first: later runs have higher numbers
        self.replace_manifest(run=self._read_manifest().run + 1)
        yield self.manifest.run
        self.client.delete(self.images_name, ids=[running])

    def replace_manifest(self, **changes: object) -> None:
        """See :class:`GalleryStore`."""
        manifest = self._read_manifest()  # another run may have changed it
        self.manifest = replace(manifest, **changes)  # type: ignore[arg-type]
        self.write_fact(MANIFEST, self.manifest.to_bytes().decode())

    def write_fact(self, key: str, text: str, kind: int = FACTS) -> None:
        """Writes a row that is no image."""
        self.client.upsert(self.images_name, [_plain_row(key, kind, text)])

    def facts(self, kind: int = FACTS) -> dict[str, str]:
        """Returns the rows that are no images."""
        rows = self.client.rows(self.images_name, f"kind == {kind}", ["pk", "text"])
        return {row["pk"]: row["text"] for row in rows}

    @cached_property
    def _roots(self) -> dict[int, str]:
        return {
            int(key.removeprefix("root")): json.loads(text)
            for key, text in self.facts(ROOT).items()
        }

    @property
    def roots(self) -> Mapping[int, str]:
        """See :class:`GalleryStore`; numbers are hashes, so that several runs agree on them."""
        return self._roots

    def root_path(self, root: int) -> Place:
        """See :class:`GalleryStore`."""
        self._reread_roots(root)
        return super().root_path(root)

    def _reread_roots(self, root: int) -> None:
        """Rereads the folders if they lack one, which another run may have added."""
        if root not in self._roots:
            del self._roots

    def add_root(self, root: Place) -> int:
        """See :class:`GalleryStore`. Paths are absolute."""
        name = to_stored(root.resolve())
        number = int.from_bytes(hashlib.blake2b(name.encode("utf-8", "surrogateescape"),
                                                digest_size=6).digest(), "big")  # fmt: skip
        if number not in self._roots:
            self.write_fact(f"root{number}", json.dumps(name), ROOT)
            self._roots[number] = name
        return number

    # ---- reading ---------------------------------------------------------------------------------

    def gallery(self) -> "MilvusGallery":
        """See :class:`GalleryStore`."""
        from person_search.search.milvus_gallery import MilvusGallery

        return MilvusGallery(self)

    def revision(self) -> tuple:
        """See :class:`GalleryStore`."""
        images = self.client.count(self.images_name, f"kind != {OPEN}", "Bounded")
        return images, self._read_manifest().run

    def records(self, where: str = "") -> Iterator[Record]:
        """Yields the rows of images, frames and ends of videos."""
        kinds = f"kind in {[IMAGE, FRAME, END, FAILED]}"
        where = f"{kinds} and {where}" if where else kinds
        for row in self.client.rows(self.images_name, where, ["pk", "text"]):
            yield Record.of_row(row)

    def entries(self) -> Iterator[Entry]:
        """See :class:`GalleryStore`."""
        return (record.entry for record in self.records())

    def persons(self) -> Iterator[tuple[Entry, np.ndarray, np.ndarray]]:
        """See :class:`GalleryStore`."""
        for record, vectors in self.read_vectors(self.records()):
            if len(vectors) < len(record.boxes):
                raise GalleryDamagedError(_missing(record))
            yield record.entry, record.boxes, vectors

    def read_vectors(self, records: Iterable[Record]) -> Iterator[tuple[Record, np.ndarray]]:
        """Yields records with the embeddings of their persons (n, D); fewer if some are missing."""
        block: list[Record] = []

        def read() -> Iterator[tuple[Record, np.ndarray]]:
            keys = [key for one in block if one.kind != END for key in one.person_keys()]
            found = {
                row["pk"]: row["feat"]
                for row in self.client.rows_by_key(self.persons_name, keys, ["pk", "feat"])
            }
            for one in block:
                own = [found[key] for key in one.person_keys() if key in found]
                yield one, np.asarray(own, FLOAT).reshape(-1, self.manifest.dim)
            block.clear()

        persons = 0
        for record in records:
            block.append(record)
            persons += len(record.boxes)
            if max(persons, len(block)) >= BLOCK:
                yield from read()
                persons = 0
        yield from read()

    def scan(self, problems: list[str]) -> Iterator[Entry]:
        """See :class:`GalleryStore`."""
        for record, vectors in self.read_vectors(self.records()):
            if len(vectors) < len(record.boxes):
                problems.append(_missing(record))
            elif len(vectors) and checksum(vectors, record.boxes) != record.entry.crc:
                problems.append(f"the persons of '{record.entry.path}' are damaged.")
            else:
                yield record.entry

    # ---- writing ---------------------------------------------------------------------------------

    def ensure_writers(self, count: int) -> list[str]:
        """See :class:`GalleryStore`."""
        return [str(number) for number in range(count)]

    def writer(self, name: str, durable: bool = True, together: int = 1) -> "MilvusWriter":
        """See :class:`GalleryStore`. What the server acknowledges is always durable."""
        return MilvusWriter(self)

    def refresh(self, approximate: bool) -> None:
        """See :class:`GalleryStore`."""
        if approximate:
            count = self.client.count(self.persons_name, "")
            made = IndexChoice.parse(self.facts().get(INDEX))
            wanted = wanted_kind(count, self.location.is_lite)
            outgrown = wanted != "FLAT" and count > 2 * made.rows
            if wanted != made.kind or outgrown or not made.recall:
                self.build_index()
            elif made.kind != "FLAT":
                self.client.flush(self.persons_name)  # so that new rows get their index

    def build_index(self) -> str:
        """See :class:`GalleryStore`."""
        return build_index(self).describe()

    def rewrite(self, keep: Keep, check: Callable[[], None] = lambda: None) -> CompactReport:
        """See :class:`GalleryStore`. No other run may write meanwhile.

        Milvus itself frees the memory of deleted rows later, when it compacts its segments.
        """
        images = persons = 0
        damaged: list[str] = []
        doomed: list[Record] = []
        reduced: list[tuple[Record, np.ndarray]] = []
        cameras: set[str] = set()
        roots: set[int] = set()
        files: set[str] = set()
        times: list[float] = []
        for record, vectors in self.read_vectors(self.records()):
            entry = record.entry
            sound = len(vectors) == len(record.boxes) and (
                not len(vectors) or checksum(vectors, record.boxes) == entry.crc
            )
            kept = keep(entry, record.boxes) if sound else None
            if not sound:
                damaged.append(f"the persons of '{entry.path}' are damaged.")
            if kept is None:
                doomed.append(record)
                continue
            if not kept.all():
                reduced.append((record, kept))
            images += entry.is_shown
            persons += int(kept.sum())
            cameras.add(entry.camera)
            roots.add(entry.root)
            files.add(self.file_key(entry))
            times += [entry.time] if entry.is_shown and entry.time is not None else []
        check()
        before = self.client.count(self.persons_name, f"kind != {TRACKLET}")
        with self.writing() as run:
            spans = [key for key in self.facts() if key.startswith((SPAN, RUNNING))]
            writer = MilvusWriter(self)
            self._delete_records(doomed)
            whole = self.read_vectors(record for record, _ in reduced)
            for (record, vectors), (_, kept) in zip(whole, reduced, strict=True):
                boxes = record.boxes[kept]
                bare = replace(record.entry, first=0, rows=0, crc=0, run=run)
                writer.append(bare, boxes[:, :4], boxes[:, 4], vectors[kept])
            changed = [*doomed, *(record for record, _ in reduced)]
            videos = {self.file_key(one.entry) for one in changed if one.kind == FRAME}
            for file in videos:
                for end in list(self.records(f'kind == {END} and file == "{file}"')):
                    writer.append(replace(end.entry, run=run))  # groups the rest
            writer.flush()
            self._purge_orphans()
            if times:
                self.write_fact(f"{SPAN}{uuid4().hex}", json.dumps([min(times), max(times)]))
            gone = spans + [key for key, file in self.facts(OPEN).items() if file not in files]
            gone += [f"root{root}" for root in self.roots if root not in roots]
            gone += [f"c{digest(name)}" for name in self.camera_names() if name not in cameras]
            for start in range(0, len(gone), BLOCK):
                self.client.delete(self.images_name, ids=gone[start : start + BLOCK])
            for root in [root for root in self.roots if root not in roots]:
                del self._roots[root]
        for name in (self.persons_name, self.images_name):
            self.client.flush(name)
            self.client.compact(name)
        return CompactReport(images, persons, before - persons, damaged)

    def camera_names(self) -> list[str]:
        """Returns the sorted names of the cameras."""
        return sorted(json.loads(text) for text in self.facts(CAMERA).values())

    def file_key(self, entry: Entry) -> str:
        """Returns what all images of a file have in common."""
        self._reread_roots(entry.root)
        return digest(self._roots.get(entry.root, entry.root), entry.path)

    def _delete_records(self, records: Iterable[Record]) -> None:
        """Deletes images: first their own rows, which hides the persons."""
        for record in records:
            self.client.delete(self.images_name, ids=[record.key])
            if keys := record.person_keys():
                self.client.delete(self.persons_name, ids=keys)

    def _purge_orphans(self) -> None:
        """Deletes rows of persons that belong to no image, left by a killed run."""
        live = {one.key: (one.batch, len(one.person_keys())) for one in self.records()}
        orphans = [
            row["pk"]
            for row in self.client.rows(self.persons_name, "", PERSON_FIELDS)
            if live.get(row["image"], ("", 0))[0] != row["batch"]
            or row["number"] >= live[row["image"]][1]
        ]
        for start in range(0, len(orphans), BLOCK):
            self.client.delete(self.persons_name, ids=orphans[start : start + BLOCK])


def _missing(record: Record) -> str:
    return f"the persons of '{record.entry.path}' are missing."


def _create_collection(
    client: Connection, name: str, fields: Mapping[str, dict[str, Any]], filtered: Iterable[str]
) -> None:
    schema = client.create_schema(auto_id=False, enable_dynamic_field=False)
    for field, settings in fields.items():
        schema.add_field(field, **settings)
    # a single shard: the rows of one request become visible together
    client.create_collection(name, schema=schema, num_shards=1, description=DESCRIPTION)
    for field in filtered:
        if kind := client.scalar_index(fields[field]["datatype"]):
            made = client.prepare_index_params()
            made.add_index(field, index_type=kind)
            client.create_index(name, made)
    client.set_index(name, "FLAT", {})


class MilvusWriter:
    """Writes images, several in a request; a context manager.

    Args:
        store: The gallery.
    """

    def __init__(self, store: MilvusStore) -> None:
        self.store, self.client = store, store.client
        self._span_key = f"{SPAN}{uuid4().hex}"
        self._pending: list[tuple[Record, np.ndarray]] = []
        self._recent: dict[str, tuple[float, Record]] = {}
        self._since = 0.0
        self._open: set[str] = set()
        self._cameras: set[str] = set(store.camera_names())
        self._times: list[float] = []

    def __enter__(self) -> "MilvusWriter":
        return self

    def __exit__(self, kind: type | None, *_: object) -> None:
        # most errors of a gallery are those of the server; damage is that of what is copied
        if (
            kind is None
            or issubclass(kind, GalleryDamagedError)
            or not issubclass(kind, GalleryError)
        ):
            self.flush()

    def append(
        self,
        entry: Entry,
        boxes: np.ndarray | None = None,
        scores: np.ndarray | None = None,
        reid_feats: np.ndarray | None = None,
    ) -> Entry:
        """Adds an image; see :class:`ImageWriter`. It is in the gallery after :meth:`flush`."""
        dim = self.store.manifest.dim
        entry, table, vectors = with_persons(entry, boxes, scores, reid_feats, dim)
        if entry.removed:
            self.flush()
            file = self.store.file_key(entry)
            self.store._delete_records(list(self.store.records(f'file == "{file}"')))
            self.client.delete(self.store.images_name, ids=[f"open{file}"])
            self._open.discard(file)
            return entry
        record = Record.of(entry, self.store.roots[entry.root], table)
        if record.kind == END:
            self.flush()
            self._end_video(record)
            return entry
        if record.kind == FRAME:
            self._open_video(self.store.file_key(entry))
        if not self._pending:
            self._since = clock.monotonic()
        self._pending.append((record, vectors))
        if (
            len(self._pending) >= IMAGES_PER_COMMIT
            or sum(len(one.boxes) for one, _ in self._pending) >= PERSONS_PER_COMMIT
            or clock.monotonic() - self._since >= SECONDS_PER_COMMIT
        ):
            self.flush()
        return entry

    def flush(self) -> None:
        """Writes what is pending: persons, then images, then deletes replaced persons."""
        if not self._pending:
            return
        pending = {record.key: (record, vectors) for record, vectors in self._pending}
        self._pending = []
        # a strong request would wait for the clock of the server, 0.2 s
        found = self.client.rows_by_key(
            self.store.images_name, list(pending), ["pk", "text"], "Bounded"
        )
        before = {row["pk"]: Record.of_row(row) for row in found}
        now = clock.monotonic()
        self._recent = {k: v for k, v in self._recent.items() if now - v[0] < SECONDS_UNSEEN}
        before |= {key: self._recent[key][1] for key in pending if key in self._recent}
        persons = [
            self._person(record, number, vectors[number])
            for record, vectors in pending.values()
            for number in range(len(vectors))
        ]
        self._upsert(self.store.persons_name, persons)
        records = [record for record, _ in pending.values()]
        rows = [record.to_row(self.store.file_key(record.entry)) for record in records]
        rows += self._summary(record.entry for record in records)
        self.client.upsert(self.store.images_name, rows)
        kept = {key for record in records for key in record.person_keys()}
        stale = [key for old in before.values() for key in old.person_keys() if key not in kept]
        for start in range(0, len(stale), BLOCK):
            self.client.delete(self.store.persons_name, ids=stale[start : start + BLOCK])
        self._recent |= {record.key: (clock.monotonic(), record) for record in records}

    def _upsert(self, collection: str, rows: list[dict[str, Any]]) -> None:
        for start in range(0, len(rows), PERSONS_PER_COMMIT):
            self.client.upsert(collection, rows[start : start + PERSONS_PER_COMMIT])

    def _person(
        self, record: Record, number: int, vector: np.ndarray, **changes: object
    ) -> dict[str, Any]:
        entry = record.entry
        time = UNKNOWN if entry.time is None else entry.time
        return {
            "pk": f"{record.key}{record.batch}{number:x}",
            "kind": record.kind,
            "file": self.store.file_key(entry),
            "image": record.key,
            "batch": record.batch,
            "number": number,
            "feat": vector,
            "text": base64.b64encode(record.boxes[number].tobytes()).decode() + record.line
            if number < len(record.boxes)
            else "",
            "score": float(record.boxes[number, 4]) if number < len(record.boxes) else 0.0,
            "camera": shortened(entry.camera),
            "time": time,
            "last_time": time,
            "first": entry.offset or 0.0,
            "last": entry.offset or 0.0,
            **changes,
        }

    def _summary(self, entries: Iterable[Entry]) -> list[dict[str, Any]]:
        """Returns rows of new cameras and of the span of times."""
        rows, times = [], list(self._times)
        for entry in entries:
            if not entry.is_shown:
                continue
            if entry.camera not in self._cameras:
                self._cameras.add(entry.camera)
                text = json.dumps(entry.camera)
                rows.append(_plain_row(f"c{digest(entry.camera)}", CAMERA, text))
            if entry.time is not None:
                times.append(entry.time)
        if times and (span := [min(times), max(times)]) != self._times:
            self._times = span
            rows.append(_plain_row(self._span_key, FACTS, json.dumps(span)))
        return rows

    def _open_video(self, file: str) -> None:
        """Marks a video as being indexed: its frames are listed one by one."""
        if file not in self._open:
            self.store.write_fact(f"open{file}", file, OPEN)
            self._open.add(file)

    def _end_video(self, end: Record) -> None:
        """Groups the frames of a video into tracklets; its end makes them visible."""
        store, file = self.store, self.store.file_key(end.entry)
        self._open_video(file)
        where = f'file == "{file}" and kind == {FRAME}'
        frames = sorted(
            store.read_vectors(store.records(where)), key=lambda x: x[0].entry.frame or 0
        )
        before = list(store.records(f'file == "{file}" and kind == {END}'))
        # the same numbers may stand for other tracklets than before: hidden until the end
        store.client.delete(store.images_name, ids=[end.key])
        shown = [(record, vectors) for record, vectors in frames if len(vectors)]
        rows: list[dict[str, Any]] = []
        if shown:
            boxes = np.concatenate([record.boxes for record, _ in shown])
            vectors = np.concatenate([vectors for _, vectors in shown])
            counts = np.array([len(own) for _, own in shown])
            offsets = np.array([record.entry.offset or 0.0 for record, _ in shown])
            numbers = group_frames(offsets, counts, boxes[:, :4], vectors)
            grouped = Tracklets(numbers, [boxes], [vectors])
            frame_of = np.repeat(np.arange(len(shown)), counts)
            starts = np.cumsum([0, *counts])
            updated = [
                replace(record, tracklets=numbers[start : start + count].tolist()).to_row(file)
                for (record, _), start, count in zip(shown, starts, counts, strict=False)
            ]
            for start in range(0, len(updated), BLOCK):
                self.client.upsert(store.images_name, updated[start : start + BLOCK])
            camera = shortened(shown[0][0].entry.camera)
            end = replace(end, tracklets=[len(grouped)])
            for number in range(len(grouped)):
                own = grouped.rows_of(number)
                members = [shown[frame_of[row]][0].entry for row in own]
                times = [one.time for one in members if one.time is not None] or [UNKNOWN]
                seconds = [one.offset or 0.0 for one in members]
                rows.append(
                    self._person(
                        end,
                        number,
                        grouped.reid_feats[number],
                        kind=TRACKLET,
                        camera=camera,
                        score=float(boxes[own, 4].max()),
                        time=min(times),
                        last_time=max(times),
                        first=min(seconds),
                        last=max(seconds),
                    )
                )
        for old in before:
            if keys := old.person_keys():
                self.client.delete(store.persons_name, ids=keys)
        self._upsert(store.persons_name, rows)
        self.client.upsert(store.images_name, [end.to_row(file)])
        self.client.delete(store.images_name, ids=[f"open{file}"])
        self._open.discard(file)


def span_of(facts: Mapping[str, str]) -> tuple[float, float] | None:
    """Returns the first and the last time of all runs."""
    spans = [json.loads(text) for key, text in facts.items() if key.startswith(SPAN)]
    return (min(a for a, _ in spans), max(b for _, b in spans)) if spans else None
