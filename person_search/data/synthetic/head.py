# SPDX-License-Identifier: Apache-2.0
"""Draws head, face, hair and hat."""

import math

import numpy as np

from .canvas import ellipse_outline, smooth_outline
from .figure import EYE, HAIR, HAT, LIP, SKIN, Figure


def draw_head(fig: Figure) -> None:
    """Draws skull, hair, face and hat."""
    canvas, unit, look = fig.canvas, fig.unit, fig.look
    center, rx, ry = fig.skull
    bald = look.hair == "bald"
    turn = math.atan2(fig.side, fig.front)
    away = fig.front < -0.35
    curl = 1.24 if look.hair == "curly" else 1.09
    if not bald:
        skull = ellipse_outline(center + (0.1 * rx * fig.side, 0.1 * ry), (0.88 * rx, 0.9 * ry))
        canvas.solid(skull, SKIN)
        crown = ellipse_outline(center - (0, 0.008 * unit), (rx * curl, ry * curl))
        if look.hair != "long":  # short hair ends above the jaw, at the back above the nape
            lowest = 0.22 + 0.28 * (1 - fig.front)
            crown[:, 1] = np.minimum(crown[:, 1], center[1] + lowest * ry)
        canvas.solid(crown, HAIR)
    if bald or not away:
        _face(fig, center, rx, ry, bald, turn)
    elif look.hair in ("short", "curly", "bun"):
        nape = center + (0, 0.72 * ry)
        canvas.fill(ellipse_outline(nape, (0.62 * rx, 0.36 * ry), 0, 12), SKIN, 104)
    if look.hair == "bun":
        knot = fig.at(fig.bones.body(0, -0.052, 0.985)[:2])
        canvas.solid(ellipse_outline(knot, (0.03 * unit, 0.028 * unit), 0, 12), HAIR)
    _hat(fig, center, rx, ry)


def _face(fig: Figure, center: np.ndarray, rx: float, ry: float, bald: bool, turn: float) -> None:
    canvas = fig.canvas
    if fig.look.hair in ("bald", "short", "bun") and abs(fig.side) < 0.8:
        for side in (-1, 1):
            ear = center + (side * 0.98 * rx, 0.12 * ry)
            canvas.fill(ellipse_outline(ear, (0.14 * rx, 0.22 * ry), 0, 8), SKIN, 104)
    if bald:
        outline = ellipse_outline(center, (rx, ry))
        middle = center
    else:
        narrow = 0.90 - 0.28 * abs(fig.side)
        middle = center + (0.42 * rx * fig.side, 0.16 * ry)
        outline = ellipse_outline(middle, (narrow * rx, 0.84 * ry))
    canvas.solid(outline, SKIN, edge=bald)
    if fig.look.beard and fig.front > -0.35:
        jaw = middle + (0.1 * rx * fig.side, 0.52 * ry)
        canvas.fill(ellipse_outline(jaw, (0.66 * rx, 0.40 * ry), 0, 14), HAIR, 112)
    if fig.front < -0.2:
        return
    for angle in (-0.42, 0.42):
        if math.cos(turn + angle) > 0.15:
            eye = center + (0.86 * rx * math.sin(turn + angle), 0.04 * ry)
            canvas.fill(ellipse_outline(eye, (0.1 * rx, 0.075 * ry), 0, 8), EYE, 128)
            brow = eye - (0, 0.17 * ry)
            canvas.line(
                np.stack([brow - (0.14 * rx, 0), brow + (0.14 * rx, 0)]),
                0.006 * fig.unit,
                None,
                80,
            )
    nose = center + (0.98 * rx * math.sin(turn), 0.27 * ry)
    canvas.fill(ellipse_outline(nose, (0.1 * rx, 0.1 * ry), 0, 8), SKIN, 112)
    mouth = center + (0.84 * rx * math.sin(turn), 0.56 * ry)
    reach = (0.2 * rx * max(0.3, fig.front), 0)
    canvas.line(np.stack([mouth - reach, mouth + reach]), 0.009 * fig.unit, LIP, 120)


def draw_hanging_hair(fig: Figure) -> None:
    """Hair that hangs down the back: behind the trunk when facing the camera, else on it."""
    center, rx, ry = fig.skull
    unit = fig.unit
    if fig.look.hair == "long":
        tail = fig.at(fig.bones.body(0, -0.035, 0.795)[:2])
        half = fig.spread(0.066, 0.05) * unit
        root = center - (0, 0.4 * ry)
        outline = [
            root + (-0.95 * half, 0),
            root + (0.95 * half, 0),
            tail + (half, 0),
            tail + (0.45 * half, 0.02 * unit),
            tail + (-0.45 * half, 0.02 * unit),
            tail - (half, 0),
        ]
        fig.canvas.solid(smooth_outline(np.stack(outline)), HAIR)
    elif fig.look.hair == "ponytail":
        root = fig.at(fig.bones.body(0, -0.06, 0.955)[:2])
        tail = fig.at(fig.bones.body(0.01, -0.085, 0.80)[:2])
        fig.canvas.limb(root, tail, (0.027 * unit, 0.012 * unit), HAIR)


def _hat(fig: Figure, center: np.ndarray, rx: float, ry: float) -> None:
    hat = fig.look.hat
    if hat == "none":
        return
    canvas = fig.canvas
    turn = np.linspace(math.pi, 2 * math.pi, 12)
    lift = 1.26 if hat == "beanie" else 1.19
    base = 0.10 if hat == "beanie" else 0.24
    wide = 1.17 if fig.look.hair != "curly" else 1.27
    dome = np.stack([np.cos(turn) * rx * wide, np.sin(turn) * ry * (lift - base + 0.06)], 1)
    dome += center - (0, base * ry)
    canvas.solid(dome, HAT)
    if hat == "cap" and fig.front > -0.5:
        root = center + (0.45 * rx * fig.side, -0.26 * ry)
        tip = center + (1.55 * rx * fig.side, -0.20 * ry + 0.1 * ry * fig.front)
        canvas.limb(root, tip, (0.13 * ry + 0.35 * rx * max(0, fig.front) * 0.3, 0.1 * ry), HAT)
        if fig.front > 0.3:
            brim = ellipse_outline(root + (0.3 * rx * fig.side, 0.02 * ry),
                                   (1.0 * rx, 0.17 * ry), 0, 14)  # fmt: skip
            canvas.solid(brim, HAT, lift=-10)
    elif hat == "brimmed hat":
        brim = ellipse_outline(center - (0, 0.30 * ry), (1.75 * rx, 0.2 * ry), 0, 18)
        canvas.solid(brim, HAT)
    elif hat == "beanie":
        edge = np.stack([center + (-1.14 * rx, -0.16 * ry), center + (1.14 * rx, -0.16 * ry)])
        canvas.line(edge, 0.26 * ry, HAT, 104)
