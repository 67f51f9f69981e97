# SPDX-License-Identifier: Apache-2.0
"""Output of a query: JSON lines for programs, a sheet and a report for a person.

results.jsonl   the search, then one match per line, best first
sheet.png       the query and the best scenes as one image
report.html     the same with all details, in one self-contained file
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from person_search.data import BadImageError
from person_search.search.errors import GalleryError, ImageChangedError
from person_search.search.gallery import CHANGED, Gallery
from person_search.search.names import printable
from person_search.search.query import QueryPerson
from person_search.search.table import Match, SearchFilter, count, format_offset, format_time
from person_search.utils.files import write_atomically
from person_search.utils.model_card import NO_CARD
from person_search.vis import SheetCell, draw_search_sheet, encode_image
from person_search.vis.html_report import ReportCell, html_report
from person_search.vis.search_sheet import MAX_QUERY_CROPS, QUERY_TITLE

RESULTS, SHEET, REPORT = "results.jsonl", "sheet.png", "report.html"
TITLE = "Who is this, and where else?"
DISCLAIMER = (
    "Similarity 1 means identical appearance; the matches have not been verified. A detector finds "
    "persons and a model compares their appearance: both make mistakes."
)


@dataclass(frozen=True)
class SearchResult:
    """A finished search.

    Attributes:
        queries: Images of the person.
        gallery: The searched gallery.
        matches: Matches, best first.
        settings: Settings of the search as plain types.
        wanted: Filters of the search.
    """

    queries: Sequence[QueryPerson]
    gallery: Gallery
    matches: Sequence[Match]
    settings: dict
    wanted: SearchFilter = SearchFilter()

    def describe(self) -> str:
        """Returns, for example, "12 images (34 persons), only camera gate"."""
        images = count(self.gallery.num_images, "image")
        text = f"{images} ({count(len(self.gallery), 'person')})"
        return f"{text}, only {self.wanted.describe()}" if self.wanted.describe() else text


def write_results(result: SearchResult, folder: Path, shown: int) -> list[Path]:
    """Writes all three files atomically.

    Args:
        result: The search.
        folder: Output folder, created if missing.
        shown: Number of matches on the sheet and in the report.

    Returns:
        Paths of the files.
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
    """Returns the search and its matches, one JSON object per line.

    Bytes of file names that are not UTF-8 appear as escaped surrogates, which JSON readers decode
    to the same name.
    """
    gallery = result.gallery
    head = {
        "kind": "search",
        "query": [query.to_json() for query in result.queries],
        "gallery": {
            "folder": str(gallery.store.location),
            "pictures": gallery.num_images,
            "persons": len(gallery),
            "model": gallery.store.manifest.model.weights,
            "model_card": card.to_json() if (card := gallery.store.manifest.card) else None,
        },
        **result.settings,
    }
    lines = [head]
    for match in result.matches:
        changed = {"changed": True} if gallery.is_changed(match.image) else {}
        lines.append({"kind": "match", **match.to_json(), **changed})
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    return text.encode("utf-8", "backslashreplace").decode()


def report_html(result: SearchResult, shown: int) -> str:
    """Returns the report alone, with ``shown`` matches; one scene at a time is in memory."""
    return _report(result, _scenes(result, shown), min(shown, len(result.matches)))


@dataclass(frozen=True)
class _Scene:
    """Image of a match.

    Attributes:
        image: Array (H, W, 3) uint8 RGB; None if it cannot be shown.
        note: Warning, or why it cannot be shown; "" otherwise.
    """

    image: np.ndarray | None
    note: str = ""


def _scenes(result: SearchResult, shown: int) -> Iterator[_Scene]:
    return (_read_scene(result.gallery, match) for match in result.matches[:shown])


def _read_scene(gallery: Gallery, match: Match) -> _Scene:
    try:
        image = gallery.read_image(match.image)
        return _Scene(image, CHANGED if gallery.is_changed(match.image) else "")
    except ImageChangedError:
        return _Scene(None, CHANGED)
    except (OSError, BadImageError, GalleryError):
        return _Scene(None, "no longer readable")


def _sheet(result: SearchResult, scenes: Sequence[_Scene]):
    cells = [
        SheetCell(
            np.full((90, 120, 3), 128, np.uint8) if scene.image is None else scene.image,
            (0, 0, 120, 90) if scene.image is None else match.box,
            f"{match.rank}.  similarity {match.sim:.2f}",
            # the warning first: the line is cut off at its end
            note=f"{scene.note}: {_note(result, match)}" if scene.note else _note(result, match),
        )
        for match, scene in zip(result.matches, scenes, strict=False)
    ]
    more = len(result.queries) - 1
    note = result.queries[0].shown_name + (f" and {more} more" if more else "")
    query, *others = [
        SheetCell(query.read(), query.box, QUERY_TITLE, "query", note=note)
        for query in result.queries[:MAX_QUERY_CROPS]
    ]
    person = "the query" + (f", in {more + 1} images" if more else "")
    return draw_search_sheet(
        query,
        cells,
        more_queries=others,
        title=TITLE,
        caption=f"Left: {person}. Right: the scenes with the most similar persons in "
        f"{result.describe()}, best first, each with the person enlarged. {DISCLAIMER}",
    )


def _report(result: SearchResult, scenes: Iterable[_Scene], shown: int) -> str:
    queries = (
        ReportCell(
            _query_image(query),
            query.box,
            query.shown_name,
            f"The query, in {query.shown_name}",
            [
                *([] if query.score is None else [("detection", f"{query.score:.2f}")]),
                ("box", _numbers(query.box)),
            ],
        )
        for query in result.queries
    )
    cells = (
        ReportCell(
            scene.image,
            match.box,
            f"{match.rank}.",
            f"Rank {match.rank}: a person in {place_of(match)}, similarity {match.sim:.2f}",
            _facts(result, match, scene.note),
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
    card = result.gallery.store.manifest.card
    footer = (
        f"Gallery {printable(str(result.gallery.store.location))}, model {weights}: "
        f"{card.describe() if card else NO_CARD}."
    )
    return html_report(queries, cells, title=TITLE, summary=searched + DISCLAIMER, footer=footer)


def _query_image(query: QueryPerson) -> np.ndarray | None:
    """Reads the image of a query; None if it is missing, as it may be for a gallery image."""
    try:
        return query.read()
    except (OSError, BadImageError):
        return None


def _facts(result: SearchResult, match: Match, warning: str) -> list[tuple[str, str]]:
    facts = [
        ("image", place_of(match, match.name)),
        ("time", "" if match.time is None else format_time(match.time)),
        ("seen", match.describe_span()),
        ("camera", match.camera),
        ("detection", f"{match.score:.2f}"),
        ("box", _numbers(match.box)),
        ("note", f"The image has {warning}." if warning == CHANGED else ""),
    ]
    return [(name, value) for name, value in facts if value]


def _note(result: SearchResult, match: Match) -> str:
    """Returns the place, or the span of a tracklet, camera and time in one line."""
    time = "" if match.time is None else format_time(match.time)
    name = match.name
    span = match.describe_span()
    facts = (printable(name) if span else place_of(match, name), span, match.camera, time)
    return ", ".join(fact for fact in facts if fact)


def place_of(match: Match, name: str = "") -> str:
    """Returns the name of the image, or of the video with the time since its start.

    Args:
        match: A match.
        name: Name of its file, for example with its folders. Default: the file name.
    """
    name = printable(name or Path(match.path).name)
    if match.offset is None:
        return name
    return f"{name} at {format_offset(match.offset)}"


def _numbers(box: Sequence[float]) -> str:
    return " ".join(f"{v:.0f}" for v in box)
