# SPDX-License-Identifier: Apache-2.0
"""What ``person-search`` prints, apart from its errors."""

from collections.abc import Sequence

from person_search.search.indexing import IndexReport
from person_search.search.query import QueryPerson
from person_search.search.sources import Listing
from person_search.search.table import Match, count, format_time

NAMED = 20
"""So many files that could not be read are listed at the end; all were named when they came up."""


def describe_run(report: IndexReport, listing: Listing) -> str:
    """A run of ``index`` in a few lines."""
    speed = report.pictures / report.seconds if report.seconds > 0 else 0.0
    lines = [
        f"{count(report.pictures, 'picture')} with {count(report.persons, 'person')} added in "
        f"{report.seconds:.1f} s ({speed:.2f} per second); {count(report.unchanged, 'file')} had "
        "been looked at before."
    ]
    if report.removed:
        lines.append(f"{count(report.removed, 'picture')} taken out, the files being gone.")
    lines += _listed(report.failed, "file", "could not be read, or not to the end")
    lines += _listed(report.left_out, "link", "left out")
    if listing.others:
        lines.append(f"{count(listing.others, 'file')} of other kinds not looked at.")
    return "\n".join(lines)


def _listed(names: Sequence[str] | dict[str, str], noun: str, what: str) -> list[str]:
    """A heading with the names below it; nothing for no names."""
    if not names:
        return []
    lines = [f"{count(len(names), noun)} {what}:", *(f"  {name}" for name in list(names)[:NAMED])]
    if len(names) > NAMED:
        lines.append(f"  and {len(names) - NAMED} more, named above")
    return lines


def describe_query(query: QueryPerson) -> str:
    """Who is searched for, e.g. whom the detector has chosen."""
    box = " ".join(f"{value:.0f}" for value in query.box)
    score = "" if query.score is None else f" (detected with score {query.score:.2f})"
    return f"Searching for the person at {box} in {query.path}{score}"


def match_lines(matches: Sequence[Match], shown: int) -> list[str]:
    """The best matches, one per line, with what is known of where and when."""
    lines = []
    for match in matches[:shown]:
        frame = "" if match.offset is None else f" at {match.offset:.1f} s"
        time = "" if match.time is None else format_time(match.time)
        known = ", ".join(fact for fact in (match.camera, time) if fact)
        lines.append(
            f"{match.rank:3d}  similarity {match.sim:6.3f}  {match.path}{frame}"
            + (f"  ({known})" if known else "")
        )
    if len(matches) > shown:
        lines.append(f"     and {count(len(matches) - shown, 'more match', 'more matches')}")
    return lines
