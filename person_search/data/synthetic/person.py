# SPDX-License-Identifier: Apache-2.0
"""Draws one person: a look in a pose, as a color image with alpha.

Body frame, in body heights: a = to the person's left, b = forward, y = up, origin on the ground.
Screen frame, in body heights: u right, v up, d toward the camera. ``Figure.at`` turns (u, v) into
pixels of the figure's canvas. Yaw 0 faces the camera, +90 degrees faces right.
"""

import math
from dataclasses import dataclass

import cv2
import numpy as np

from .canvas import FigureCanvas, ellipse_outline, limb_outline, smooth_outline
from .looks import CLOTH_COLORS, HAIR_COLORS, SKIN_COLORS, Look

# -- pose and skeleton -----------------------------------------------------------------------------

HIP, KNEE, ANKLE = 0.515, 0.285, 0.045
SHOULDER, NECK, HEAD = 0.815, 0.86, 0.925
UPPER_ARM, FORE_ARM = 0.165, 0.150


@dataclass(frozen=True)
class Pose:
    """Pose of a person at one moment; angles in radians.

    Attributes:
        yaw: Direction that the person faces; 0 is towards the camera.
        stride: Amplitude of the swing of the legs.
        phase: Position within the step, 0 to 2 pi.
        gesture: Gesture of the free arm: ``swing``, ``phone``, ``hip`` or ``pocket``.
        free_side: Side of the free arm: 1 left, -1 right.
        lean: Forward lean of the trunk.
    """

    yaw: float
    stride: float
    phase: float
    gesture: str
    free_side: int
    lean: float


def sample_pose(rng: np.random.Generator) -> Pose:
    """Samples a pose: front, back and side views are equally likely, two of three persons walk."""
    base = float(rng.choice((0.0, 0.5, 1.0, 1.5))) * math.pi
    walking = rng.random() < 0.66
    return Pose(
        yaw=base + float(rng.normal(0, 0.32)),
        stride=float(rng.uniform(0.28, 0.5)) if walking else float(rng.uniform(0.02, 0.1)),
        phase=float(rng.uniform(0, 2 * math.pi)),
        gesture=str(rng.choice(("swing", "phone", "hip", "pocket"), p=(0.62, 0.16, 0.08, 0.14))),
        free_side=1 if rng.random() < 0.5 else -1,
        lean=float(rng.uniform(0.0, 0.05)) if walking else float(rng.uniform(-0.01, 0.02)),
    )


class Skeleton:
    """Joints of a pose, in screen coordinates (u, v, d) in body heights.

    Args:
        pose: Pose to show.
        breadth: Half the distance of the shoulder joints.
        pitch: Downward tilt of the camera in radians.
    """

    def __init__(self, pose: Pose, breadth: float, pitch: float) -> None:
        self._cos, self._sin = math.cos(pose.yaw), math.sin(pose.yaw)
        self._pitch = math.sin(pitch)
        self.joints: dict[str, np.ndarray] = {}
        legs = {side: self._leg(pose, side, 0.42 * breadth) for side in (1, -1)}
        self.drop = min(float(leg["heel"][2]) for leg in legs.values())
        self.lean = pose.lean
        for side, leg in legs.items():
            for name, point in (leg | self._arm(pose, side, breadth)).items():
                self.joints[f"{name}{side:+d}"] = self.project(*(point - (0, 0, self.drop)))

    def project(self, a: float, b: float, y: float) -> np.ndarray:
        """Projects body coordinates to (u, v, d)."""
        u = a * self._cos + b * self._sin
        d = -a * self._sin + b * self._cos
        return np.array((u, y - d * self._pitch, d))

    def body(self, a: float, b: float, y: float) -> np.ndarray:
        """Projects a point of the trunk or head, which lean and rise with the step."""
        return self.project(a, b + self.lean * max(0.0, (y - HIP) / 0.3), y - self.drop)

    @staticmethod
    def _leg(pose: Pose, side: int, spread: float) -> dict[str, np.ndarray]:
        swing = side * pose.stride * math.sin(pose.phase)
        moving = max(0.0, side * math.cos(pose.phase))
        bend = 0.08 + pose.stride * (1.3 * moving + (0.5 if swing < 0 else 0.0))
        thigh, shank = HIP - KNEE, KNEE - ANKLE
        hip = np.array((side * spread, 0.0, HIP))
        knee = hip + thigh * np.array(
            (0.0, math.sin(swing + 0.3 * bend), -math.cos(swing + 0.3 * bend))
        )
        lower = swing - 0.7 * bend
        ankle = knee + shank * np.array((0.0, math.sin(lower), -math.cos(lower)))
        # the foot tips with the shank when it is behind and lies flat in front
        tip = min(0.0, lower) * 0.9
        forward = np.array((side * 0.16, math.cos(tip), math.sin(tip)))
        heel = ankle - 0.02 * forward - (0.0, 0.0, 0.026)
        toe = heel + 0.115 * forward
        return {"hip": hip, "knee": knee, "ankle": ankle, "heel": heel, "toe": toe}

    @staticmethod
    def _arm(pose: Pose, side: int, breadth: float) -> dict[str, np.ndarray]:
        shoulder = np.array((side * breadth, pose.lean, SHOULDER - 0.020))
        swing = -side * 0.8 * pose.stride * math.sin(pose.phase)
        bend, out, inward = 0.22 + 0.5 * max(0.0, swing), 0.13, 0.0
        if side == pose.free_side:
            if pose.gesture == "phone":
                swing, bend, inward = 0.35, 1.9, 0.35
            elif pose.gesture == "hip":
                swing, bend, out, inward = -0.25, 0.9, 0.55, 1.1
            elif pose.gesture == "pocket":
                swing, bend, out, inward = -0.22, 0.6, 0.28, 0.5
        elbow = shoulder + UPPER_ARM * np.array(
            (side * math.sin(out), math.sin(swing), -math.cos(swing) * math.cos(out))
        )
        lower = swing + bend
        wrist = elbow + FORE_ARM * np.array(
            (side * (0.4 * math.sin(out) - math.sin(inward)), math.sin(lower), -math.cos(lower))
        )
        hand = wrist + 0.28 * (wrist - elbow)
        return {"shoulder": shoulder, "elbow": elbow, "wrist": wrist, "hand": hand}


# -- frame of a figure -----------------------------------------------------------------------------

SKIN, TOP, TOP_SECOND, BOTTOM, SHOE, HAIR, HAT, BAG, EYE, LIP, SOLE, STRAP = range(1, 13)

_HALF_WIDTH = 0.52  # of the surface, in body heights; room for a full stride
_ABOVE, _BELOW = 1.08, 0.09
_OVERSAMPLING = 2.0
_LEAST_UNIT = 150  # pixels per body height, below which thin parts would vanish


def look_palette(look: Look) -> np.ndarray:
    """Returns the BGR color (13, 3) float32 of each material of a look."""
    colors = np.zeros((13, 3), np.float32)

    def put(material: int, rgb: tuple[int, int, int], tint: int) -> None:
        colors[material] = np.clip(np.asarray(rgb[::-1], np.float32) + tint, 8, 250)

    put(SKIN, SKIN_COLORS[look.skin], 0)
    put(TOP, CLOTH_COLORS[look.top_color], look.tint[0])
    put(TOP_SECOND, CLOTH_COLORS[look.second_color], look.tint[1])
    put(BOTTOM, CLOTH_COLORS[look.bottom_color], look.tint[2])
    put(SHOE, CLOTH_COLORS[look.shoe_color], look.tint[3])
    put(HAIR, HAIR_COLORS[look.hair_color], look.tint[4])
    put(HAT, CLOTH_COLORS[look.hat_color], look.tint[5])
    put(BAG, CLOTH_COLORS[look.bag_color], look.tint[5])
    put(STRAP, CLOTH_COLORS[look.bag_color], look.tint[5] - 22)
    put(EYE, (34, 26, 24), 0)
    colors[LIP] = colors[SKIN] * (0.62, 0.55, 0.78)
    put(SOLE, (212, 210, 204), 0)
    return colors


class Figure:
    """One person in a pose, on a canvas of its own.

    Args:
        look: Appearance of the person.
        pose: Pose of the person.
        height: Body height in pixels of the final image.
        light: Horizontal light direction, -1 to 1.
        pitch: Downward tilt of the camera in radians.
    """

    def __init__(self, look: Look, pose: Pose, height: float, light: float, pitch: float) -> None:
        self.look, self.pose = look, pose
        self.unit = max(_LEAST_UNIT, _OVERSAMPLING * height)
        self.scale = height / self.unit
        size = (round(2 * _HALF_WIDTH * self.unit), round((_ABOVE + _BELOW) * self.unit))
        self.canvas = FigureCanvas(size, light, self.unit)
        self.breadth = 0.098 * (0.35 + 0.65 * look.build)
        self.bones = Skeleton(pose, self.breadth, pitch)
        self.front = math.cos(pose.yaw)
        self.side = math.sin(pose.yaw)

    def at(self, point: np.ndarray) -> np.ndarray:
        """Converts screen coordinates (..., 2 or 3) in body heights to canvas pixels (..., 2)."""
        point = np.asarray(point, np.float64)
        x = (point[..., 0] + _HALF_WIDTH) * self.unit
        y = (_ABOVE - point[..., 1]) * self.unit
        return np.stack([x, y], axis=-1)

    def joint(self, name: str, side: int) -> np.ndarray:
        """Returns the pixel position of a joint."""
        return self.at(self.bones.joints[f"{name}{side:+d}"])

    def spread(self, half_width: float, half_depth: float) -> float:
        """Returns half the width on screen of a body cross section at this yaw."""
        return math.hypot(half_width * self.front, half_depth * self.side)

    def row(self, half_width: float, half_depth: float, y: float) -> tuple[np.ndarray, np.ndarray]:
        """Returns the left and right screen points of the trunk at height ``y``."""
        center = self.bones.body(0.0, 0.0, y)
        half = self.spread(half_width, half_depth)
        return center[:2] - (half, 0.0), center[:2] + (half, 0.0)

    def outline(self, rows: list[tuple[float, float, float]], rounds: int = 2) -> np.ndarray:
        """Returns a rounded outline through rows of (half width, half depth, height)."""
        pairs = [self.row(*row) for row in rows]
        points = [left for left, _ in pairs] + [right for _, right in reversed(pairs)]
        return smooth_outline(self.at(np.stack(points)), rounds)

    @property
    def skull(self) -> tuple[np.ndarray, float, float]:
        """Pixel center of the head, and its two radii."""
        center = self.at(self.bones.body(0, 0.016, 0.928)[:2])
        return center, self.unit * self.spread(0.05, 0.057), 0.068 * self.unit


# -- legs, arms and trunk --------------------------------------------------------------------------


def draw_leg(fig: Figure, side: int, lift: int) -> None:
    """Draws one leg with its shoe (side 1 left, -1 right); ``lift`` brightens it."""
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
    """Draws one arm (side 1 left, -1 right); ``lift`` brightens it."""
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
    """Draws a garment from the waist to ``hem`` that covers both thighs."""
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
    """Applies the pattern of the look to the upper garment, including the sleeves."""
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


# -- head, face, hair and hat ----------------------------------------------------------------------


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
            ends = np.stack([brow - (0.14 * rx, 0), brow + (0.14 * rx, 0)])
            canvas.line(ends, 0.006 * fig.unit, None, 80)
    nose = center + (0.98 * rx * math.sin(turn), 0.27 * ry)
    canvas.fill(ellipse_outline(nose, (0.1 * rx, 0.1 * ry), 0, 8), SKIN, 112)
    mouth = center + (0.84 * rx * math.sin(turn), 0.56 * ry)
    reach = (0.2 * rx * max(0.3, fig.front), 0)
    canvas.line(np.stack([mouth - reach, mouth + reach]), 0.009 * fig.unit, LIP, 120)


def draw_hanging_hair(fig: Figure) -> None:
    """Draws hair on the back: behind the trunk when the person faces the camera, else on it."""
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


# -- bags ------------------------------------------------------------------------------------------


def draw_backpack(fig: Figure) -> None:
    """Draws a backpack, with a pocket where the back faces the camera."""
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
    """Draws the straps across the trunk."""
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
    """Draws a bag that hangs from a hand or from a shoulder."""
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


# -- the whole person ------------------------------------------------------------------------------


def draw_parts(fig: Figure) -> None:
    """Draws all parts, those far from the camera first."""
    far = 1 if fig.side > 0 else -1
    facing = fig.front > 0
    if facing:
        draw_backpack(fig)
        draw_hanging_hair(fig)
    arms_split = abs(fig.side) > 0.35
    draw_arm(fig, far, lift=-14)
    draw_leg(fig, far, lift=-12)
    draw_leg(fig, -far, lift=0)
    if not arms_split and not facing:
        draw_arm(fig, -far, lift=0)
    draw_trunk(fig)
    draw_straps(fig)
    draw_head(fig)
    if not facing:
        draw_hanging_hair(fig)
        draw_backpack(fig)
    if arms_split or facing:
        draw_arm(fig, -far, lift=4)
    if facing and not arms_split:
        draw_arm(fig, far, lift=0)
    draw_hung_bag(fig)
    lay_pattern(fig)


def draw_person(
    look: Look,
    pose: Pose,
    height: float,
    light: float,
    pitch: float,
    ambient: float,
    folds: tuple[int, int],
) -> tuple[np.ndarray, np.ndarray, tuple[int, int]]:
    """Draws a person.

    Args:
        look: Appearance of the identity.
        pose: Pose of the person.
        height: Height of the body in pixels, from the ground to the top of the head.
        light: Horizontal light direction, -1 to 1.
        pitch: Downward tilt of the camera in radians.
        ambient: Flatness of the light, 0 to 1.
        folds: Offset into the texture of cloth folds.

    Returns:
        Color (h, w, 3) float32 BGR in 0..255 multiplied by alpha, alpha (h, w) float32 in 0..1, and
        the point (x, y) of this image that stands on the ground.
    """
    figure = Figure(look, pose, height, light, pitch)
    draw_parts(figure)
    color, alpha, (x, y) = figure.canvas.render(look_palette(look), folds, ambient)
    h, w = alpha.shape
    # keep whole output pixels: the cut starts and ends where a reduced pixel does
    left, top = math.floor(x * figure.scale), math.floor(y * figure.scale)
    right, low = math.ceil((x + w) * figure.scale), math.ceil((y + h) * figure.scale)
    size = (right - left, low - top)
    shift = (x * figure.scale - left, y * figure.scale - top)
    matrix = np.array([[figure.scale, 0, shift[0]], [0, figure.scale, shift[1]]], np.float64)
    color, alpha = (_reduce(m, matrix, size) for m in (color, alpha))
    foot = figure.at(np.array((0.0, 0.0))) * figure.scale
    return color, alpha, (round(float(foot[0])) - left, round(float(foot[1])) - top)


def _reduce(image: np.ndarray, matrix: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Crops and shrinks an image, with a box blur before bilinear sampling."""
    factor = 1.0 / matrix[0, 0]
    if factor > 1.3:
        side = max(2, round(factor))
        image = cv2.blur(image, (side, side), borderType=cv2.BORDER_CONSTANT)
    return cv2.warpAffine(image, matrix, size, flags=cv2.INTER_LINEAR)
