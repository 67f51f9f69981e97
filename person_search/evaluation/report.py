# SPDX-License-Identifier: Apache-2.0
"""What an evaluation leaves behind: one log line and a results file."""

import json
import logging
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tabulate import tabulate

from person_search.evaluation.open_set import OpenSetRow
from person_search.utils.files import write_atomically

logger = logging.getLogger(__name__)

Results = dict[str, dict[str, float]]


def summary_line(
    dataset_name: str, results: Results, settings: dict[str, Any], info: dict[str, Any]
) -> str:
    """Puts the figures, what they depend on, and the time taken into one line.

    Args:
        dataset_name: registered name.
        results: ``{task: {metric: number}}``, percent.
        settings: constructor arguments of the evaluator that the figures depend on.
        info: ``protocols`` {task: name}, ``num_queries`` {task: number}, ``num_images``,
            ``seconds``.
    """
    det = results["detection"]
    parts = [
        f"{dataset_name}: detection AP {det['AP']:.2f} recall {det['recall']:.2f} "
        f"precision {det['precision']:.2f} AP50 {det['AP50']:.2f} "
        f"({det['num_det']} detections with score >= {settings['score_thresh']:g}, "
        f"{det['num_gt']} boxes in {info['num_images']} images, "
        f"IoU >= {settings['det_iou_thresh']:g})"
    ]
    task, protocol = next(iter(info["protocols"].items()))
    figures = " ".join(f"{name} {value:.2f}" for name, value in results[task].items())
    parts.append(f"{task} [{protocol}, {info['num_queries'][task]} queries] {figures}")
    # of all others only the beginning: there may be dozens of them
    parts += [
        f"{task} " + " ".join(f"{name} {value:.2f}" for name, value in list(figures.items())[:2])
        for task, figures in results.items()
        if task not in ("detection", "search")
    ]
    shown = ("similarity", "matching", "query_source", "duplicates", "gallery_boxes")
    options = ", ".join(str(settings[k]) for k in shown)
    overlap = f"{settings['iou_rule']} IoU >= {settings['search_iou_thresh']:g}"
    return f"{'; '.join(parts)} ({options}, {overlap}); {info['seconds']:.1f} s"


def results_table(results: Results) -> str:
    """Two tables of text, detection and search, one row per section; percent."""
    tables = []
    for kind in ("detection", "search"):
        rows = {task: figures for task, figures in results.items() if task.split("_")[0] == kind}
        names = list(dict.fromkeys(name for figures in rows.values() for name in figures))
        lines = [[task, *(figures.get(name) for name in names)] for task, figures in rows.items()]
        formats = ["", *("d" if name.startswith("num_") else ".2f" for name in names)]
        tables.append(tabulate(lines, [kind, *names], floatfmt=formats, tablefmt="simple"))
    return "\n\n".join(tables)


def open_set_text(task: str, rows: Sequence[OpenSetRow], num_queries: int) -> str:
    """A table of lowest similarities and the two errors of searches in an open set; percent."""
    names = [
        "similarity\nat least",
        "absent persons for whom\nsomebody is shown (FPIR)",
        "present persons\nwho are shown (TPIR)",
    ]
    title = f"{task}, {num_queries} queries for persons who may not be there"
    lines = [[row.min_similarity, 100 * row.fpir, 100 * row.tpir] for row in rows]
    table = tabulate(lines, names, floatfmt=(".3f", ".1f", ".1f"), tablefmt="simple")
    return f"{title}\n\n{table}"


def write_results(path: Path, content: dict[str, Any]) -> None:
    """Writes a results file as JSON; an undefined figure (nan) becomes null."""
    text = json.dumps(_without_nan(content), indent=2, allow_nan=False) + "\n"
    write_atomically(path, text.encode())


def try_to_write(path: Path, write: Callable[[Path], None]) -> bool:
    """Calls ``write(path)``; a failure is logged, not raised.

    Hours of inference must not be lost because a disk is full: the caller still holds the figures.
    """
    try:
        write(path)
    except OSError as e:
        logger.warning(
            f"could not write {path}: {e}. The results above are complete and are returned; "
            "make room or pass another output folder to get the file."
        )
        return False
    return True


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
