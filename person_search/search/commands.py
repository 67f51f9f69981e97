# SPDX-License-Identifier: Apache-2.0
"""What the sub-commands of ``person-search`` do; their options are in cli.py."""

import argparse
import logging
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from functools import partial

from detectron2.utils import comm
from detectron2.utils.logger import setup_logger

from person_search.config import build_config
from person_search.engine import friendly_errors, launch
from person_search.search.approximate import build_index, read_description
from person_search.search.embedder import PersonEmbedder
from person_search.search.errors import GalleryError
from person_search.search.gallery import Gallery
from person_search.search.images import clip_box, read_image
from person_search.search.indexing import index_images
from person_search.search.maintenance import compact, verify
from person_search.search.page import server
from person_search.search.page.session import PageSession
from person_search.search.page.uploads import UploadLimits
from person_search.search.planning import IndexOptions
from person_search.search.query import QueryPerson, detected_person, fuse, person_in_box
from person_search.search.results import SearchResult, write_results
from person_search.search.sources import (
    Listing,
    OriginRules,
    find_sources,
    parse_time,
    read_table,
)
from person_search.search.store import GalleryStore
from person_search.search.table import Match, SearchFilter, count, format_time
from person_search.search.wording import describe_query, describe_run, match_lines

FAULTS = 2
"""Exit status of ``verify`` if something is wrong."""


def run_index(args: argparse.Namespace) -> int:
    """Lists the files here and indexes them in one process or in several."""
    listing = find_sources(args.source, args.recursive)
    for path, reason in listing.left_out.items():
        logging.getLogger(__name__).warning("Left out: '%s' is %s.", path, reason)
    table = read_table(args.table) if args.table else {}
    unknown = sorted(set(table) - {source.path for source in listing.sources})
    if unknown:
        raise ValueError(
            f"'{args.table}' names {len(unknown)} file(s) that are not there: '{unknown[0]}' ... "
            "Paths start at the folder of --source; folders within need --recursive."
        )
    options = IndexOptions(
        every=args.every,
        origins=OriginRules(
            camera=args.camera,
            camera_from_folder=args.camera_from_folder,
            time=parse_time(args.time) if args.time else None,
            table=table,
        ),
        prune=args.prune,
        retry=args.retry,
        approximate=not args.exact_only,
    )
    launch(
        _index_worker,
        num_gpus=args.num_gpus,
        num_processes=args.num_processes,
        args=(args, listing, options),
    )
    return 0


def _index_worker(args: argparse.Namespace, listing: Listing, options: IndexOptions) -> None:
    """One process of ``index``."""
    if comm.get_world_size() > 1:
        setup_logger(name="person_search", abbrev_name="person_search")
    with friendly_errors(args.traceback):
        device = ["MODEL.DEVICE", "cpu"] if args.num_processes > 1 else []
        cfg = build_config(args.config_file, [*args.opts, *device])
        embedder = PersonEmbedder.from_config(cfg, args.weights)
        report = index_images(embedder, args.gallery, listing, options)
    if comm.is_main_process():
        print(describe_run(report, listing))
        print(args.gallery)


def run_query(args: argparse.Namespace) -> int:
    """Searches, writes the results and prints the best matches."""
    wanted = SearchFilter(
        min_score=args.min_score,
        cameras=frozenset(args.camera),
        since=parse_time(args.since) if args.since else None,
        until=parse_time(args.until) if args.until else None,
        min_similarity=args.min_similarity,
    )
    for path, box in zip(args.query, args.box or [], strict=False):  # before the model is built
        height, width = read_image(path).shape[:2]
        clip_box(box, width, height, path)
    gallery = Gallery.open(args.gallery)
    _check_cameras(gallery, wanted)
    embedder = PersonEmbedder.from_config(build_config(args.config_file, args.opts), args.weights)
    gallery.store.manifest.model.require(embedder.identity, args.gallery)
    queries = _find_queries(args, embedder)
    print("\n".join(map(describe_query, queries)))
    search = partial(
        gallery.search,
        fuse([query.reid_feat for query in queries]),
        skip=() if args.include_own else args.query,
        per_image=not args.every_person,
        method=args.method,
    )
    matches = search(args.top, wanted=wanted)
    settings = {"method": args.method, "top": args.top, **wanted.to_json()}
    result = SearchResult(queries, gallery, matches, settings, wanted)
    files = write_results(result, args.output, args.show)
    lines = match_lines(matches, args.show)
    if not matches:
        best = search(1, wanted=replace(wanted, min_similarity=None))
        lines = [f"Nobody was found in {result.describe()}{_why_nobody(gallery, wanted, best)}"]
    print("\n".join([*lines, *map(str, files)]))
    return 0


def _find_queries(args: argparse.Namespace, embedder: PersonEmbedder) -> list[QueryPerson]:
    if args.box:
        return [
            person_in_box(embedder, path, box)
            for path, box in zip(args.query, args.box, strict=True)
        ]
    points = [tuple(point) for point in args.point] if args.point else [None] * len(args.query)
    return [
        detected_person(embedder, path, point)
        for path, point in zip(args.query, points, strict=True)
    ]


def _check_cameras(gallery: Gallery, wanted: SearchFilter) -> None:
    unknown = sorted(wanted.cameras - set(gallery.pictures.camera_names))
    if unknown:
        known = ", ".join(name for name in gallery.pictures.camera_names if name)
        raise ValueError(f"--camera {unknown[0]}: the gallery knows {known or 'no camera'}.")


def _why_nobody(gallery: Gallery, wanted: SearchFilter, best: list[Match]) -> str:
    if best:
        return f"; the most similar person has {best[0].sim:.3f}."
    if not len(gallery):
        if gallery.failed and not len(gallery.pictures):
            return (
                f": the gallery is empty, and {count(len(gallery.failed), 'file')} could not be "
                "read. 'person-search index --retry' names them."
            )
        return (
            ": the gallery is empty. A lower TEST.PERSON_SEARCH.SCORE_THRESH, for 'index' into a "
            "new gallery, finds more."
        )
    if wanted != SearchFilter():
        return "."
    return " besides the query's own image (--include-own searches that, too)."


def run_serve(args: argparse.Namespace) -> int:
    """Opens the page; what can be wrong with address and gallery is told before the model loads."""
    server.check_installed()
    Gallery.open(args.gallery)
    with closing(server.bind(args.host, args.port)) as listening:
        cfg = build_config(args.config_file, args.opts)
        embedder = PersonEmbedder.from_config(cfg, args.weights)
        limits = UploadLimits(image_bytes=round(1e6 * args.max_upload))
        session = PageSession(args.gallery, embedder, limits)
        server.serve(session, listening, args.allow_host, args.open)
    return 0


def run_info(args: argparse.Namespace) -> int:
    """Prints what is in a gallery."""
    gallery = Gallery.open(args.gallery)
    store, table = gallery.store, gallery.pictures
    manifest = store.manifest
    rows = len(gallery.image_of_row)
    size = sum(path.stat().st_size for path in store.folder.rglob("*") if path.is_file())
    known_times = table.times[table.times == table.times]
    description = read_description(store.folder)
    facts = [
        ("images and frames", f"{len(table)} ({count(len(gallery.failed), 'file')} unreadable)"),
        ("persons", f"{len(gallery)} ({rows - len(gallery)} of replaced or removed images)"),
        ("embeddings", f"length {manifest.dim}, {4 * rows * manifest.dim / 1e6:.1f} MB"),
        ("on disk", f"{size / 1e6:.1f} MB in {count(len(manifest.segments), 'segment')}"),
        ("model", f"{manifest.model.architecture}, weights {manifest.model.weights[:12]}"),
        *(("folder", str(store.root_path(root))) for root in range(len(manifest.roots))),
        ("cameras", ", ".join(name for name in table.camera_names if name) or "unknown"),
        (
            "times",
            f"{format_time(known_times.min())} to {format_time(known_times.max())}, "
            f"{len(table) - len(known_times)} unknown"
            if len(known_times)
            else "unknown",
        ),
        (
            "approximate index",
            f"{description.cells} cells, {description.probes} looked into, recall of the 10 best "
            f"{description.recall:.3f}"
            if description
            else "none",
        ),
        ("runs", str(manifest.run)),
    ]
    for name, value in facts:
        print(f"{name:20s} {value}")
    return 0


def run_verify(args: argparse.Namespace) -> int:
    """Prints all damage."""
    problems = verify(GalleryStore(args.gallery))
    for problem in problems:
        print(problem)
    print(f"{count(len(problems), 'problem')}." if problems else "Everything is as it was written.")
    return FAULTS if problems else 0


def run_compact(args: argparse.Namespace) -> int:
    """Writes the gallery anew, and its index if wanted."""
    store = GalleryStore(args.gallery)
    report = compact(store)
    for problem in report.damaged:
        print(f"Lost: {problem}")
    print(
        f"{count(report.pictures, 'picture')} with {count(report.persons, 'person')} kept, "
        f"{count(report.dropped_rows, 'person')} of replaced, removed or damaged images dropped."
    )
    if args.index:
        gallery = Gallery(store)
        if not len(gallery):
            raise GalleryError("the gallery is empty; there is nothing to build an index of.")
        with store.writing():
            made = build_index(store.folder, store.manifest.segments, gallery.vectors)
        print(f"Index: {made.cells} cells, {made.probes} looked into, recall {made.recall:.3f}.")
    return 0


COMMANDS: dict[str, Callable[[argparse.Namespace], int]] = {
    "index": run_index,
    "query": run_query,
    "serve": run_serve,
    "info": run_info,
    "verify": run_verify,
    "compact": run_compact,
}
