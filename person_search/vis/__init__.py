# SPDX-License-Identifier: Apache-2.0
"""Pictures for people: what was searched for and what was found, and what a data set holds."""

from person_search.vis.denoising_strip import (
    DenoisingPanel,
    StripQuery,
    draw_denoising_frames,
    draw_denoising_strip,
    encode_animation,
)
from person_search.vis.encoding import encode_picture
from person_search.vis.records import draw_record
from person_search.vis.search_sheet import SheetCell, draw_search_sheet

__all__ = [
    "DenoisingPanel",
    "SheetCell",
    "StripQuery",
    "draw_denoising_frames",
    "draw_denoising_strip",
    "draw_record",
    "draw_search_sheet",
    "encode_animation",
    "encode_picture",
]
