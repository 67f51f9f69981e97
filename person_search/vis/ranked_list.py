# SPDX-License-Identifier: Apache-2.0
"""The sheets of an evaluation: scenes read from disk, and everything explained in words.

Boxes are XYXY pixels of the image that they lie in.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

from PIL import Image

from person_search.data.image_io import read_image_file
from person_search.evaluation import SearchOptions, SearchScores
from person_search.evaluation.options import OPTION_VALUES
from person_search.evaluation.ranking import RankedEntry
from person_search.schema import Query
from person_search.vis import SheetCell, draw_search_sheet

KIND_TITLES = {
    "success": "A success: the most similar person found is the right one",
    "median": "The median query: half of all queries do better, half do worse",
    "failure": "A failure: the most similar person found is the wrong one",
}
OPTION_SENTENCES = {
    "cws": "A similarity is multiplied with the score of its detection.",
    "cbgm": "The best scenes are matched again with the other people of the query's image.",
    "best_det": "The person is described by the detection that overlaps the query's box best.",
    "gt": "The boxes are the true ones, not found by the model.",
    "strict": "An image that the gallery lists twice counts once.",
    "fixed": "People of every size need the same overlap.",
}
"""What the values of options that are not the default do, for the reader of a sheet."""
QUERY_TITLE = "Query: where is this person?"


def draw_checked_search(
    query: Query,
    entries: Sequence[RankedEntry],
    file_of: Callable[[int], str],
    *,
    kind: str,
    outcome: str,
    top: int = 9,
) -> Image.Image:
    """The sheet of a test query, with right and wrong as the evaluator counted them.

    Args:
        query: of the protocol.
        entries: its ranked list.
        file_of: image of an ``image_id``.
        kind: key of :data:`KIND_TITLES`.
        outcome: what came of it, see :func:`describe_outcome`.
        top: entries to show.
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
        caption="Left: the person searched for. Right: those in other images whom the model "
        "finds most similar, best first, each in the scene and enlarged. " + outcome,
    )


def describe_options(options: SearchOptions) -> str:
    """How the list was made where that is not the usual way; empty for the default options."""
    values = (getattr(options, name) for name in OPTION_VALUES)
    sentences = [OPTION_SENTENCES[value] for value in values if value in OPTION_SENTENCES]
    if options.iou_thresh != SearchOptions.iou_thresh:
        sentences.append(f"A box is right from an IoU of {options.iou_thresh:g} on.")
    return " ".join(sentences)


def describe_outcome(scores: SearchScores, query: int, num_images: int, top: int = 9) -> str:
    """What came of a query, in plain words.

    Args:
        scores: of the protocol.
        query: index of the query.
        num_images: in its gallery.
        top: entries shown.
    """
    num_gt, first = int(scores.num_gt[query]), int(scores.best_rank[query])
    pictures = "image shows" if num_gt == 1 else "images show"
    text = f"{num_gt} of the {num_images} searched {pictures} this person; "
    if first == 0:
        text += "none of them was found."
    else:
        text += f"the first of them comes at place {first}"
        text += ", which is beyond what is shown." if first > top else "."
    return f"{text} Average precision: {100 * scores.ap[query]:.0f} %."
