# SPDX-License-Identifier: Apache-2.0
"""Sheets of test queries: scenes read from disk, and the evaluation's verdicts in words."""

from collections.abc import Callable, Sequence
from pathlib import Path

from PIL import Image

from person_search.data.image_io import read_image_file
from person_search.evaluation import SearchOptions, SearchScores
from person_search.evaluation.ranking import RankedEntry
from person_search.evaluation.settings import OPTION_VALUES
from person_search.schema import Query
from person_search.vis.search_sheet import QUERY_TITLE, SheetCell, draw_search_sheet

KIND_TITLES = {
    "success": "A success: the most similar person found is the right one",
    "median": "The median query: half of all queries do better, half do worse",
    "failure": "A failure: the most similar person found is the wrong one",
}
OPTION_SENTENCES = {
    "cws": "A similarity is multiplied by the score of its detection.",
    "cbgm": "The best scenes are matched again with the other persons of the query image.",
    "best_det": "The query is represented by the detection that overlaps its box best.",
    "gt": "The boxes are the ground truth, not detections of the model.",
    "strict": "An image that the gallery lists twice counts once.",
    "fixed": "Persons of every size need the same overlap.",
}
"""Explanations of option values that are not the default."""


def draw_checked_search(
    query: Query,
    entries: Sequence[RankedEntry],
    file_of: Callable[[int], str],
    *,
    kind: str,
    outcome: str,
    top: int = 9,
) -> Image.Image:
    """Draws the sheet of a test query, with right and wrong as the evaluator counts them.

    Args:
        query: Query of the protocol.
        entries: Its ranked list.
        file_of: Returns the image file of an ``image_id``.
        kind: Key of :data:`KIND_TITLES`.
        outcome: Text of :func:`describe_outcome`.
        top: Number of entries to show.
    """
    cells = [
        SheetCell(
            read_image_file(file_of(entry.image_id), "RGB"),
            entry.box,
            f"{entry.rank}.  similarity {entry.sim:.2f}",
            entry.verdict,
            Path(file_of(entry.image_id)).name,
        )
        for entry in entries[:top]
    ]
    scene = Path(file_of(query.image_id))
    return draw_search_sheet(
        SheetCell(
            read_image_file(str(scene), "RGB"), query.box, QUERY_TITLE, "query", note=scene.name
        ),
        cells,
        title=KIND_TITLES[kind],
        caption="Left: the person to search for. Right: the most similar persons in other images, "
        "best first, each in the scene and enlarged. " + outcome,
    )


def describe_options(options: SearchOptions) -> str:
    """Explains the options that are not the default; empty for the default options."""
    values = (getattr(options, name) for name in OPTION_VALUES)
    sentences = [OPTION_SENTENCES[value] for value in values if value in OPTION_SENTENCES]
    if options.search_iou_thresh != SearchOptions.search_iou_thresh:
        sentences.append(f"A box is right from an IoU of {options.search_iou_thresh:g} on.")
    return " ".join(sentences)


def describe_outcome(scores: SearchScores, query: int, num_images: int, top: int = 9) -> str:
    """Describes the result of a query in words.

    Args:
        scores: Result of the protocol.
        query: Index of the query.
        num_images: Number of images in its gallery.
        top: Number of entries shown.
    """
    num_gt, first = int(scores.num_gt[query]), int(scores.best_rank[query])
    shows = "image shows" if num_gt == 1 else "images show"
    text = f"{num_gt} of the {num_images} searched {shows} this person; "
    if first == 0:
        text += "none of them was found."
    else:
        text += f"the first of them is at rank {first}"
        text += ", which is not shown." if first > top else "."
    return f"{text} Average precision: {100 * scores.ap[query]:.0f} %."
