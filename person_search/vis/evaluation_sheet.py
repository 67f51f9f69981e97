# SPDX-License-Identifier: Apache-2.0
"""Sheets of test queries: scenes read from disk, and the evaluation's verdicts in words."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from person_search.data.image_io import read_image_file
from person_search.evaluation import (
    PersonSearchEvaluator,
    SearchOptions,
    SearchScores,
    rank_gallery,
)
from person_search.evaluation.predictions import find_rows
from person_search.evaluation.ranking import RankedEntry, choose_examples
from person_search.evaluation.settings import OPTION_VALUES
from person_search.schema import Query, SearchProtocol
from person_search.vis.drawing import NEUTRAL_COLOR, UNCHECKED_COLOR, draw_box, to_image
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


class DrawnSearch(NamedTuple):
    """A test query, its ranked list and its sheet; see :func:`draw_examples`."""

    query: Query
    kind: str
    outcome: str
    entries: list[RankedEntry]
    sheet: Image.Image


def draw_examples(
    evaluator: PersonSearchEvaluator,
    files: Mapping[int, str],
    *,
    query_ids: Sequence[int] | None = None,
    top: int = 9,
) -> Iterator[DrawnSearch]:
    """Draws searches of the first search section of an evaluation.

    Args:
        evaluator: Evaluator with predictions.
        files: Image file of each ``image_id``.
        query_ids: Queries to draw. Default: a success, the median and a failure, see
            :func:`choose_examples`.
        top: Number of entries to show.
    """
    section = evaluator.sections[0]
    protocol = evaluator.protocol(section.protocol)
    (scores,) = evaluator.score_protocols([protocol])
    if query_ids is None:
        chosen = choose_examples(scores)
    else:
        rows = find_rows(scores.query_ids, query_ids, "query_id", "--query-id").tolist()
        kinds = ["success" if scores.best_rank[row] == 1 else "failure" for row in rows]
        chosen = list(zip(kinds, rows, strict=True))
    for kind, row in chosen:
        entries = rank_gallery(evaluator.predictions, protocol, row, section.options)
        outcome = describe_outcome(scores, row, gallery_size(protocol, row, files), top)
        outcome = f"{outcome} {describe_options(section.options)}".rstrip()
        query = protocol.queries[row]
        sheet = draw_checked_search(
            query, entries, files.__getitem__, kind=kind, outcome=outcome, top=top
        )
        yield DrawnSearch(query, kind, outcome, entries, sheet)


def gallery_size(protocol: SearchProtocol, query: int, files: Mapping[int, str]) -> int:
    """Returns the number of different images that are searched for a query."""
    if protocol.gallery is not None:
        return len(set(protocol.gallery[query].tolist()) - {-1})
    return len(set(files) - set(protocol.excluded_images(query).tolist()))


def draw_detections(evaluator: PersonSearchEvaluator, image_id: int, file: str) -> Image.Image:
    """Draws the detections in a test image over its true boxes, which are dashed and gray.

    Args:
        evaluator: Evaluator with predictions.
        image_id: Image of the test set.
        file: Its file.
    """
    image = to_image(read_image_file(file, "RGB"))
    truth, found = evaluator.ground_truth, evaluator.predictions
    row = int(np.flatnonzero(truth.image_ids == image_id)[0])
    for box in truth.boxes[slice(*truth.offsets[row : row + 2])]:
        draw_box(image, box.tolist(), NEUTRAL_COLOR, dashed=True)
    for box in found.boxes[slice(*found.det_offsets[row : row + 2])]:
        draw_box(image, box.tolist(), UNCHECKED_COLOR)
    return image


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
