# SPDX-License-Identifier: Apache-2.0
"""The sub-commands of ``person-search`` and what they print; their options are in cli.py."""

import argparse
import json
import logging
import os
import socket
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from detectron2.utils import comm
from detectron2.utils.logger import setup_logger

from person_search.config import build_config
from person_search.engine import friendly_errors, launch_program
from person_search.search.copying import copy
from person_search.search.embedder import PersonEmbedder
from person_search.search.export import run_export
from person_search.search.fit import describe_misfit
from person_search.search.gallery import CHANGED, Gallery
from person_search.search.images import clip_box, read_image
from person_search.search.indexing import IndexOptions, IndexReport, index_images
from person_search.search.maintenance import compact, forget, verify
from person_search.search.names import printable
from person_search.search.query import QueryPerson, detected_person, fuse, person_in_box
from person_search.search.results import SearchResult, place_of, write_results
from person_search.search.sources import (
    Listing,
    OriginRules,
    describe_others,
    find_sources,
    parse_time,
    read_table,
)
from person_search.search.store import GalleryStore
from person_search.search.table import Match, SearchFilter, count, format_time
from person_search.utils.model_card import NO_CARD
from person_search.utils.weight_files import fetch_weights, read_card

if TYPE_CHECKING:
    from person_search.search.page.access import Access

FAULTS = 2
"""Exit status of ``verify`` if it finds a problem."""
LISTED = 20
"""Number of files listed at the end of ``index``; all are logged when they occur."""


def run_index(args: argparse.Namespace) -> int:
    """Lists the files and indexes them in one process or several."""
    listing = find_sources(args.source, args.recursive)
    for path, reason in listing.left_out.items():
        logging.getLogger(__name__).warning("Left out: '%s' is %s.", printable(path), reason)
    table = read_table(args.table) if args.table else {}
    unknown = sorted(set(table) - {source.path for source in listing.sources})
    if unknown:
        raise ValueError(
            f"'{args.table}' names {count(len(unknown), 'file')} that --source does not contain: "
            f"'{printable(unknown[0])}' ... Paths start at the folder of --source; files in "
            "subfolders require --recursive."
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
    launch_program(_index_worker, args, listing, options)
    return 0


def _index_worker(args: argparse.Namespace, listing: Listing, options: IndexOptions) -> None:
    """Runs one process of ``index``."""
    if comm.get_world_size() > 1:
        setup_logger(name="person_search", abbrev_name="person_search")
    with friendly_errors(args.traceback):
        device = ["MODEL.DEVICE", "cpu"] if comm.get_world_size() > 1 and not args.num_gpus else []
        cfg = build_config(args.config_file, [*args.opts, *device])
        embedder = PersonEmbedder.from_config(cfg, args.weights)
        report = index_images(embedder, args.gallery, listing, options)
    if comm.is_main_process():
        print(describe_run(report, listing))
        print(printable(str(args.gallery)))


def describe_run(report: IndexReport, listing: Listing) -> str:
    """Summarizes a run of ``index`` in a few lines."""
    speed = report.images / report.seconds if report.seconds > 0 else 0.0
    lines = [
        f"{count(report.images, 'image')} with {count(report.persons, 'person')} added in "
        f"{report.seconds:.1f} s ({speed:.2f} per second); {count(report.unchanged, 'file')} "
        "unchanged."
    ]
    if report.removed:
        lines.append(f"{count(report.removed, 'missing file')} removed from the gallery.")
    lines += _listed("unreadable or truncated", report.failed)
    reasons = [f"{path} ({reason})" for path, reason in report.left_out.items()]
    lines += _listed("left out", reasons)
    if listing.others:
        others = describe_others(listing.others)
        lines.append(f"{count(listing.others.total(), 'file')} of other kinds not indexed:")
        lines += [f"  {line}" for line in others]
    return "\n".join(lines)


def _listed(what: str, names: Iterable[str]) -> list[str]:
    """Returns a heading and the names below it; nothing without names."""
    lines = [f"  {printable(name)}" for name in names]
    if not lines:
        return []
    heading = f"{count(len(lines), 'file')} {what}:"
    if len(lines) > LISTED:
        lines[LISTED:] = [f"  and {len(lines) - LISTED} more, see the log above"]
    return [heading, *lines]


def run_query(args: argparse.Namespace) -> int:
    """Searches, writes the results and prints the best matches."""
    wanted = SearchFilter(
        min_score=args.min_score,
        cameras=frozenset(map(printable, args.camera)),
        since=parse_time(args.since) if args.since else None,
        until=parse_time(args.until, end=True) if args.until else None,
        min_similarity=args.min_similarity,
    )
    for path, box in zip(args.query, args.box or [], strict=False):  # before the model is built
        height, width = read_image(path).shape[:2]
        clip_box(box, width, height, path)
    gallery = Gallery.open(args.gallery)
    unknown = sorted(wanted.cameras - set(gallery.camera_names))
    if unknown:
        known = ", ".join(name for name in gallery.camera_names if name)
        raise ValueError(f"--camera is '{unknown[0]}'; cameras of the gallery: {known or 'none'}.")
    embedder = PersonEmbedder.from_config(build_config(args.config_file, args.opts), args.weights)
    gallery.store.manifest.model.require(embedder.identity, args.gallery)
    if misfit := describe_misfit(embedder.card, gallery.store.manifest.color_details):
        logging.getLogger(__name__).warning("%s", misfit)
    queries = _find_queries(args, embedder)
    print("\n".join(map(describe_query, queries)))
    search = partial(
        gallery.search,
        fuse([query.reid_feat for query in queries]),
        skip=() if args.include_own else args.query,
        per_image=not args.every_person,
        every_frame=args.every_frame,
        method=args.method,
    )
    matches = search(args.top, wanted=wanted)
    settings = {
        "method": args.method,
        "top": args.top,
        "every_frame": args.every_frame,
        **wanted.to_json(),
    }
    result = SearchResult(queries, gallery, matches, settings, wanted)
    files = write_results(result, args.output, args.show)
    if matches:
        lines = match_lines(matches, args.show, gallery)
    else:
        best = search(1, wanted=replace(wanted, min_similarity=None))
        why = _why_no_match(gallery, wanted, best)
        lines = [f"No person was found in {result.describe()}{why}"]
    print("\n".join([*lines, *map(printable, files)]))
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


def describe_query(query: QueryPerson) -> str:
    """Describes the query, for example the person that the detector selected."""
    box = " ".join(f"{value:.0f}" for value in query.box)
    score = "" if query.score is None else f" (detected with score {query.score:.2f})"
    return f"Searching for the person at {box} in {printable(query.path)}{score}"


def match_lines(matches: Sequence[Match], shown: int, gallery: Gallery | None = None) -> list[str]:
    """Describes the best matches, one per line.

    Args:
        matches: Matches, best first.
        shown: Maximum number of lines.
        gallery: The searched gallery, to report images that have changed since.
    """
    lines = []
    for match in matches[:shown]:
        place = place_of(match, match.path)
        if match.describe_span():
            place = f"{printable(match.path)}, {match.describe_span()}"
        time = "" if match.time is None else format_time(match.time)
        changed = CHANGED if gallery is not None and gallery.is_changed(match.image) else ""
        known = ", ".join(fact for fact in (match.camera, time, changed) if fact)
        lines.append(
            f"{match.rank:3d}  similarity {match.sim:6.3f}  {place}"
            + (f"  ({known})" if known else "")
        )
    if len(matches) > shown:
        lines.append(f"     and {count(len(matches) - shown, 'more match', 'more matches')}")
    return lines


def _why_no_match(gallery: Gallery, wanted: SearchFilter, best: list[Match]) -> str:
    if best:
        return f"; the most similar person has similarity {best[0].sim:.3f}."
    if not len(gallery):
        if gallery.num_failed and not gallery.num_images:
            return (
                f": the gallery is empty, and {count(gallery.num_failed, 'file')} could not be "
                "read. 'person-search index --retry' lists them."
            )
        return (
            ": the gallery is empty. A lower TEST.PERSON_SEARCH.SCORE_THRESH, for 'index' into a "
            "new gallery, detects more persons."
        )
    if wanted != SearchFilter():
        return "."
    return " besides the image of the query (--include-own also searches that)."


def run_serve(args: argparse.Namespace) -> int:
    """Opens the page; problems of address and gallery are reported before the model is loaded."""
    from person_search.search.page import server

    server.check_installed()
    from person_search.search.page.app import create_app
    from person_search.search.page.session import PageSession
    from person_search.search.page.uploads import UploadLimits

    Gallery.open(args.gallery)
    with _page_access(args) as (listening, access, options):
        cfg = build_config(args.config_file, args.opts)
        embedder = PersonEmbedder.from_config(cfg, args.weights)
        limits = UploadLimits(image_bytes=round(1e6 * args.max_upload))
        with closing(PageSession(args.gallery, embedder, limits)) as session:
            facts = session.describe()
            opened = (
                f"The gallery '{facts['name']}' ({facts['images']} images, {facts['persons']} "
                "persons)"
            )
            app = create_app(session, access, args.allow_host)
            server.serve(app, listening, opened, access.token, **options)
    return 0


def run_label(args: argparse.Namespace) -> int:
    """Opens the page of the proposed identities."""
    from person_search.search import labeling
    from person_search.search.page import server

    labeling.check_installed()
    server.check_installed()
    from person_search.search.page.label_app import create_label_app

    with _page_access(args) as (listening, access, options):
        if args.source:
            cfg = build_config(args.config_file, args.opts)
            embedder = PersonEmbedder.from_config(cfg, args.weights)
            listing = find_sources(args.source, args.recursive)
            print(describe_run(index_images(embedder, args.gallery, listing), listing))
        gallery = Gallery.open(args.gallery)
        groups = labeling.Labeling(gallery, args.output, args.min_score, args.min_size)
        if groups.left_out:
            logging.getLogger(__name__).warning(
                "%s of videos left out: extract them as images to label them.",
                count(groups.left_out, "frame"),
            )
        opened = (
            f"{count(len(groups.boxes), 'person')} of {count(groups.num_images, 'image')} in "
            f"'{args.gallery}'"
        )
        app = create_label_app(groups, access, args.allow_host)
        server.serve(app, listening, f"The labeling of {opened}", access.token, **options)
    print(printable(args.output))
    return 0


@contextmanager
def _page_access(args: argparse.Namespace) -> Iterator[tuple[socket.socket, "Access", dict]]:
    """Yields the socket of a page, who may see it, and options of its server.

    Raises:
        ValueError: If an option is invalid.
    """
    from person_search.search.page import server
    from person_search.search.page.access import VARIABLE, Access, check_token, parse_proxies

    if args.https:
        server.check_certificate(*args.https)
    token = (os.environ.get(VARIABLE) or None) if args.token is None else args.token
    if token is not None and not args.no_token:
        check_token(token)
    proxies = parse_proxies(args.trusted_proxy)
    log = logging.getLogger(__name__)
    if any(proxy.is_loopback for proxy in proxies):
        log.warning("Every program on this machine can send the header %s; use --trusted-proxy "
                    "127.0.0.1 only where all users may see the images.",
                    args.trust_header)  # fmt: skip
    with closing(server.bind(args.host, args.port)) as listening:
        if args.no_token and not server.is_private(listening):
            raise ValueError(
                f"--no-token is for loopback addresses; --host is '{args.host}', which other "
                "machines reach."
            )
        if args.no_token:
            log.warning("--no-token: all users of this machine can see the images.")
        chosen = "" if args.no_token else token
        port = listening.getsockname()[1]
        access = Access(chosen, port, args.trust_header, proxies)
        options = {"https": args.https, "open_browser": args.open, "show_token": chosen is None}
        yield listening, access, options


def run_info(args: argparse.Namespace) -> int:
    """Prints what a gallery contains, or the model card of a weight file."""
    if args.weights:
        card = read_card(fetch_weights(args.weights))
        _print_facts([("model card", NO_CARD)] if card is None else card.facts())
    if args.gallery:
        _print_facts(Gallery.open(args.gallery).facts())
    return 0


def _print_facts(facts: Iterable[tuple[str, str]]) -> None:
    for name, value in facts:
        print(f"{name:20s} {value}")


def run_verify(args: argparse.Namespace) -> int:
    """Prints all damage."""
    problems = verify(GalleryStore.open(args.gallery))
    for problem in problems:
        print(printable(problem))
    print(f"{count(len(problems), 'problem')}." if problems else "The gallery is intact.")
    return FAULTS if problems else 0


def run_forget(args: argparse.Namespace) -> int:
    """Deletes images or persons for good."""
    store = GalleryStore.open(args.gallery)
    matches = _read_matches(args.results, args.rank) if args.results else []
    report = forget(store, args.source, matches)
    _print_lost(report.damaged)
    print(
        f"{count(report.images, 'image')} and {count(report.persons, 'person')} deleted from the "
        "gallery. The image files and earlier results of searches are untouched: delete them as "
        "well, or the next 'person-search index' adds the images again."
    )
    return 0


def _read_matches(file: Path, ranks: Sequence[int]) -> list[dict]:
    """Returns the matches of ``results.jsonl`` with the given ranks."""
    try:
        lines = [json.loads(line) for line in file.read_text("utf-8").splitlines()]
        matches = {line["rank"]: line for line in lines if line["kind"] == "match"}
    except (ValueError, KeyError, TypeError) as e:
        raise ValueError(
            f"'{file}' does not hold the results of 'person-search query': {e}."
        ) from e
    for rank in ranks:
        if rank not in matches:
            raise ValueError(
                f"--rank is {rank}; '{file}' has {count(len(matches), 'match', 'matches')}."
            )
    return [matches[rank] for rank in ranks]


def _print_lost(damaged: Iterable[str]) -> None:
    for problem in damaged:
        print(f"Lost: {printable(problem)}")


def run_compact(args: argparse.Namespace) -> int:
    """Rewrites the gallery, and builds its index if requested."""
    store = GalleryStore.open(args.gallery)
    report = compact(store)
    _print_lost(report.damaged)
    print(
        f"{count(report.images, 'image')} with {count(report.persons, 'person')} kept, "
        f"{count(report.dropped_rows, 'person')} of replaced, removed or damaged images dropped."
    )
    if args.index:
        print(f"Approximate index: {store.build_index()}.")
    return 0


def run_copy(args: argparse.Namespace) -> int:
    """Copies what the target lacks."""
    with closing(GalleryStore.open(args.source)) as source:
        manifest = source.manifest
        opened = GalleryStore.open_or_create(args.target, manifest.dim, manifest.model)
        with closing(opened) as target:
            report = copy(source, target)
    print(
        f"{count(report.images, 'image')} with {count(report.persons, 'person')} copied; "
        f"{count(report.present, 'image')} were there already."
    )
    return 0


RUN: dict[str, Callable[[argparse.Namespace], int]] = {
    "index": run_index,
    "query": run_query,
    "serve": run_serve,
    "label": run_label,
    "info": run_info,
    "verify": run_verify,
    "compact": run_compact,
    "forget": run_forget,
    "export": run_export,
    "copy": run_copy,
}
