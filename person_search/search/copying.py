# SPDX-License-Identifier: Apache-2.0
"""Copying a gallery into another one, for example from a folder into Milvus and back."""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from person_search.search.entries import END_OF_VIDEO, Entry, checksum
from person_search.search.errors import GalleryDamagedError
from person_search.search.progress import Progress
from person_search.search.remote import Place
from person_search.search.store import GalleryStore

TOGETHER = 64


@dataclass
class CopyReport:
    """Result of :func:`copy`.

    Attributes:
        images: Number of copied images and frames.
        persons: Number of their persons.
        present: Number of images and frames that the target had already, or of which it has a later
            version.
    """

    images: int = 0
    persons: int = 0
    present: int = 0


def copy(source: GalleryStore, target: GalleryStore, progress: bool | None = None) -> CopyReport:
    """Copies all images that the target lacks; embeddings stay equal to the bit.

    Of two versions of a file, the later one replaces the other. An interrupted copy continues when
    it is called again. What the target has besides stays.

    Args:
        source: Gallery.
        target: Gallery of the same model.
        progress: See :class:`Progress`.

    Raises:
        OtherModelError: If the galleries belong to different models.
        GalleryDamagedError: If persons of the source are damaged; what precedes them is copied.
    """
    target.manifest.model.require(source.manifest.model, target.location, detection=True)
    report, damage = CopyReport(), None
    # file -> its version -> what the target has of it; two versions if a file changed meanwhile
    present: dict[tuple[Place, str], dict[tuple[int, int], set[Entry]]] = defaultdict(
        lambda: defaultdict(set)
    )
    for entry in target.entries():
        present[_file(target, entry)][_version(entry)].add(_content(entry))
    with target.writing() as run:
        roots = {number: target.add_root(source.root_path(number)) for number in source.roots}
        (name,) = target.ensure_writers(1)
        total = source.gallery().num_images
        with (
            target.writer(name, together=TOGETHER) as writer,
            Progress(total, "copy", progress) as bar,
        ):
            try:
                for entry, boxes, vectors in _ends_last(source):
                    held, version = present[_file(source, entry)], _version(entry)
                    newest, root = max(held, default=version), roots[entry.root]
                    # an image replaces its earlier version, but a video may have other frames
                    stale = entry.frame is not None and newest <= version and set(held) - {version}
                    if newest > version or (not stale and _content(entry) in held[version]):
                        report.present += entry.is_shown
                    else:
                        if len(boxes) and checksum(vectors, boxes) != entry.crc:
                            raise GalleryDamagedError(
                                f"the persons of '{entry.path}' in '{source.location}' are damaged;"
                                " 'person-search verify' lists all damage, 'person-search compact' "
                                "removes it."
                            )
                        if stale:
                            size, time = entry.size, entry.mtime_ns
                            writer.append(Entry(run, root, entry.path, size, time, removed=True))
                            held.clear()
                        bare = replace(entry, run=run, root=root, first=0, rows=0, crc=0)
                        writer.append(bare, boxes[:, :4], boxes[:, 4], vectors)
                        report.images += entry.is_shown
                        report.persons += len(boxes)
                    bar.update(int(entry.is_shown))
            except GalleryDamagedError as e:
                damage = e  # raised below: the writer ends as usual, and keeps what it has
        target.replace_manifest(
            card=target.manifest.card or source.manifest.card,
            color_details=target.manifest.color_details or source.manifest.color_details,
        )
        target.refresh(approximate=True)
    if damage is not None:
        raise damage
    return report


def _ends_last(source: GalleryStore) -> Iterator[tuple[Entry, np.ndarray, np.ndarray]]:
    """Yields all entries; the end of a video, which completes it, after all frames."""
    ends = []
    for entry, boxes, vectors in source.persons():
        if entry.frame == END_OF_VIDEO:
            ends.append((entry, boxes, vectors))
        else:
            yield entry, boxes, vectors
    yield from ends


def _file(store: GalleryStore, entry: Entry) -> tuple[Place, str]:
    return store.root_path(entry.root).resolve(), entry.path


def _version(entry: Entry) -> tuple[int, int]:
    return entry.mtime_ns, entry.size


def _content(entry: Entry) -> Entry:
    """Returns what two entries of the same image have in common."""
    return replace(entry, run=0, root=0, first=0)
