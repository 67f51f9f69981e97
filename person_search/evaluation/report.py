# SPDX-License-Identifier: Apache-2.0
"""Output of an evaluation: log line, tables and results file."""

import json
import logging
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tabulate import tabulate

from person_search.evaluation.open_set import OpenSetRow
from person_search.evaluation.settings import EvaluationSettings
from person_search.utils.files import write_atomically

logger = logging.getLogger(__name__)

Results = dict[str, dict[str, float]]


def summary_line(
    dataset_name: str, results: Results, settings: EvaluationSettings, info: dict[str, Any]
) -> str:
    """Formats the metrics, their settings and the time taken as one line.

    Args:
        dataset_name: Registered name of the data set.
        results: ``{task: {metric: value}}`` in percent.
        settings: Settings of the evaluation.
        info: ``protocols`` {task: name}, ``num_queries`` {task: number}, ``num_images``,
            ``seconds``.
    """
    det = results["detection"]
    parts = [
        f"{dataset_name}: detection AP {det['AP']:.2f} recall {det['recall']:.2f} "
        f"precision {det['precision']:.2f} AP50 {det['AP50']:.2f} "
        f"({det['num_det']} detections with score >= {settings.score_thresh:g}, "
        f"{det['num_gt']} boxes in {info['num_images']} images, "
        f"IoU >= {settings.det_iou_thresh:g})"
    ]
    task, protocol = next(iter(info["protocols"].items()))
    metrics = " ".join(f"{name} {value:.2f}" for name, value in results[task].items())
    parts.append(f"{task} [{protocol}, {info['num_queries'][task]} queries] {metrics}")
    # two metrics of each other section: there may be dozens of sections
    parts += [
        f"{task} " + " ".join(f"{name} {value:.2f}" for name, value in list(metrics.items())[:2])
        for task, metrics in results.items()
        if task not in ("detection", "search")
    ]
    shown = ("similarity", "matching", "query_source", "duplicates", "gallery_boxes")
    options = ", ".join(getattr(settings, name) for name in shown)
    overlap = f"{settings.iou_rule} IoU >= {settings.search_iou_thresh:g}"
    return f"{'; '.join(parts)} ({options}, {overlap}); {info['seconds']:.1f} s"


def results_table(results: Results) -> str:
    """Formats two tables, detection and search, with one row per section; percent."""
    tables = []
    for kind in ("detection", "search"):
        rows = {task: metrics for task, metrics in results.items() if task.split("_")[0] == kind}
        names = list(dict.fromkeys(name for metrics in rows.values() for name in metrics))
        lines = [[task, *(metrics.get(name) for name in names)] for task, metrics in rows.items()]
        formats = ["", *("d" if name.startswith("num_") else ".2f" for name in names)]
        tables.append(tabulate(lines, [kind, *names], floatfmt=formats, tablefmt="simple"))
    return "\n\n".join(tables)


def open_set_text(task: str, rows: Sequence[OpenSetRow], num_queries: int) -> str:
    """Formats a table of minimum similarities and the open-set errors; percent."""
    names = [
        "minimum\nsimilarity",
        "searches for absent persons\nthat return a person (FPIR)",
        "searches for present persons\nthat return them (TPIR)",
    ]
    title = f"{task}, {num_queries} queries for persons who may be absent"
    lines = [[row.min_similarity, 100 * row.fpir, 100 * row.tpir] for row in rows]
    table = tabulate(lines, names, floatfmt=(".3f", ".1f", ".1f"), tablefmt="simple")
    return f"{title}\n\n{table}"


def write_results(path: Path, content: dict[str, Any]) -> None:
    """Writes a results file as JSON; an undefined metric (nan) becomes null."""
    text = json.dumps(_without_nan(content), indent=2, allow_nan=False) + "\n"
    write_atomically(path, text.encode())


def try_to_write(path: Path, write: Callable[[Path], None]) -> None:
    """Calls ``write(path)`` and logs an OSError, so that a full disk does not lose the results."""
    try:
        write(path)
    except OSError as e:
        logger.warning(
            f"could not write {path}: {e.strerror or e}. The evaluation continues without this "
            "file and returns its results; free disk space or choose another output folder."
        )


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
