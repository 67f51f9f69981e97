# SPDX-License-Identifier: Apache-2.0
"""What index and query print."""

from collections import Counter
from dataclasses import replace

import numpy as np

from person_search.search.commands import describe_query, describe_run, match_lines
from person_search.search.indexing import IndexReport
from person_search.search.query import QueryPerson
from person_search.search.sources import Listing
from person_search.search.table import Match, count


def test_one_and_many() -> None:
    assert [count(n, "image") for n in (0, 1, 2)] == ["0 images", "1 image", "2 images"]
    assert [count(n, "match", "matches") for n in (1, 2)] == ["1 match", "2 matches"]


def test_what_a_query_prints() -> None:
    first = Match(1, "/p/a.png", (0, 0, 9, 9), 0.9, 0.8765, time=0.0, camera="gate")
    second = Match(2, "/p/v.mp4", (0, 0, 9, 9), 0.9, -0.5, frame=20, offset=2.0)
    assert match_lines([first, second], 2) == [
        "  1  similarity  0.876  /p/a.png  (gate, 1970-01-01 00:00:00)",
        "  2  similarity -0.500  /p/v.mp4 at 0:02.0",
    ]
    walk = replace(second, frames=7, first=1.0, last=61.0, camera="gate")
    assert match_lines([walk], 1) == [
        "  2  similarity -0.500  /p/v.mp4, 0:01.0 to 1:01.0, 7 frames  (gate)",
    ]
    assert match_lines([first, second, second], 1)[1:] == ["     and 2 more matches"]
    assert match_lines([first], 0) == ["     and 1 more match"]
    assert match_lines([], 5) == []
    assert match_lines([replace(first, camera="")], 1)[0].endswith("(1970-01-01 00:00:00)")


def test_describe_query() -> None:
    drawn = QueryPerson("street.jpg", (0, 0.4, 50, 80), np.ones(1))
    assert describe_query(drawn) == "Searching for the person at 0 0 50 80 in street.jpg"
    detected = replace(drawn, score=0.876)
    assert describe_query(detected).endswith("street.jpg (detected with score 0.88)")


def test_what_a_run_prints() -> None:
    report = IndexReport(1, 2, 3, 1, {f"{i}.jpg": "why" for i in range(22)}, {"l.jpg": "why"}, 2.0)
    lines = describe_run(report, Listing(others=Counter({".heic": 2, "": 1}))).splitlines()
    assert lines[:3] == [
        "1 image with 2 persons added in 2.0 s (0.50 per second); 3 files unchanged.",
        "1 missing file removed from the gallery.",
        "22 files unreadable or truncated:",
    ]
    assert lines[22:] == [
        "  19.jpg", "  and 2 more, see the log above", "1 file left out:", "  l.jpg (why)",
        "3 files of other kinds not indexed:", "  2 files .heic (pip install pillow-heif)",
        "  1 file without a suffix",
    ]  # fmt: skip
    assert describe_run(IndexReport(), Listing()) == (
        "0 images with 0 persons added in 0.0 s (0.00 per second); 0 files unchanged."
    )
