# SPDX-License-Identifier: Apache-2.0
"""Search in your own pictures, and a look at the searches of an evaluation."""

from person_search.search.gallery import Gallery, Match, list_pictures
from person_search.search.pictures import clip_box, read_picture
from person_search.search.ranking import RankedEntry, choose_examples, rank_query
from person_search.search.searcher import PersonSearcher
from person_search.search.sheets import describe_outcome, draw_checked_search, draw_own_search

__all__ = [
    "Gallery",
    "Match",
    "PersonSearcher",
    "RankedEntry",
    "choose_examples",
    "clip_box",
    "describe_outcome",
    "draw_checked_search",
    "draw_own_search",
    "list_pictures",
    "rank_query",
    "read_picture",
]
