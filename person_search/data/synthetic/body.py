# SPDX-License-Identifier: Apache-2.0
"""Draws legs, arms and trunk with what they wear."""

import numpy as np

from .canvas import ellipse_outline, limb_outline, smooth_outline
from .figure import BOTTOM, EYE, SHOE, SKIN, SOLE, TOP, TOP_SECOND, Figure
from .pose import HIP


def draw_leg(fig: Figure, side: int, lift: int) -> None:
    """Draws one leg (side 1 left, -1 right) with shoe; ``lift`` raises its light."""
    look, canvas = fig.look, fig.canvas
    width = fig.unit * (0.45 + 0.55 * look.build)
    hip, knee = fig.joint("hip", side), fig.joint("knee", side)
    ankle = fig.joint("ankle", side)
    heel, toe = fig.joint("heel", side), fig.joint("toe", side)
    bare = look.bottom in ("shorts", "skirt")
    _shoe(fig, heel, toe, lift)
    if bare:
        canvas.limb(knee, ankle, (0.036 * width, 0.022 * width), SKIN, lift=lift)
        canvas.limb(hip, knee, (0.05 * width, 0.036 * width), SKIN, edge=False, lift=lift)
        if look.bottom == "shorts":
            stop = hip + 0.88 * (knee - hip)
            canvas.limb(hip, stop, (0.064 * width, 0.056 * width), BOTTOM, lift=lift)
        return
    canvas.limb(knee, ankle, (0.043 * width, 0.034 * width), BOTTOM, lift=lift)
    canvas.limb(hip, knee, (0.063 * width, 0.044 * width), BOTTOM, edge=False, lift=lift)
    across = np.array((0.028 * width, 0.006 * fig.unit))
    for shift in (-0.012, 0.016):
        bend = knee + (0, shift * fig.unit)
        canvas.line(np.stack([bend - across, bend + 0.4 * across]), 0.006 * fig.unit, None, 86)


def _shoe(fig: Figure, heel: np.ndarray, toe: np.ndarray, lift: int) -> None:
    unit = fig.unit
    lower = np.array((0.0, 0.008 * unit))
    sole = limb_outline(heel + lower, toe + lower, 0.026 * unit, 0.021 * unit)
    fig.canvas.edge(sole)
    fig.canvas.fill(sole, SOLE if fig.look.shoe_color != "white" else EYE, 96)
    upper = (0.027 * unit, 0.018 * unit)
    fig.canvas.limb(heel - lower, toe - 0.3 * lower, upper, SHOE, edge=False, lift=lift)


def draw_arm(fig: Figure, side: int, lift: int) -> None:
    """Draws one arm (side 1 left, -1 right); ``lift`` raises its light."""
    look, canvas = fig.look, fig.canvas
    width = fig.unit * (0.5 + 0.5 * look.build)
    shoulder, elbow = fig.joint("shoulder", side), fig.joint("elbow", side)
    wrist, hand = fig.joint("wrist", side), fig.joint("hand", side)
    canvas.limb(wrist, hand, (0.02 * width, 0.018 * width), SKIN, lift=lift)
    if look.top == "t-shirt":
        canvas.limb(elbow, wrist, (0.026 * width, 0.019 * width), SKIN, lift=lift)
        canvas.limb(shoulder, elbow, (0.033 * width, 0.027 * width), SKIN, lift=lift)
        stop = shoulder + 0.62 * (elbow - shoulder)
        canvas.limb(shoulder, stop, (0.037 * width, 0.037 * width), TOP, lift=lift)
    else:
        thick = 1.08 if look.top == "coat" else 1.0
        fore = (0.034 * width * thick, 0.026 * width * thick)
        canvas.limb(elbow, wrist, fore, TOP, lift=lift)
        upper = (0.038 * width * thick, 0.034 * width * thick)
        canvas.limb(shoulder, elbow, upper, TOP, edge=False, lift=lift)
        crease = np.array((0.022 * width, 0.006 * fig.unit))
        canvas.line(np.stack([elbow - crease, elbow + crease]), 0.006 * fig.unit, None, 84)
    if fig.pose.gesture == "phone" and side == fig.pose.free_side and fig.front > -0.3:
        case = ellipse_outline(hand, (0.014 * fig.unit, 0.024 * fig.unit), 0.3, 8)
        canvas.fill(case, EYE, 150)


def draw_trunk(fig: Figure) -> None:
    """Draws hips, skirt or coat tails, neck and upper body."""
    look, canvas, build = fig.look, fig.canvas, fig.look.build
    broad = fig.breadth
    hip = 0.082 * (0.4 + 0.6 * build)
    waist = 0.076 * build
    belly = 0.062 * build**1.4
    if look.bottom == "skirt":
        _skirt(fig, hip, BOTTOM, 0.315)
    else:
        rows = [(hip * 0.9, 0.062 * build, 0.58), (hip, 0.068 * build, 0.52),
                (hip * 0.8, 0.055 * build, 0.455)]  # fmt: skip
        canvas.solid(fig.outline(rows), BOTTOM)
    if look.top == "coat":
        _skirt(fig, hip * 1.06, TOP, 0.36)
    neck = fig.bones.body(0, 0.006, 0.83), fig.bones.body(0, 0.012, 0.885)
    thick = 0.034 * fig.unit
    canvas.limb(fig.at(neck[0]), fig.at(neck[1]), (thick * 1.1, thick), SKIN, lift=-16)
    rows = [
        (0.032, 0.034, 0.862),
        (0.058, 0.045, 0.853),
        (broad * 0.96, 0.054 * build, 0.833),
        (broad * 1.17, 0.062 * build, 0.805),
        (broad * 1.16, 0.067 * build, 0.755),
        (0.5 * (broad + waist), 0.066 * build, 0.69),
        (waist, belly, 0.625),
        (hip * 0.98, 0.064 * build, 0.55),
        (hip * 1.03, 0.067 * build, 0.508),
    ]
    canvas.solid(fig.outline(rows), TOP)
    _trunk_details(fig)


def _trunk_details(fig: Figure) -> None:
    canvas, unit = fig.canvas, fig.unit
    for height, reach in ((0.60, 0.05), (0.565, 0.06), (0.70, 0.045)):
        left, right = fig.row(reach, 0.04, height)
        sag = fig.at(np.stack([left, 0.4 * left + 0.6 * right - (0, 0.012), right + (0, 0.004)]))
        canvas.line(sag, 0.007 * unit, None, 98)
    if fig.front > 0.15:
        collar = fig.at(fig.bones.body(0, 0.05, 0.842)[:2])
        radii = (0.032 * unit * max(0.4, fig.front), 0.022 * unit)
        canvas.fill(ellipse_outline(collar, radii, 0, 10), SKIN, 106)
    if fig.look.top in ("coat", "open jacket") and fig.front > 0.1:
        top = fig.at(fig.bones.body(0, 0.055, 0.83)[:2])
        low = fig.at(fig.bones.body(0, 0.06, 0.40 if fig.look.top == "coat" else 0.51)[:2])
        if fig.look.top == "open jacket":
            half = 0.034 * unit * fig.front
            band = np.stack([top - (half, 0), top + (half, 0), low + (1.3 * half, 0),
                             low - (1.3 * half, 0)])  # fmt: skip
            canvas.edge(band, 84)
            canvas.fill(band, TOP_SECOND, 120)
        else:
            canvas.line(np.stack([top, low]), 0.007 * unit, None, 78)


def _skirt(fig: Figure, hip: float, material: int, hem: float) -> None:
    """A garment from waist to ``hem`` that covers both thighs."""
    knees = [fig.bones.joints[f"knee{side:+d}"] for side in (1, -1)]
    hips = [fig.bones.joints[f"hip{side:+d}"] for side in (1, -1)]
    share = min(1.0, (HIP - hem) / 0.23)
    reach = [h[0] + share * (k[0] - h[0]) for h, k in zip(hips, knees, strict=True)]
    room = 0.052 * (0.5 + 0.5 * fig.look.build) + 0.012
    low = fig.bones.project(0, 0, hem)[1]
    left, right = fig.row(hip * 0.95, 0.062 * fig.look.build, 0.60)
    wide_left, wide_right = fig.row(hip * 1.08, 0.07 * fig.look.build, 0.50)
    hem_left = np.array((min(reach) - room, low))
    hem_right = np.array((max(reach) + room, low))
    middle = 0.5 * (hem_left + hem_right) - (0, 0.012)
    points = [left, wide_left, hem_left, hem_left, middle, hem_right, hem_right, wide_right,
              right]  # fmt: skip
    fig.canvas.solid(smooth_outline(fig.at(np.stack(points)), 2), material)
    for t in (0.3, 0.55, 0.8):
        fold = np.stack(
            [left + t * (right - left) - (0, 0.06), hem_left + t * (hem_right - hem_left)]
        )
        fig.canvas.line(fig.at(fold), 0.008 * fig.unit, None, 102)


def lay_pattern(fig: Figure) -> None:
    """Recolors parts of the upper garment by the look's pattern, sleeves included."""
    look, material, unit = fig.look, fig.canvas.material, fig.unit
    if look.pattern == "plain" or look.top == "open jacket":
        return
    height, width = material.shape
    center = fig.at(fig.bones.body(0, 0, 0.7)[:2])
    rows = (np.arange(height)[:, None] - center[1]) / unit
    cols = (np.arange(width)[None, :] - center[0]) / unit
    if look.pattern == "stripes":
        mask = np.broadcast_to(np.mod(rows, 0.056) < 0.026, material.shape)
    elif look.pattern == "vertical stripes":
        mask = np.broadcast_to(np.mod(cols + 0.012, 0.05) < 0.024, material.shape)
    elif look.pattern == "checks":
        mask = (np.mod(rows, 0.076) < 0.038) ^ (np.mod(cols + 0.019, 0.076) < 0.038)
    elif look.pattern == "dots":
        step = 0.062
        odd = np.mod(np.floor(rows / step), 2) * 0.5 * step
        y, x = np.mod(rows, step) - 0.5 * step, np.mod(cols + odd, step) - 0.5 * step
        mask = x * x + y * y < 0.019**2
    elif look.pattern == "two-tone":
        mask = np.broadcast_to(rows > 0.005, material.shape)
    else:
        mask = np.broadcast_to((rows > -0.075) & (rows < -0.005), material.shape)
    fig.canvas.pattern(mask, TOP, TOP_SECOND)
