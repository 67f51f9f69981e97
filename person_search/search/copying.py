# SPDX-License-Identifier: Apache-2.0
"""Copying a gallery into another one, for example from a folder into Milvus and back."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from person_search.search.entries import END_OF_VIDEO, Entry
from person_search.search.errors import GalleryDamagedError
from person_search.search.progress import Progress
from person_search.search.store import GalleryStore

TOGETHER = 64


@dataclass
class CopyReport:
    """Result of :func:`copy`.

    Attributes:
        images: Number of copied images and frames.
        persons: Number of their persons.
        present: Number of images and frames that the target had already.
    """

    images: int = 0
    persons: int = 0
    present: int = 0


def copy(source: GalleryStore, target: GalleryStore, progress: bool | None = None) -> CopyReport:
    """Copies all images that the target lacks; embeddings stay equal to the bit.

    An interrupted copy continues when it is called again. What the target has besides stays.

    Args:
        source: Gallery.
        target: Gallery of the same model.
        progress: See :class:`Progress`.

    Raises:
        OtherModelError: If the galleries belong to different models.
        GalleryDamagedError: If persons of the source are damaged; what precedes them is copied.
    """
    target.manifest.model.require(source.manifest.model, target.location, detection=True)
    report = CopyReport()
    present = {_state(target, entry) for entry in target.entries()}
    with target.writing() as run:
        roots = {number: target.add_root(source.root_path(number)) for number in source.roots}
        (name,) = target.ensure_writers(1)
        total = source.gallery().num_images
        with (
            target.writer(name, together=TOGETHER) as writer,
            Progress(total, "copy", progress) as bar,
        ):
            for entry, boxes, vectors in _ends_last(source):
                if _state(source, entry) in present:
                    report.present += entry.is_shown
                else:
                    bare = replace(entry, run=run, root=roots[entry.root], first=0, rows=0, crc=0)
                    written = writer.append(bare, boxes[:, :4], boxes[:, 4], vectors)
                    if written.crc != entry.crc:
                        raise GalleryDamagedError(
                            f"the persons of '{entry.path}' in '{source.location}' are damaged; "
                            "'person-search verify' lists all damage."
                        )
                    report.images += entry.is_shown
                    report.persons += len(boxes)
                bar.update(int(entry.is_shown))
        target.replace_manifest(
            card=target.manifest.card or source.manifest.card,
            color_details=target.manifest.color_details or source.manifest.color_details,
        )
        target.refresh(approximate=True)
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


def _state(store: GalleryStore, entry: Entry) -> tuple:
    """Returns what two entries of the same image have in common."""
    folder = store.root_path(entry.root).resolve()
    return folder, replace(entry, run=0, root=0, first=0)
