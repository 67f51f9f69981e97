# SPDX-License-Identifier: Apache-2.0
"""What a run of ``index`` has to do: which files are new, changed, unfinished or gone."""

from collections import defaultdict
from dataclasses import dataclass, field

from person_search.search.segment import END_OF_VIDEO, Entry
from person_search.search.sources import Listing, Origin, OriginRules, Source
from person_search.search.store import GalleryStore, live_entries


@dataclass(frozen=True)
class IndexOptions:
    """How to index.

    Args:
        every: seconds between sampled frames of a video.
        origins: where camera and time come from.
        prune: take images out of the gallery whose files are gone.
        retry: read files again that could not be read before.
        approximate: build the approximate index at the end, if the gallery is large.
        durable: see ``SegmentWriter``.
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


@dataclass(frozen=True)
class Task:
    """One file to be read.

    Args:
        source: the file. root: its folder in the manifest.
        have: frames of the video that are in the gallery.
        changed: the video has other content now: what the gallery has of it is to be dropped.
    """

    source: Source
    root: int
    have: frozenset[int] = frozenset()
    changed: bool = False

    def entry(self, run: int, **fields: object) -> Entry:
        """An entry of this file."""
        return Entry(
            run=run,
            root=self.root,
            path=self.source.path,
            size=self.source.size,
            mtime_ns=self.source.mtime_ns,
            **fields,  # type: ignore[arg-type]
        )


@dataclass(frozen=True)
class Plan:
    """The work of all processes of a run.

    Args:
        run: its number. segments: one per process.
        tasks: files to be read, in order. gone: images to be taken out.
        unchanged: files that are in the gallery as they are.
    """

    run: int
    segments: list[str]
    tasks: list[Task]
    gone: list[Entry]
    unchanged: int


def make_plan(
    store: GalleryStore, run: int, listing: Listing, options: IndexOptions, processes: int
) -> Plan:
    """Compares the files with the gallery; the caller holds the lock."""
    segments = store.ensure_segments(processes)
    known: dict[tuple[int, str], list[Entry]] = defaultdict(list)
    for entries in live_entries(store.read_segments()):
        for entry in entries:
            known[entry.root, entry.path].append(entry)
    roots = {root: store.add_root(root) for root in {s.root for s in listing.sources}}
    tasks, unchanged = [], 0
    for source in listing.sources:
        task = _task_of(source, roots[source.root], known, options)
        if task is None:
            unchanged += 1
        else:
            tasks.append(task)
    gone = []
    if options.prune:
        listed = {(roots[source.root], source.path) for source in listing.sources}
        for (root, path), entries in sorted(known.items()):
            if root in roots.values() and (root, path) not in listed:
                file = store.root_path(root) / path
                if not file.exists():  # another listing may have been recursive
                    last = entries[-1]
                    gone.append(Entry(run, root, path, last.size, last.mtime_ns, removed=True))
    return Plan(run, segments, tasks, gone, unchanged)


def _task_of(
    source: Source,
    root: int,
    known: dict[tuple[int, str], list[Entry]],
    options: IndexOptions,
) -> Task | None:
    """What is to be done with a file; None for nothing."""
    entries = known.get((root, source.path), [])
    if not entries:
        return Task(source, root)
    same = all((e.size, e.mtime_ns) == (source.size, source.mtime_ns) for e in entries)
    if not same:
        return Task(source, root, changed=True)
    last = entries[-1]
    if not source.is_video:
        return Task(source, root) if last.error and options.retry else None
    ends = [e for e in entries if e.frame == END_OF_VIDEO]
    if ends and ends[0].every == options.every and not (ends[0].error and options.retry):
        return None
    have = frozenset(e.frame for e in entries if e.frame is not None and e.frame >= 0)
    return Task(source, root, have)


def origin_of_frame(origin: Origin, offset: float | None) -> Origin:
    """Camera and time of a frame, from those of the start of its video."""
    if origin.time is None or offset is None:
        return origin
    return Origin(origin.camera, origin.time + offset)
