# SPDX-License-Identifier: Apache-2.0
"""Indexing: from images and videos to a gallery, in one process or several.

A run compares the listed files with the gallery and reads those that are new, changed or
unfinished. Every process has its own writer, and every image is in the gallery as soon as it
is computed, so an interrupted run is simply started again.
"""

import itertools
import logging
import math
import os
import stat
import time
from collections import defaultdict, deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from detectron2.structures import Instances
from detectron2.utils import comm
from PIL import Image

from person_search.data import BadImageError, color_detail
from person_search.data.model_cards import MEASURED_IMAGES
from person_search.search.embedder import PersonEmbedder
from person_search.search.entries import END_OF_VIDEO, Entry
from person_search.search.fit import describe_misfit
from person_search.search.images import read_image
from person_search.search.names import from_stored, printable
from person_search.search.progress import Progress
from person_search.search.remote import Place, local_copy
from person_search.search.sources import Listing, OriginRules, Source
from person_search.search.store import GalleryStore, ImageWriter
from person_search.search.videos import VideoState, count_samples, sample_video
from person_search.utils.model_card import ModelCard
from person_search.vis.encoding import is_own_drawing

logger = logging.getLogger(__name__)
T = TypeVar("T")

SHARD = 8
"""Number of images that a process takes at a time."""
TOGETHER = 16
"""Number of images that are written together, if they come quickly."""
MAX_WORKERS = 4
"""Maximum number of threads that run the model at once on a CPU; each has its own feature maps."""
MAX_BATCH = 4
"""Maximum number of images in one call of the model."""
BATCH_PIXELS = {"cpu": 320_000, "cuda": 4_400_000}
"""Maximum number of pixels in one call, by device, unless a single image has more. Larger batches
save time only as long as the overhead of each operation counts, and take more memory."""


@dataclass(frozen=True)
class IndexOptions:
    """How to index.

    Attributes:
        every: Seconds between sampled frames of a video.
        origins: Sources of camera and time.
        prune: Remove images whose files are missing from the gallery.
        retry: Reread files that were unreadable before.
        approximate: Build the approximate index at the end if the gallery is large.
        durable: See ``SegmentWriter``.
    """

    every: float = 1.0
    origins: OriginRules = field(default_factory=OriginRules)
    prune: bool = False
    retry: bool = False
    approximate: bool = True
    durable: bool = True

    def __post_init__(self) -> None:
        if not self.every > 0:
            raise ValueError(f"--every is {self.every} seconds; it must be above 0.")


@dataclass
class IndexReport:
    """Result of :func:`index_images`.

    Attributes:
        images: Number of added images, including frames of videos.
        persons: Number of persons in them.
        unchanged: Number of files that were in the gallery already.
        removed: Number of files removed from the gallery.
        failed: Unreadable and truncated files, with the reason.
        left_out: Files that were not indexed, with the reason.
        seconds: Duration.
        color_details: ``color_detail`` of the first images.
    """

    images: int = 0
    persons: int = 0
    unchanged: int = 0
    removed: int = 0
    failed: dict[str, str] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0
    color_details: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class _Task:
    """A file to read.

    Attributes:
        source: The file.
        root: Index of its folder in the manifest.
        have: Frames of the video that are in the gallery.
        changed: The content has changed: what the gallery has of a video must be dropped.
    """

    source: Source
    root: int
    have: frozenset[int] = frozenset()
    changed: bool = False

    def entry(self, run: int, **fields: object) -> Entry:
        """Returns an entry of this file."""
        return Entry(
            run=run,
            root=self.root,
            path=self.source.path,
            size=self.source.size,
            mtime_ns=self.source.mtime_ns,
            **fields,  # type: ignore[arg-type]
        )


@dataclass(frozen=True)
class _Plan:
    """The work of all processes of a run.

    Attributes:
        run: Number of the run.
        writers: Names of the writers, one per process.
        tasks: Files to read, in order.
        removed: Entries that remove images.
        unchanged: Number of files that are in the gallery already.
    """

    run: int
    writers: list[str]
    tasks: list[_Task]
    removed: list[Entry]
    unchanged: int


@dataclass(frozen=True)
class _Read:
    """An image or a file without one, read and searched for persons.

    Attributes:
        file: The file.
        entry: Its entry without persons; None if the file is left out.
        item: The image as an input of the model, if there is one; dropped after the detection.
        found: Persons in the image.
        color_detail: ``color_detail`` of the image, if it was measured.
        seconds: Time of each stage.
    """

    file: str
    entry: Entry | None
    item: dict[str, Any] | None = None
    found: Instances | None = None
    color_detail: float = math.nan
    seconds: Mapping[str, float] = field(default_factory=dict)


def index_images(
    embedder: PersonEmbedder,
    gallery: str | os.PathLike,
    listing: Listing,
    options: IndexOptions | None = None,
    progress: bool | None = None,
) -> IndexReport:
    """Adds new and changed files to a gallery, which is created if missing.

    Under :func:`person_search.engine.launch` all processes call this function and share the work.

    Args:
        embedder: Embedder with the same model in all processes.
        gallery: Gallery, a folder or a URL of Milvus.
        listing: Files to index, from ``find_sources``; that of the first process counts.
        options: How to index.
        progress: Show a progress bar; None: in a terminal, and log lines elsewhere.

    Returns:
        Report of all processes together.

    Raises:
        OtherModelError: If the gallery belongs to another model.
        GalleryLockedError: If another process is writing the gallery.
    """
    options = options or IndexOptions()
    rank, processes = comm.get_rank(), comm.get_world_size()
    start = time.monotonic()
    with ExitStack() as stack:

        def prepare() -> _Plan:
            store = GalleryStore.open_or_create(gallery, embedder.embed_dim, embedder.identity)
            run = stack.enter_context(store.writing())
            return _make_plan(store, run, listing, options, processes)

        plan = _in_first_process(prepare)
        store = GalleryStore.open(gallery)
        with store.writer(plan.writers[rank], options.durable, TOGETHER) as writer:
            if rank == 0:
                for entry in plan.removed:
                    writer.append(entry)
            shared = _SharedTasks(plan)
            report = _work(embedder, writer, plan, shared.take(), options, progress)
        shared.wait()
        reports = comm.all_gather(report)
        details = [value for report in reports for value in report.color_details]
        if rank == 0:
            if len(report.color_details) < MEASURED_IMAGES:  # not yet reported by this process
                _warn_of_misfit(embedder.card, details)
            store.replace_manifest(
                card=embedder.card or store.manifest.card,
                color_details=(*store.manifest.color_details, *details)[-MEASURED_IMAGES:],
            )
            store.refresh(options.approximate)
    return IndexReport(
        images=sum(report.images for report in reports),
        persons=sum(report.persons for report in reports),
        unchanged=plan.unchanged,
        removed=len(plan.removed),
        failed={name: why for report in reports for name, why in report.failed.items()},
        left_out=listing.left_out
        | {name: why for report in reports for name, why in report.left_out.items()},
        seconds=time.monotonic() - start,
        color_details=details,
    )


class _SharedTasks:
    """The tasks of a run, of which every process takes the next few when it has time for them.

    Args:
        plan: Plan of all processes.
    """

    def __init__(self, plan: _Plan) -> None:
        self._processes = comm.get_world_size()
        self._store: Any = None
        shards: list[list[_Task]] = [[task] for task in plan.tasks if task.source.is_video]
        images = [task for task in plan.tasks if not task.source.is_video]
        shards += [images[i : i + SHARD] for i in range(0, len(images), SHARD)]
        self._shards = shards if self._processes > 1 else [plan.tasks]
        if self._processes > 1:  # the store through which the processes have met
            met = dist.distributed_c10d._get_default_store()
            self._store = dist.PrefixStore(f"index/{plan.run}", met)

    def take(self) -> Iterator[_Task]:
        """Yields tasks until none is left; long videos come first, so as not to be the last."""
        if self._store is None:
            yield from self._shards[0]
            return
        while (number := self._store.add("taken", 1) - 1) < len(self._shards):
            yield from self._shards[number]

    def wait(self) -> None:
        """Waits for the other processes, however long; collective calls have a time limit."""
        if self._store is not None:
            self._store.add("ended", 1)
            while self._store.add("ended", 0) < self._processes:
                time.sleep(0.05)


def _in_first_process(prepare: Callable[[], _Plan]) -> _Plan:
    """Prepares in the first process and sends the plan, or the error, to the others."""
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


def _make_plan(
    store: GalleryStore, run: int, listing: Listing, options: IndexOptions, processes: int
) -> _Plan:
    """Compares the files with the gallery; requires the lock."""
    writers = store.ensure_writers(processes)
    known: dict[tuple[int, str], list[Entry]] = defaultdict(list)
    for entry in store.entries():
        known[entry.root, entry.path].append(entry)
    roots = {root: store.add_root(root) for root in {s.root for s in listing.sources}}
    candidates = [
        _task_of(source, roots[source.root], known.get((roots[source.root], source.path)), options)
        for source in listing.sources
    ]
    tasks = [task for task in candidates if task is not None]
    removed = []
    if options.prune:
        listed = {(roots[source.root], source.path) for source in listing.sources}
        for (root, path), entries in sorted(known.items()):
            if root in roots.values() and (root, path) not in listed:
                file = store.root_path(root) / from_stored(path)
                # other files exist: this listing may be the only one that is not recursive
                if _is_missing(file) or str(file) in listing.left_out:
                    last = entries[-1]
                    removed.append(Entry(run, root, path, last.size, last.mtime_ns, removed=True))
    return _Plan(run, writers, tasks, removed, len(candidates) - len(tasks))


def _is_missing(file: Place) -> bool:
    """Whether a file has been removed or replaced by a folder; not if it cannot be accessed."""
    try:
        return not stat.S_ISREG(file.stat().st_mode)
    except OSError as e:
        return isinstance(e, (FileNotFoundError, NotADirectoryError))


def _task_of(
    source: Source, root: int, entries: list[Entry] | None, options: IndexOptions
) -> _Task | None:
    """Returns what to do with a file; None if its entries in the gallery are up to date."""
    if not entries:
        return _Task(source, root)
    if any((e.size, e.mtime_ns) != (source.size, source.mtime_ns) for e in entries):
        return _Task(source, root, changed=True)
    if not source.is_video:
        return _Task(source, root) if entries[-1].error and options.retry else None
    ends = [e for e in entries if e.frame == END_OF_VIDEO]
    if ends and ends[0].every == options.every and not (ends[0].error and options.retry):
        return None
    have = frozenset(e.frame for e in entries if e.frame is not None and e.frame >= 0)
    return _Task(source, root, have)


def _work(
    embedder: PersonEmbedder,
    writer: ImageWriter,
    plan: _Plan,
    tasks: Iterable[_Task],
    options: IndexOptions,
    progress: bool | None,
) -> IndexReport:
    """Does the share of one process."""
    report = IndexReport()
    total = sum(
        count_samples(task.source.file, options.every)
        if task.source.is_video and isinstance(task.source.root, Path)
        else 1  # a video at a URL is not copied twice
        for task in plan.tasks
    )
    total = -(-total // len(plan.writers))
    name = "index" if len(plan.writers) == 1 else f"index (1 of {len(plan.writers)} processes)"
    shown = progress if comm.is_main_process() else False
    jobs = read_ahead(_jobs(tasks, plan.run, embedder, options, report))
    # closing: after an error, the other threads must end before the process does
    with Progress(total, name, shown) as bar, closing(jobs), _threads(embedder) as (readers, pool):
        batches = _batches(in_order(jobs, readers), BATCH_PIXELS.get(embedder.device.type, 0))
        detections = in_order((partial(_detect, embedder, batch) for batch in batches), pool)
        for read in itertools.chain.from_iterable(detections):
            if read.entry is None:
                report.left_out[read.file] = "an image drawn by this program"
                bar.update()
                continue
            if read.entry.error:
                report.failed[read.file] = read.entry.error
                logger.warning("%s", printable(read.entry.error))
            start = time.perf_counter()
            if read.found is None:
                writer.append(read.entry)
            else:
                writer.append(
                    read.entry,
                    read.found.pred_boxes.tensor.numpy(),
                    read.found.scores.numpy(),
                    read.found.reid_feats.numpy(),
                )
                report.images += 1
                report.persons += len(read.found)
                _note_color_detail(read.color_detail, embedder.card, report)
            written = {"write": time.perf_counter() - start}
            count = read.entry.frame != END_OF_VIDEO and not read.entry.removed
            bar.update(count, {**read.seconds, **written} if read.found is not None else None)
    return report


def _note_color_detail(detail: float, card: ModelCard | None, report: IndexReport) -> None:
    """Collects the first measurements, and warns as soon as they show a misfit of the model."""
    if math.isnan(detail) or len(report.color_details) == MEASURED_IMAGES:
        return
    report.color_details.append(round(detail, 3))
    if len(report.color_details) == MEASURED_IMAGES and comm.is_main_process():
        _warn_of_misfit(card, report.color_details)


def _warn_of_misfit(card: ModelCard | None, details: Sequence[float]) -> None:
    if misfit := describe_misfit(card, details):
        logger.warning("%s", misfit)


@contextmanager
def _threads(embedder: PersonEmbedder) -> Iterator[tuple[ThreadPoolExecutor, ThreadPoolExecutor]]:
    """Yields a pool of threads that read images, and one that runs the model.

    The latter has several threads on the CPU if the model supports that. Each image then has one
    thread of PyTorch, or a few, which is faster than sharing them among the many small operations
    of one image.
    """
    total, workers = torch.get_num_threads(), 1
    if embedder.device.type == "cpu" and getattr(embedder.model, "thread_safe_inference", False):
        workers = min(total, MAX_WORKERS)
    readers = workers if embedder.device.type == "cpu" else MAX_WORKERS
    try:
        torch.set_num_threads(total // workers)
        with ThreadPoolExecutor(readers) as reading, ThreadPoolExecutor(workers) as pool:
            yield reading, pool
    finally:
        torch.set_num_threads(total)


def in_order(
    jobs: Iterable[Callable[[], T]], pool: ThreadPoolExecutor, ahead: int = 2 * MAX_WORKERS
) -> Iterator[T]:
    """Yields the results of jobs in their order while the threads of a pool run the next ones.

    An error of a job is raised after the results before it; then, and when the consumer stops
    early, waiting jobs are dropped.

    Args:
        jobs: Functions without arguments.
        pool: Threads.
        ahead: Maximum number of jobs that are running or waiting.
    """
    waiting: deque[Future[T]] = deque()
    try:
        for job in jobs:
            waiting.append(pool.submit(job))
            while waiting and (len(waiting) > ahead or waiting[0].done()):
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        for future in waiting:
            future.cancel()


def _jobs(
    tasks: Iterable[_Task],
    run: int,
    embedder: PersonEmbedder,
    options: IndexOptions,
    report: IndexReport,
) -> Iterator[Callable[[], _Read]]:
    """Yields one job per image; frames of videos are decoded here, in their order."""
    for task in tasks:
        if not task.source.is_video:
            yield partial(_read_image, task, run, embedder, options, report)
            continue
        if task.changed:
            removed = _Read(str(task.source.file), task.entry(run, removed=True))
            yield partial(_prepare, removed, None, embedder, report, 0.0)
        for read, image in _read_video(task, run, embedder.image_format, options):
            yield partial(_prepare, read, image, embedder, report, time.perf_counter())


def _read_image(
    task: _Task, run: int, embedder: PersonEmbedder, options: IndexOptions, report: IndexReport
) -> _Read:
    """Reads an image file."""
    file, start = str(task.source.file), time.perf_counter()
    try:
        with local_copy(task.source.file) as local:
            image = read_image(local, embedder.image_format)
            with Image.open(local) as header:
                own = is_own_drawing(header)
            origin = options.origins.of(task.source, local)
    except (BadImageError, OSError) as e:
        return _Read(file, task.entry(run, error=str(e)))
    if own:
        return _Read(file, task.entry(run, removed=True) if task.changed else None)
    height, width = image.shape[:2]
    entry = task.entry(run, time=origin.time, camera=origin.camera, width=width, height=height)
    return _prepare(_Read(file, entry), image, embedder, report, start)


def _prepare(
    read: _Read,
    image: np.ndarray | None,
    embedder: PersonEmbedder,
    report: IndexReport,
    start: float,
) -> _Read:
    """Resizes an image, if there is one, so that only the input of the model is kept."""
    if image is None:
        return read
    # the writing thread counts: it may get more measurements than it needs, but not fewer
    measured = len(report.color_details) < MEASURED_IMAGES
    detail = color_detail(image) if measured else math.nan
    item = embedder.prepare(image)
    seconds = {"read": time.perf_counter() - start}
    return replace(read, item=item, color_detail=detail, seconds=seconds)


def _batches(reads: Iterable[_Read], max_pixels: int) -> Iterator[list[_Read]]:
    """Groups consecutive images; files without an image stay in their place.

    Args:
        reads: Images and files without one.
        max_pixels: Maximum number of pixels of a group of several images.
    """
    batch: list[_Read] = []
    pixels = 0
    for read in reads:
        size = math.prod(read.item["image"].shape[-2:]) if read.item else 0
        if batch and (len(batch) == MAX_BATCH or pixels + size > max_pixels):
            yield batch
            batch, pixels = [], 0
        batch.append(read)
        pixels += size
    if batch:
        yield batch


def _detect(embedder: PersonEmbedder, batch: list[_Read]) -> list[_Read]:
    """Detects the persons of a group of images."""
    start = time.perf_counter()
    items = [read.item for read in batch if read.item]
    found = iter(embedder.detect_prepared(items))
    seconds = {"detect": (time.perf_counter() - start) / max(len(items), 1)}
    return [
        replace(read, item=None, found=next(found), seconds={**read.seconds, **seconds})
        if read.item
        else read
        for read in batch
    ]


def _read_video(
    task: _Task, run: int, image_format: str, options: IndexOptions
) -> Iterator[tuple[_Read, np.ndarray | None]]:
    """Yields the sampled frames of a video, and its end without an image."""
    file, state, error = str(task.source.file), VideoState(), ""
    origin = options.origins.of(task.source)
    try:
        have = frozenset() if task.changed else task.have
        with local_copy(task.source.file) as local:
            for frame in sample_video(local, options.every, have, state):
                image = frame.image
                if image is None:
                    continue
                height, width = image.shape[:2]
                entry = task.entry(
                    run,
                    frame=frame.index,
                    offset=round(frame.offset, 3),
                    time=None if origin.time is None else origin.time + frame.offset,
                    camera=origin.camera,
                    width=width,
                    height=height,
                )
                if image_format == "BGR":
                    image = np.ascontiguousarray(image[:, :, ::-1])
                yield _Read(file, entry), image
        if state.error:
            error = f"the video '{file}' {state.error}; these are in the gallery."
    except (BadImageError, FileNotFoundError) as e:
        error = str(e)
    end = task.entry(run, frame=END_OF_VIDEO, error=error, every=options.every)
    yield _Read(file, end), None


def read_ahead(items: Iterable[T], ahead: int = 4) -> Generator[T, None, None]:
    """Yields items in order while a thread fetches the next ones.

    An error of the source is raised after the items before it. When the consumer stops early, the
    thread ends with the item that it is fetching.

    Args:
        items: Source, iterated in the thread.
        ahead: Maximum number of waiting items.
    """
    source, end = iter(items), object()
    with ThreadPoolExecutor(1) as thread:
        waiting = deque(thread.submit(next, source, end) for _ in range(ahead))
        try:
            while (item := waiting.popleft().result()) is not end:
                waiting.append(thread.submit(next, source, end))
                yield item  # type: ignore[misc]
        finally:
            for future in waiting:
                future.cancel()
