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

Key = tuple[str, str]
"""A method and its variant, which may be empty."""

# Okabe and Ito's colors, told apart by color-blind people too; with markers for black and white
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
DASHES = ("-", "--", ":", "-.", (0, (5, 1, 1, 1, 1, 1)), (0, (8, 2)), (0, (1, 3)))
DOTS_PER_INCH = 160
_ROOM = 0.08
"""Empty part of the value range above and below the curves."""
_LETTERS_PER_INCH, _HANDLE_LETTERS = 11, 8
"""Letters of a legend that an inch holds, and the place that the line beside them takes."""
_ROW_INCHES = 0.22
"""Height of a line of the legend."""


def plot_gallery_size(
    figures: Mapping[Key, Mapping[int, Mapping[str, float]]], metrics: Sequence[str]
) -> bytes:
    """Draws metrics over the size of the gallery, one panel each.

    Args:
        figures: curve -> gallery size -> metric -> percent.
        metrics: which to draw, e.g. ``("mAP", "top1")``.

    Returns:
        PNG.
    """
    figure = Figure(figsize=(5.2 * len(metrics), 4.2), layout="constrained")
    panels = figure.subplots(1, len(metrics), squeeze=False)[0]
    sizes = sorted({size for by_size in figures.values() for size in by_size})
    looks = _looks(list(figures))
    for panel, metric in zip(panels, metrics, strict=True):
        for key, by_size in figures.items():
            x = sorted(by_size)
            y = [by_size[size][metric] for size in x]
            panel.plot(x, y, label=_name(key), linewidth=1.8, markersize=6, **looks[key])
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


def plot_precision_recall(
    curves: Mapping[Key, Curve], title: str, notes: Mapping[Key, str] | None = None
) -> bytes:
    """Draws precision over recall.

    Args:
        curves: recall and precision in [0, 1] of each curve; an empty one is only named.
        title: above the plot.
        notes: what to write behind the name of a curve, e.g. its mAP.

    Returns:
        PNG.
    """
    figure = Figure(figsize=(5.6, 4.6), layout="constrained")
    panel = figure.subplots()
    looks = _looks(list(curves))
    for key, (recall, precision) in curves.items():
        label = ", ".join(filter(None, [_name(key), (notes or {}).get(key)]))
        look = looks[key] | {"marker": None}
        panel.plot(100 * recall, 100 * precision, label=label, linewidth=1.8, **look)
    panel.set_title(title)
    panel.set_xlabel("recall (%)")
    panel.set_ylabel("precision (%)")
    panel.set_xlim(0, 101)
    panel.set_ylim(0, 102)
    panel.grid(True, alpha=0.3)
    _add_legend(figure, panel)
    return _to_png(figure)


def _name(key: Key) -> str:
    return ", ".join(filter(None, key))


def _looks(keys: Sequence[Key]) -> dict[Key, dict[str, Any]]:
    """A method has a color, a variant a marker and dashes; of one method alone variants differ."""
    methods = list(dict.fromkeys(method for method, _ in keys))
    variants = list(dict.fromkeys(variant for _, variant in keys))
    looks = {}
    for key in keys:
        method, variant = methods.index(key[0]), variants.index(key[1])
        looks[key] = {
            "color": COLORS[(method if len(methods) > 1 else variant) % len(COLORS)],
            "marker": MARKERS[variant % len(MARKERS)],
            "linestyle": DASHES[variant % len(DASHES)],
        }
    return looks


def _add_legend(figure: Figure, panel: Axes) -> None:
    """Below all panels, where it hides nothing, in as many columns as there is room for."""
    handles, labels = panel.get_legend_handles_labels()
    room = int(figure.get_figwidth() * _LETTERS_PER_INCH)
    labels = ["\n".join(wrap(label, room - _HANDLE_LETTERS)) for label in labels]
    longest = max((len(line) for label in labels for line in label.split("\n")), default=0)
    columns = max(min(room // (longest + _HANDLE_LETTERS), len(labels)), 1)
    rows = -(-len(labels) // columns)
    figure.set_figheight(figure.get_figheight() + _ROW_INCHES * rows)
    figure.legend(handles, labels, loc="outside lower center", ncols=columns, frameon=False)


def _to_png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DOTS_PER_INCH)
    return buffer.getvalue()
