# SPDX-License-Identifier: Apache-2.0
"""Plots of an evaluation as PNG: figures over gallery size, and precision over recall."""

import io
from collections.abc import Mapping, Sequence
from textwrap import wrap
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator

Curve = tuple[np.ndarray, np.ndarray]
"""x and y."""

# Okabe and Ito's colors, told apart by color-blind people too; with markers for black and white
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
DOTS_PER_INCH = 160
_ROOM = 0.08
"""Empty part of the value range above and below the curves."""
_LETTERS_PER_INCH, _HANDLE_LETTERS = 11, 8
"""Letters of a legend that an inch holds, and the place that the line beside them takes."""


def plot_gallery_size(
    figures: Mapping[str, Mapping[int, Mapping[str, float]]], metrics: Sequence[str]
) -> bytes:
    """Draws metrics over the size of the gallery, one panel each.

    Args:
        figures: method -> gallery size -> metric -> percent.
        metrics: which to draw, e.g. ``("mAP", "top1")``.

    Returns:
        PNG.
    """
    figure = Figure(figsize=(5.2 * len(metrics), 4.2), layout="constrained")
    panels = figure.subplots(1, len(metrics), squeeze=False)[0]
    sizes = sorted({size for by_size in figures.values() for size in by_size})
    for panel, metric in zip(panels, metrics, strict=True):
        for number, (name, by_size) in enumerate(figures.items()):
            x = sorted(by_size)
            y = [by_size[size][metric] for size in x]
            panel.plot(x, y, label=name, linewidth=1.8, markersize=6, **_look(number))
        panel.set_xscale("log")
        panel.xaxis.set_major_locator(FixedLocator(sizes))
        panel.xaxis.set_minor_locator(NullLocator())
        panel.set_xticks(sizes, [f"{size}" for size in sizes])
        panel.set_xlabel("gallery size (images per query)")
        panel.set_ylabel(f"{metric} (%)")
        panel.margins(y=_ROOM)
        panel.grid(True, alpha=0.3)
    _add_legend(figure, panels[0])
    return _to_png(figure)


def plot_precision_recall(curves: Mapping[str, Curve], title: str) -> bytes:
    """Draws precision over recall.

    Args:
        curves: name -> recall and precision in [0, 1], a curve each; an empty one is only named.
        title: above the plot.

    Returns:
        PNG.
    """
    figure = Figure(figsize=(5.6, 4.8), layout="constrained")
    panel = figure.subplots()
    for number, (name, (recall, precision)) in enumerate(curves.items()):
        look = _look(number) | {"marker": None}
        panel.plot(100 * recall, 100 * precision, label=name, linewidth=1.8, **look)
    panel.set_title(title)
    panel.set_xlabel("recall (%)")
    panel.set_ylabel("precision (%)")
    panel.set_xlim(0, 101)
    panel.set_ylim(0, 102)
    panel.grid(True, alpha=0.3)
    _add_legend(figure, panel)
    return _to_png(figure)


def _look(number: int) -> dict[str, Any]:
    """Color, marker and dashes of the n-th curve; the dashes change when colors start again."""
    styles = ("-", "--", ":", "-.")
    turn = number // len(COLORS)
    return {
        "color": COLORS[number % len(COLORS)],
        "marker": MARKERS[number % len(MARKERS)],
        "linestyle": styles[turn % len(styles)],
    }


def _add_legend(figure: Figure, panel: Axes) -> None:
    """Below all panels, where it hides nothing, in as many columns as there is room for."""
    handles, labels = panel.get_legend_handles_labels()
    room = int(figure.get_figwidth() * _LETTERS_PER_INCH)
    labels = ["\n".join(wrap(label, room - _HANDLE_LETTERS)) for label in labels]
    longest = max((len(line) for label in labels for line in label.split("\n")), default=0)
    columns = max(min(room // (longest + _HANDLE_LETTERS), len(labels)), 1)
    figure.legend(handles, labels, loc="outside lower center", ncols=columns, frameon=False)


def _to_png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DOTS_PER_INCH)
    return buffer.getvalue()
