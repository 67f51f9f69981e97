# SPDX-License-Identifier: Apache-2.0
"""From images and videos to a gallery on disk, in one process or in several.

Every process writes its own segment, and every image is in the gallery as soon as it has been
computed. A run that ends early, for whatever reason, is simply started again.
"""

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.utils import comm

from person_search.data import BadImageError
from person_search.search.approximate import build_index, read_description
from person_search.search.embedder import PersonEmbedder
from person_search.search.errors import GalleryError
from person_search.search.gallery import APPROXIMATE_FROM, Gallery
from person_search.search.images import read_image
from person_search.search.planning import IndexOptions, Plan, Task, make_plan, origin_of_frame
from person_search.search.prefetch import read_ahead
from person_search.search.progress import Progress
from person_search.search.segment import END_OF_VIDEO, Entry, SegmentWriter
from person_search.search.sources import Listing
from person_search.search.store import GalleryStore
from person_search.search.videos import VideoState, count_samples, sample_video

logger = logging.getLogger(__name__)

REBUILD_SHARE = 0.2
"""The approximate index is built anew when more than this share of the rows is not in it."""


@dataclass
class IndexReport:
    """What a run has done.

    Args:
        images: that were added, frames of videos included. persons: in them.
        unchanged: files that were in the gallery already. removed: taken out of it.
        failed: files that could not be read (to the end), and why.
        left_out: links that were not followed, and why.
        seconds: it took.
    """

    pictures: int = 0
    persons: int = 0
    unchanged: int = 0
    removed: int = 0
    failed: dict[str, str] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0


@dataclass(frozen=True)
class _Read:
    """What the reading thread hands over: an entry without persons, and the image if any."""

    entry: Entry
    picture: np.ndarray | None = None
    file: str = ""


def index_images(
    embedder: PersonEmbedder,
    folder: Path,
    listing: Listing,
    options: IndexOptions | None = None,
    progress: bool | None = None,
) -> IndexReport:
    """Adds all that is new or changed to a gallery, which is made if it is not there.

    Under :func:`person_search.engine.launch` all processes call it, and each takes its share.

    Args:
        embedder: with the same model in all processes.
        folder: of the gallery.
        listing: see ``find_sources``; of the first process.
        options: how.
        progress: whether to show a progress bar; None: in a terminal, and lines in a log elsewhere.

    Returns:
        What all processes together have done.

    Raises:
        OtherModelError: the gallery is of another model. GalleryLockedError: it is being written.
    """
    options = options or IndexOptions()
    rank, processes = comm.get_rank(), comm.get_world_size()
    start = time.monotonic()
    with ExitStack() as stack:

        def prepare() -> Plan:
            store = GalleryStore.open_or_create(folder, embedder.embed_dim, embedder.identity)
            run = stack.enter_context(store.writing())
            return make_plan(store, run, listing, options, processes)

        plan = _agree(prepare)
        store = GalleryStore(folder)
        with store.segment_writer(plan.segments[rank], options.durable) as writer:
            if rank == 0:
                for entry in plan.gone:
                    writer.append(entry)
            report = _work(embedder, writer, plan, plan.tasks[rank::processes], options, progress)
        report = _merge(comm.all_gather(report))
        if rank == 0 and options.approximate:
            _refresh_index(store)
    report.unchanged, report.removed = plan.unchanged, len(plan.gone)
    report.left_out = dict(listing.left_out)
    report.seconds = time.monotonic() - start
    return report


def _agree(prepare: Callable[[], Plan]) -> Plan:
    """Prepares in the first process and tells the others, errors included."""
    if comm.get_world_size() == 1:
        return prepare()
    outcome: Any = None
    if comm.is_main_process():
        try:
            outcome = prepare()
        except Exception as e:  # raised below, in all processes alike
            outcome = e
    outcome = comm.all_gather(outcome)[0]
    if isinstance(outcome, Exception):
        outcome.in_all_processes = True  # type: ignore[attr-defined]
        raise outcome
    return outcome


def _work(
    embedder: PersonEmbedder,
    writer: SegmentWriter,
    plan: Plan,
    tasks: list[Task],
    options: IndexOptions,
    progress: bool | None,
) -> IndexReport:
    """The share of one process."""
    report = IndexReport()
    total = sum(
        count_samples(task.source.file, options.every) if task.source.is_video else 1
        for task in tasks
    )
    name = "index" if len(plan.segments) == 1 else f"index (1 of {len(plan.segments)} processes)"
    reads = read_ahead(_read_all(tasks, plan.run, embedder.image_format, options))
    shown = progress if comm.is_main_process() else False
    # closing: after an error, its thread must have ended before the process does
    with Progress(total, name, shown) as bar, closing(reads):
        for read in reads:
            if read.entry.error:
                report.failed[read.file] = read.entry.error
                logger.warning("%s", read.entry.error)
            if read.picture is None:
                writer.append(read.entry)
            else:
                found = embedder.detect(read.picture)
                writer.append(
                    read.entry,
                    found.pred_boxes.tensor.numpy(),
                    found.scores.numpy(),
                    found.reid_feats.numpy(),
                )
                report.pictures += 1
                report.persons += len(found)
            bar.update(read.entry.frame != END_OF_VIDEO and not read.entry.removed)
    return report


def _read_all(
    tasks: list[Task], run: int, image_format: str, options: IndexOptions
) -> Iterator[_Read]:
    for task in tasks:
        file = str(task.source.file)
        if task.changed and task.source.is_video:  # an image's new entry replaces its old one
            yield _Read(task.entry(run, removed=True), file=file)
        origin = options.origins.of(task.source)
        if task.source.is_video:
            yield from _read_video(task, run, image_format, options)
            continue
        try:
            picture = read_image(file, image_format)
        except (BadImageError, OSError) as e:
            yield _Read(task.entry(run, error=str(e)), file=file)
            continue
        height, width = picture.shape[:2]
        entry = task.entry(run, time=origin.time, camera=origin.camera, width=width, height=height)
        yield _Read(entry, picture, file)


def _read_video(task: Task, run: int, image_format: str, options: IndexOptions) -> Iterator[_Read]:
    file, state, error = task.source.file, VideoState(), ""
    start = options.origins.of(task.source)
    try:
        have = frozenset() if task.changed else task.have
        for frame in sample_video(file, options.every, have, state):
            if frame.picture is None:
                continue
            origin = origin_of_frame(start, frame.offset)
            height, width = frame.picture.shape[:2]
            entry = task.entry(
                run,
                frame=frame.index,
                offset=round(frame.offset, 3),
                time=origin.time,
                camera=origin.camera,
                width=width,
                height=height,
            )
            picture = frame.picture
            if image_format == "BGR":
                picture = np.ascontiguousarray(picture[:, :, ::-1])
            yield _Read(entry, picture, str(file))
        if state.error:
            error = f"the video '{file}' {state.error}; these are in the gallery."
    except BadImageError as e:
        error = str(e)
    end = task.entry(run, frame=END_OF_VIDEO, error=error, every=options.every)
    yield _Read(end, None, str(file))


def _refresh_index(store: GalleryStore) -> None:
    """Builds the approximate index if the gallery is large and the index is missing or old."""
    gallery = Gallery(store)
    description = read_description(store.folder)
    rows = len(gallery.image_of_row)
    held = sum(description.rows.values()) if description else 0
    if len(gallery) < APPROXIMATE_FROM or (description and rows - held <= REBUILD_SHARE * rows):
        return
    try:
        build_index(store.folder, store.manifest.segments, gallery.vectors)
    except GalleryError as e:  # exact search works all the same
        logger.warning("%s", e)


def _merge(reports: list[IndexReport]) -> IndexReport:
    return IndexReport(
        pictures=sum(report.pictures for report in reports),
        persons=sum(report.persons for report in reports),
        failed={name: why for report in reports for name, why in report.failed.items()},
    )
