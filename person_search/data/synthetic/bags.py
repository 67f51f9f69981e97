# SPDX-License-Identifier: Apache-2.0
"""Draws backpack, handbag and shoulder bag."""

import math

import numpy as np

from .canvas import smooth_outline
from .figure import BAG, STRAP, Figure


def draw_backpack(fig: Figure) -> None:
    """Draws the backpack; a closer look at it where the back faces the camera."""
    if fig.look.bag != "backpack":
        return
    center = fig.bones.body(0, -0.098, 0.70)
    half = fig.spread(0.085, 0.052)
    middle = fig.at(center[:2])
    x, y = half * fig.unit, 0.118 * fig.unit
    box = np.array([(-0.8, -1), (0.8, -1), (1, -0.5), (1, 0.9), (-1, 0.9), (-1, -0.5)]) * (x, y)
    fig.canvas.solid(smooth_outline(middle + box, 1), BAG)
    if fig.front < 0.35:
        pocket = np.array([(-0.7, 0.15), (0.7, 0.15), (0.7, 0.75), (-0.7, 0.75)]) * (x, y)
        fig.canvas.edge(smooth_outline(middle + pocket, 1), 82)


def draw_straps(fig: Figure) -> None:
    """Draws the straps that run over the trunk."""
    look, unit = fig.look, fig.unit
    if look.bag == "backpack" and fig.front > -0.25:
        for side in (1, -1):
            if side * fig.side > 0.75:
                continue
            route = (
                (0.06 * side, -0.03, 0.85),
                (0.064 * side, 0.055, 0.80),
                (0.074 * side, 0.045, 0.69),
                (0.08 * side, -0.04, 0.64),
            )
            points = [fig.bones.body(*point) for point in route]
            fig.canvas.line(fig.at(np.stack(points)), 0.02 * unit, STRAP, 116)
    if look.bag == "shoulder bag":
        outside = math.copysign(0.06, fig.front)  # on the chest or on the back
        hanging = ((0.06, 0.0, 0.852), (0.0, outside, 0.70), (-0.1, 0.0, 0.55))
        points = [fig.bones.body(*point) for point in hanging]
        fig.canvas.line(fig.at(np.stack(points)), 0.016 * unit, STRAP, 112)


def draw_hung_bag(fig: Figure) -> None:
    """Draws the bag that hangs from a hand or from the shoulder."""
    look, unit = fig.look, fig.unit
    if look.bag == "handbag":
        hand = fig.joint("hand", -fig.pose.free_side)
        x, y = 0.062 * unit * max(0.55, abs(fig.side)), 0.05 * unit
        top = hand + (0, 0.05 * unit)
        fig.canvas.line(
            np.stack([top - (0.6 * x, 0), hand, top + (0.6 * x, 0)]), 0.01 * unit, STRAP, 110
        )
        box = np.array([(-0.85, 0), (0.85, 0), (1.05, 2), (-1.05, 2)]) * (x, y)
        fig.canvas.solid(smooth_outline(top + box, 1), BAG)
    elif look.bag == "shoulder bag":
        center = fig.at(fig.bones.body(-0.115, 0.0, 0.505)[:2])
        x, y = fig.spread(0.045, 0.08) * unit, 0.058 * unit
        if fig.side > 0.5:  # the bag hangs on the hidden side
            return
        box = np.array([(-1, -0.9), (1, -0.9), (1, 1), (-1, 1)]) * (x, y)
        fig.canvas.solid(smooth_outline(center + box, 1), BAG)
