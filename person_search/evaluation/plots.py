# SPDX-License-Identifier: Apache-2.0
"""Curves of an evaluation and their plots: precision over recall, metrics over gallery size.

Shape shorthand: N detections, K true positives, Q queries, R recall levels.
"""

import io
from collections.abc import Mapping, Sequence
from textwrap import wrap
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator

from person_search.evaluation.detection_metrics import match_mutual_best
from person_search.evaluation.search_metrics import SearchScores

Curve = tuple[np.ndarray, np.ndarray]
"""x and y."""

Key = tuple[str, str]
"""A method and its variant, which may be empty."""

NUM_LEVELS = 101
# Colors of Okabe and Ito, distinct for color-blind readers; markers for black and white
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
DASHES = ("-", "--", ":", "-.", (0, (5, 1, 1, 1, 1, 1)), (0, (8, 2)), (0, (1, 3)))
DOTS_PER_INCH = 160
_MARGIN = 0.08
"""Empty part of the value range above and below the curves."""
_LETTERS_PER_INCH, _HANDLE_LETTERS = 11, 8
"""Letters of a legend per inch, and the width of the line beside them in letters."""
_ROW_INCHES = 0.22
"""Height of a row of the legend."""


def detection_curve(
    gt_boxes: np.ndarray,
    gt_offsets: np.ndarray,
    det_boxes: np.ndarray,
    det_scores: np.ndarray,
    det_offsets: np.ndarray,
    iou_thresh: float = 0.5,
) -> Curve:
    """Computes precision over recall for a falling score threshold.

    The arguments are those of
    :func:`~person_search.evaluation.detection_metrics.evaluate_detection`.

    Returns:
        Recall and precision in [0, 1], one point per distinct score from the highest down; empty
        without detections or without ground truth. The last recall is that of all detections.
    """
    if len(gt_boxes) == 0 or len(det_boxes) == 0:
        return np.zeros(0), np.zeros(0)
    right = np.zeros(len(det_scores), bool)
    right[match_mutual_best(gt_boxes, gt_offsets, det_boxes, det_offsets, iou_thresh)] = True
    order = np.argsort(-det_scores, kind="stable")
    ranked = det_scores[order]
    last = np.append(ranked[1:] != ranked[:-1], True)  # equal scores are one point
    found = np.cumsum(right[order])[last]
    return found / len(gt_boxes), found / (np.flatnonzero(last) + 1)


def search_curve(scores: SearchScores, num_levels: int = NUM_LEVELS) -> Curve:
    """Computes the mean precision over recall of all queries.

    The precision of a query at a recall level is its highest precision at that recall or beyond, 0
    where the query does not reach the level. The area under the curve is therefore slightly above
    mAP, which does not interpolate.

    Args:
        scores: Result of a protocol.
        num_levels: Number of recall levels (R).

    Returns:
        (R,) recall levels in [0, 1], (R,) mean precision in [0, 1].
    """
    levels = np.linspace(0.0, 1.0, num_levels)
    total = np.zeros(num_levels)
    for precisions, num_gt in zip(scores.precisions, scores.num_gt, strict=True):
        if len(precisions) == 0:
            continue
        best_beyond = np.maximum.accumulate(precisions[::-1])[::-1]
        # the k-th positive is at recall k / num_gt; the margin is for rounding
        needed = np.ceil(levels * num_gt - 1e-9).astype(np.int64).clip(1)
        reached = needed <= len(precisions)
        total[reached] += best_beyond[needed[reached] - 1]
    return levels, total / max(len(scores.precisions), 1)


def plot_gallery_size(
    results: Mapping[Key, Mapping[int, Mapping[str, float]]], metrics: Sequence[str]
) -> bytes:
    """Plots metrics over the size of the gallery, one panel each.

    Args:
        results: ``{curve: {gallery size: {metric: percent}}}``.
        metrics: Metrics to plot, for example ``("mAP", "top1")``.

    Returns:
        Content of a PNG file.
    """
    figure = Figure(figsize=(5.2 * len(metrics), 4.2), layout="constrained")
    panels = figure.subplots(1, len(metrics), squeeze=False)[0]
    sizes = sorted({size for by_size in results.values() for size in by_size})
    styles = _styles(list(results))
    for panel, metric in zip(panels, metrics, strict=True):
        for key, by_size in results.items():
            x = sorted(by_size)
            y = [by_size[size][metric] for size in x]
            panel.plot(x, y, label=_label(*key), linewidth=1.8, markersize=6, **styles[key])
        panel.set_xscale("log")
        panel.xaxis.set_major_locator(FixedLocator(sizes))
        panel.xaxis.set_minor_locator(NullLocator())
        panel.set_xticks(sizes, [f"{size}" for size in sizes])
        panel.set_xlabel("gallery size (images per query)")
        panel.set_ylabel(f"{metric} (%)")
        panel.margins(y=_MARGIN)
        panel.grid(True, alpha=0.3)
    _add_legend(figure, panels[0])
    return _to_png(figure)


def plot_precision_recall(
    curves: Mapping[Key, Curve], title: str, notes: Mapping[Key, str] | None = None
) -> bytes:
    """Plots precision over recall.

    Args:
        curves: Recall and precision in [0, 1] of each curve; an empty one appears in the legend.
        title: Title above the plot.
        notes: Text after the name of a curve, for example its mAP.

    Returns:
        Content of a PNG file.
    """
    figure = Figure(figsize=(5.6, 4.6), layout="constrained")
    panel = figure.subplots()
    styles = _styles(list(curves))
    for key, (recall, precision) in curves.items():
        label = _label(*key, (notes or {}).get(key, ""))
        style = styles[key] | {"marker": None}
        panel.plot(100 * recall, 100 * precision, label=label, linewidth=1.8, **style)
    panel.set_title(title)
    panel.set_xlabel("recall (%)")
    panel.set_ylabel("precision (%)")
    panel.set_xlim(0, 101)
    panel.set_ylim(0, 102)
    panel.grid(True, alpha=0.3)
    _add_legend(figure, panel)
    return _to_png(figure)


def _label(*parts: str) -> str:
    """Joins the parts of a legend entry; bytes of a file name that are not UTF-8 are escaped."""
    label = ", ".join(filter(None, parts)).replace("$", r"\$")  # a dollar sign starts a formula
    return label.encode("utf-8", "backslashreplace").decode("utf-8")


def _styles(keys: Sequence[Key]) -> dict[Key, dict[str, Any]]:
    """A method has a color, a variant a marker and dashes; a single method has a color each."""
    methods = list(dict.fromkeys(method for method, _ in keys))
    variants = list(dict.fromkeys(variant for _, variant in keys))
    styles = {}
    for key in keys:
        method, variant = methods.index(key[0]), variants.index(key[1])
        styles[key] = {
            "color": COLORS[(method if len(methods) > 1 else variant) % len(COLORS)],
            "marker": MARKERS[variant % len(MARKERS)],
            "linestyle": DASHES[variant % len(DASHES)],
        }
    return styles


def _add_legend(figure: Figure, panel: Axes) -> None:
    """Adds a legend below all panels, in as many columns as fit."""
    handles, labels = panel.get_legend_handles_labels()
    width = int(figure.get_figwidth() * _LETTERS_PER_INCH)
    labels = ["\n".join(wrap(label, width - _HANDLE_LETTERS)) for label in labels]
    longest = max((len(line) for label in labels for line in label.split("\n")), default=0)
    columns = max(min(width // (longest + _HANDLE_LETTERS), len(labels)), 1)
    rows = -(-len(labels) // columns)
    figure.set_figheight(figure.get_figheight() + _ROW_INCHES * rows)
    figure.legend(handles, labels, loc="outside lower center", ncols=columns, frameon=False)


def _to_png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DOTS_PER_INCH)
    return buffer.getvalue()
