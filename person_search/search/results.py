# SPDX-License-Identifier: Apache-2.0
"""What a query leaves behind: JSON lines for programs, a sheet and a report for people.

results.jsonl   first the search, then one match per line, best first
sheet.png       the query and the best scenes, to look at or to mail
report.html     the same with all details, in one file that opens without a network
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from person_search.data import BadImageError
from person_search.search.errors import UnsafePathError
from person_search.search.gallery import Gallery
from person_search.search.query import QueryPerson
from person_search.search.table import Match, SearchFilter, count, format_time
from person_search.utils.files import write_atomically
from person_search.vis import SheetCell, draw_search_sheet, encode_image
from person_search.vis.html_report import ReportCell, html_report
from person_search.vis.search_sheet import MAX_QUERY_CROPS, QUERY_TITLE

RESULTS, SHEET, REPORT = "results.jsonl", "sheet.png", "report.html"
TITLE = "Who is this, and where else?"
DISCLAIMER = (
    "Similarity 1 would be the very same look; nobody has checked who is right. A detector finds "
    "persons and a model compares their looks: both make mistakes."
)


@dataclass(frozen=True)
class SearchResult:
    """A search that has been made.

    Args:
        queries: images of the person.
        gallery: what was searched.
        matches: best first.
        settings: how, e.g. the filters; plain types.
        wanted: the filters.
    """

    queries: Sequence[QueryPerson]
    gallery: Gallery
    matches: Sequence[Match]
    settings: dict
    wanted: SearchFilter = SearchFilter()

    def describe(self) -> str:
        """What was searched, e.g. "12 images (34 persons), only camera gate"."""
        pictures = count(len(self.gallery.pictures), "picture")
        text = f"{pictures} ({count(len(self.gallery), 'person')})"
        return f"{text}, only {self.wanted.describe()}" if self.wanted.describe() else text


def write_results(result: SearchResult, folder: Path, shown: int) -> list[Path]:
    """Writes all three files, each as a whole; ``shown`` matches are drawn.

    Returns:
        their paths.
    """
    folder.mkdir(parents=True, exist_ok=True)
    scenes = list(_scenes(result, shown))
    contents = {
        RESULTS: json_lines(result).encode(),
        SHEET: encode_image(_sheet(result, scenes), ".png"),
        REPORT: _report(result, scenes, len(scenes)).encode(),
    }
    for name, content in contents.items():
        write_atomically(folder / name, content)
    return [folder / name for name in contents]


def json_lines(result: SearchResult) -> str:
    """The search and its matches, one JSON object per line."""
    head = {
        "kind": "search",
        "query": [query.to_json() for query in result.queries],
        "gallery": {
            "folder": str(result.gallery.store.folder),
            "pictures": len(result.gallery.pictures),
            "persons": len(result.gallery),
            "model": result.gallery.store.manifest.model.weights,
        },
        **result.settings,
    }
    lines = [head, *({"kind": "match", **match.to_json()} for match in result.matches)]
    return "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)


def report_html(result: SearchResult, shown: int) -> str:
    """The report alone, with ``shown`` matches; one scene at a time is in memory."""
    return _report(result, _scenes(result, shown), min(shown, len(result.matches)))


def _scenes(result: SearchResult, shown: int) -> Iterator[np.ndarray | None]:
    return (_scene(result.gallery, match) for match in result.matches[:shown])


def _scene(gallery: Gallery, match: Match) -> np.ndarray | None:
    """The image of a match; None if it is gone, unreadable or not to be opened."""
    try:
        return gallery.read_scene(match)
    except (OSError, BadImageError, UnsafePathError):
        return None


def _sheet(result: SearchResult, scenes: Sequence[np.ndarray | None]):
    cells = [
        SheetCell(
            np.full((90, 120, 3), 128, np.uint8) if scene is None else scene,
            match.box if scene is not None else (0, 0, 120, 90),
            f"{match.rank}.  similarity {match.sim:.2f}",
            note=_note(result.gallery, match)
            + ("" if scene is not None else " (cannot be read any more)"),
        )
        for match, scene in zip(result.matches, scenes, strict=False)
    ]
    more = len(result.queries) - 1
    note = result.queries[0].shown_name + (f" and {more} more" if more else "")
    query, *others = [
        SheetCell(query.read(), query.box, QUERY_TITLE, "query", note=note)
        for query in result.queries[:MAX_QUERY_CROPS]
    ]
    person = "the person searched for" + (f", in {more + 1} images" if more else "")
    return draw_search_sheet(
        query,
        cells,
        more_queries=others,
        title=TITLE,
        caption=f"Left: {person}. Right: in {result.describe()}, those with the most similar "
        f"person, best first, each with that person enlarged. {DISCLAIMER}",
    )


def _query_scene(query: QueryPerson) -> np.ndarray | None:
    """The image of a query; None if it is gone: a person of the gallery is known without it."""
    try:
        return query.read()
    except (OSError, BadImageError):
        return None


def _report(result: SearchResult, scenes: Iterable[np.ndarray | None], shown: int) -> str:
    queries = (
        ReportCell(
            _query_scene(query),
            query.box,
            query.shown_name,
            f"The person searched for, in {query.shown_name}",
            [
                *([] if query.score is None else [("detection", f"{query.score:.2f}")]),
                ("box", _numbers(query.box)),
            ],
        )
        for query in result.queries
    )
    cells = (
        ReportCell(
            scene,
            match.box,
            f"{match.rank}.",
            f"Rank {match.rank}: a person in {place_of(match)}, similarity {match.sim:.2f}",
            _facts(result.gallery, match),
            match.sim,
        )
        for match, scene in zip(result.matches, scenes, strict=False)
    )
    searched = f"Searched in {result.describe()}. "
    if len(result.matches) > shown:
        searched += f"The best {shown} of {len(result.matches)} matches are shown. "
    else:
        searched += f"{count(shown, 'match', 'matches')}. "
    weights = result.gallery.store.manifest.model.weights[:12]
    footer = f"Gallery {result.gallery.store.folder}, model {weights}."
    return html_report(queries, cells, title=TITLE, summary=searched + DISCLAIMER, footer=footer)


def _note(gallery: Gallery, match: Match) -> str:
    """Where and when, in one line."""
    time = "" if match.time is None else format_time(match.time)
    facts = (place_of(match, gallery.pictures.paths[match.picture]), match.camera, time)
    return ", ".join(fact for fact in facts if fact)


def _facts(gallery: Gallery, match: Match) -> list[tuple[str, str]]:
    facts = [("picture", place_of(match, gallery.pictures.paths[match.picture]))]
    if match.time is not None:
        facts.append(("time", format_time(match.time)))
    if match.camera:
        facts.append(("camera", match.camera))
    return [*facts, ("detection", f"{match.score:.2f}"), ("box", _numbers(match.box))]


def place_of(match: Match, name: str = "") -> str:
    """Name of the image, or of the video with the time since its start.

    Args:
        match: in the image.
        name: the image's, e.g. with its folders; "" for that of its file.
    """
    name = name or Path(match.path).name
    if match.offset is None:
        return name
    minutes, seconds = divmod(match.offset, 60)
    return f"{name} at {int(minutes)}:{seconds:04.1f}"


def _numbers(box: Sequence[float]) -> str:
    return " ".join(f"{v:.0f}" for v in box)
