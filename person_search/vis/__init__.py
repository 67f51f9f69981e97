# SPDX-License-Identifier: Apache-2.0
"""Visualizations: sheets of a search and its results, and the records of a data set."""

from person_search.vis.encoding import encode_image
from person_search.vis.records import draw_record
from person_search.vis.search_sheet import SheetCell, draw_search_sheet

__all__ = [
    "SheetCell",
    "draw_record",
    "draw_search_sheet",
    "encode_image",
]
