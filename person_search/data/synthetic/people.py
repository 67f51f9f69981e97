# SPDX-License-Identifier: Apache-2.0
"""Draws one person: a look in a pose, as a color picture with alpha.

Parts are drawn from far to near. Coordinates inside this file are body heights (u right, v up),
turned into pixels by ``Figure.at``.
"""

import math

import cv2
import numpy as np

from .canvas import FigureCanvas, ellipse_outline, limb_outline, smooth_outline
from .looks import CLOTH_COLORS, HAIR_COLORS, SKIN_COLORS, Look
from .pose import HIP, Pose, Skeleton

SKIN, TOP, TOP_SECOND, BOTTOM, SHOE, HAIR, HAT, BAG, EYE, LIP, SOLE, STRAP = range(1, 13)

_HALF_WIDTH = 0.52  # of the surface, in body heights; room for a full stride
_ABOVE, _BELOW = 1.08, 0.09
_OVERSAMPLING = 2.0
_LEAST_UNIT = 150  # pixels per body height, below which thin parts would vanish


def look_palette(look: Look) -> np.ndarray:
    """BGR color (13, 3) float32 of each material of this look."""
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
    """Draws one person onto a canvas of its own.

    Args:
        look: what the person looks like.
        pose: what the person does.
        height: body height in pixels of the final picture.
        light: horizontal light direction, -1..1.
        pitch: how far the camera looks down, radians.
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
        """(u, v[, d]) body heights, any leading shape, to (x, y) pixels of the surface."""
        point = np.asarray(point, np.float64)
        x = (point[..., 0] + _HALF_WIDTH) * self.unit
        y = (_ABOVE - point[..., 1]) * self.unit
        return np.stack([x, y], axis=-1)

    def joint(self, name: str, side: int) -> np.ndarray:
        """Pixel position of a joint."""
        return self.at(self.bones.joints[f"{name}{side:+d}"])

    def spread(self, half_width: float, half_depth: float) -> float:
        """Half width on screen of a body cross section at this yaw."""
        return math.hypot(half_width * self.front, half_depth * self.side)

    def draw(self) -> None:
        """Draws all parts, far ones first."""
        far = 1 if self.side > 0 else -1
        facing = self.front > 0
        if facing:
            self._bag_behind()
            self._hair_behind()
        arms_split = abs(self.side) > 0.35
        self._arm(far, lift=-14)
        self._leg(far, lift=-12)
        self._leg(-far, lift=0)
        if not arms_split and not facing:
            self._arm(-far, lift=0)
        self._trunk()
        self._bag_straps()
        self._head()
        if not facing:
            self._hair_behind()
            self._bag_behind()
        if arms_split or facing:
            self._arm(-far, lift=4)
        if facing and not arms_split:
            self._arm(far, lift=0)
        self._hand_bag()
        self._patterns()

    # -- limbs --------------------------------------------------------------------------------

    def _leg(self, side: int, lift: int) -> None:
        look, canvas = self.look, self.canvas
        width = self.unit * (0.45 + 0.55 * look.build)
        hip, knee = self.joint("hip", side), self.joint("knee", side)
        ankle = self.joint("ankle", side)
        heel, toe = self.joint("heel", side), self.joint("toe", side)
        bare = look.bottom in ("shorts", "skirt")
        self._shoe(heel, toe, lift)
        if bare:
            canvas.limb(knee, ankle, (0.036 * width, 0.022 * width), SKIN, lift=lift)
            canvas.limb(hip, knee, (0.05 * width, 0.036 * width), SKIN, edge=False, lift=lift)
            if look.bottom == "shorts":
                stop = hip + 0.88 * (knee - hip)
                canvas.limb(hip, stop, (0.064 * width, 0.056 * width), BOTTOM, lift=lift)
            return
        canvas.limb(knee, ankle, (0.043 * width, 0.034 * width), BOTTOM, lift=lift)
        canvas.limb(hip, knee, (0.063 * width, 0.044 * width), BOTTOM, edge=False, lift=lift)
        across = np.array((0.028 * width, 0.006 * self.unit))
        for shift in (-0.012, 0.016):
            bend = knee + (0, shift * self.unit)
            canvas.line(np.stack([bend - across, bend + 0.4 * across]), 0.006 * self.unit, None, 86)

    def _shoe(self, heel: np.ndarray, toe: np.ndarray, lift: int) -> None:
        unit = self.unit
        lower = np.array((0.0, 0.008 * unit))
        sole = limb_outline(heel + lower, toe + lower, 0.026 * unit, 0.021 * unit)
        self.canvas.edge(sole)
        self.canvas.fill(sole, SOLE if self.look.shoe_color != "white" else EYE, 96)
        upper = (0.027 * unit, 0.018 * unit)
        self.canvas.limb(heel - lower, toe - 0.3 * lower, upper, SHOE, edge=False, lift=lift)

    def _arm(self, side: int, lift: int) -> None:
        look, canvas = self.look, self.canvas
        width = self.unit * (0.5 + 0.5 * look.build)
        shoulder, elbow = self.joint("shoulder", side), self.joint("elbow", side)
        wrist, hand = self.joint("wrist", side), self.joint("hand", side)
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
            crease = np.array((0.022 * width, 0.006 * self.unit))
            canvas.line(np.stack([elbow - crease, elbow + crease]), 0.006 * self.unit, None, 84)
        if self.pose.gesture == "phone" and side == self.pose.free_side and self.front > -0.3:
            case = ellipse_outline(hand, (0.014 * self.unit, 0.024 * self.unit), 0.3, 8)
            canvas.fill(case, EYE, 150)

    # -- trunk --------------------------------------------------------------------------------

    def _row(self, half_width: float, half_depth: float, y: float) -> tuple[np.ndarray, np.ndarray]:
        """Left and right screen points of the trunk's outline at height ``y``."""
        center = self.bones.body(0.0, 0.0, y)
        half = self.spread(half_width, half_depth)
        return center[:2] - (half, 0.0), center[:2] + (half, 0.0)

    def _outline(self, rows: list[tuple[float, float, float]], rounds: int = 2) -> np.ndarray:
        pairs = [self._row(*row) for row in rows]
        points = [left for left, _ in pairs] + [right for _, right in reversed(pairs)]
        return smooth_outline(self.at(np.stack(points)), rounds)

    def _trunk(self) -> None:
        look, canvas, build = self.look, self.canvas, self.look.build
        broad = self.breadth
        hip = 0.082 * (0.4 + 0.6 * build)
        waist = 0.076 * build
        belly = 0.062 * build**1.4
        if look.bottom == "skirt":
            self._skirt(hip, BOTTOM, 0.315)
        else:
            rows = [(hip * 0.9, 0.062 * build, 0.58), (hip, 0.068 * build, 0.52),
                    (hip * 0.8, 0.055 * build, 0.455)]  # fmt: skip
            canvas.solid(self._outline(rows), BOTTOM)
        if look.top == "coat":
            self._skirt(hip * 1.06, TOP, 0.36)
        neck = self.bones.body(0, 0.006, 0.83), self.bones.body(0, 0.012, 0.885)
        thick = 0.034 * self.unit
        canvas.limb(self.at(neck[0]), self.at(neck[1]), (thick * 1.1, thick), SKIN, lift=-16)
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
        canvas.solid(self._outline(rows), TOP)
        self._trunk_details()

    def _trunk_details(self) -> None:
        canvas, unit = self.canvas, self.unit
        for height, reach in ((0.60, 0.05), (0.565, 0.06), (0.70, 0.045)):
            left, right = self._row(reach, 0.04, height)
            sag = self.at(
                np.stack([left, 0.4 * left + 0.6 * right - (0, 0.012), right + (0, 0.004)])
            )
            canvas.line(sag, 0.007 * unit, None, 98)
        if self.front > 0.15:
            collar = self.at(self.bones.body(0, 0.05, 0.842)[:2])
            radii = (0.032 * unit * max(0.4, self.front), 0.022 * unit)
            canvas.fill(ellipse_outline(collar, radii, 0, 10), SKIN, 106)
        if self.look.top in ("coat", "open jacket") and self.front > 0.1:
            top = self.at(self.bones.body(0, 0.055, 0.83)[:2])
            low = self.at(self.bones.body(0, 0.06, 0.40 if self.look.top == "coat" else 0.51)[:2])
            if self.look.top == "open jacket":
                half = 0.034 * unit * self.front
                band = np.stack([top - (half, 0), top + (half, 0), low + (1.3 * half, 0),
                                 low - (1.3 * half, 0)])  # fmt: skip
                canvas.edge(band, 84)
                canvas.fill(band, TOP_SECOND, 120)
            else:
                canvas.line(np.stack([top, low]), 0.007 * unit, None, 78)

    def _skirt(self, hip: float, material: int, hem: float) -> None:
        """A garment from waist to ``hem`` that covers both thighs."""
        knees = [self.bones.joints[f"knee{side:+d}"] for side in (1, -1)]
        hips = [self.bones.joints[f"hip{side:+d}"] for side in (1, -1)]
        share = min(1.0, (HIP - hem) / 0.23)
        reach = [h[0] + share * (k[0] - h[0]) for h, k in zip(hips, knees, strict=True)]
        room = 0.052 * (0.5 + 0.5 * self.look.build) + 0.012
        low = self.bones.project(0, 0, hem)[1]
        left, right = self._row(hip * 0.95, 0.062 * self.look.build, 0.60)
        wide_left, wide_right = self._row(hip * 1.08, 0.07 * self.look.build, 0.50)
        hem_left = np.array((min(reach) - room, low))
        hem_right = np.array((max(reach) + room, low))
        middle = 0.5 * (hem_left + hem_right) - (0, 0.012)
        points = [left, wide_left, hem_left, hem_left, middle, hem_right, hem_right, wide_right,
                  right]  # fmt: skip
        self.canvas.solid(smooth_outline(self.at(np.stack(points)), 2), material)
        for t in (0.3, 0.55, 0.8):
            fold = np.stack(
                [left + t * (right - left) - (0, 0.06), hem_left + t * (hem_right - hem_left)]
            )
            self.canvas.line(self.at(fold), 0.008 * self.unit, None, 102)

    # -- head ---------------------------------------------------------------------------------

    @property
    def _skull(self) -> tuple[np.ndarray, float, float]:
        center = self.at(self.bones.body(0, 0.016, 0.928)[:2])
        return center, self.unit * self.spread(0.05, 0.057), 0.068 * self.unit

    def _head(self) -> None:
        canvas, unit, look = self.canvas, self.unit, self.look
        center, rx, ry = self._skull
        bald = look.hair == "bald"
        turn = math.atan2(self.side, self.front)
        away = self.front < -0.35
        curl = 1.24 if look.hair == "curly" else 1.09
        if not bald:
            skull = ellipse_outline(
                center + (0.1 * rx * self.side, 0.1 * ry), (0.88 * rx, 0.9 * ry)
            )
            canvas.solid(skull, SKIN)
            crown = ellipse_outline(center - (0, 0.008 * unit), (rx * curl, ry * curl))
            if look.hair != "long":  # short hair ends above the jaw, at the back above the nape
                lowest = 0.22 + 0.28 * (1 - self.front)
                crown[:, 1] = np.minimum(crown[:, 1], center[1] + lowest * ry)
            canvas.solid(crown, HAIR)
        if bald or not away:
            self._face(center, rx, ry, bald, turn)
        elif look.hair in ("short", "curly", "bun"):
            nape = center + (0, 0.72 * ry)
            canvas.fill(ellipse_outline(nape, (0.62 * rx, 0.36 * ry), 0, 12), SKIN, 104)
        if look.hair == "bun":
            knot = self.at(self.bones.body(0, -0.052, 0.985)[:2])
            canvas.solid(ellipse_outline(knot, (0.03 * unit, 0.028 * unit), 0, 12), HAIR)
        self._hat(center, rx, ry)

    def _face(self, center: np.ndarray, rx: float, ry: float, bald: bool, turn: float) -> None:
        canvas = self.canvas
        if self.look.hair in ("bald", "short", "bun") and abs(self.side) < 0.8:
            for side in (-1, 1):
                ear = center + (side * 0.98 * rx, 0.12 * ry)
                canvas.fill(ellipse_outline(ear, (0.14 * rx, 0.22 * ry), 0, 8), SKIN, 104)
        if bald:
            outline = ellipse_outline(center, (rx, ry))
            middle = center
        else:
            narrow = 0.90 - 0.28 * abs(self.side)
            middle = center + (0.42 * rx * self.side, 0.16 * ry)
            outline = ellipse_outline(middle, (narrow * rx, 0.84 * ry))
        canvas.solid(outline, SKIN, edge=bald)
        if self.look.beard and self.front > -0.35:
            jaw = middle + (0.1 * rx * self.side, 0.52 * ry)
            canvas.fill(ellipse_outline(jaw, (0.66 * rx, 0.40 * ry), 0, 14), HAIR, 112)
        if self.front < -0.2:
            return
        for angle in (-0.42, 0.42):
            if math.cos(turn + angle) > 0.15:
                eye = center + (0.86 * rx * math.sin(turn + angle), 0.04 * ry)
                canvas.fill(ellipse_outline(eye, (0.1 * rx, 0.075 * ry), 0, 8), EYE, 128)
                brow = eye - (0, 0.17 * ry)
                canvas.line(
                    np.stack([brow - (0.14 * rx, 0), brow + (0.14 * rx, 0)]),
                    0.006 * self.unit,
                    None,
                    80,
                )
        nose = center + (0.98 * rx * math.sin(turn), 0.27 * ry)
        canvas.fill(ellipse_outline(nose, (0.1 * rx, 0.1 * ry), 0, 8), SKIN, 112)
        mouth = center + (0.84 * rx * math.sin(turn), 0.56 * ry)
        reach = (0.2 * rx * max(0.3, self.front), 0)
        canvas.line(np.stack([mouth - reach, mouth + reach]), 0.009 * self.unit, LIP, 120)

    def _hair_behind(self) -> None:
        """Hair that hangs down the back: behind the trunk when facing the camera, else on it."""
        center, rx, ry = self._skull
        unit = self.unit
        if self.look.hair == "long":
            tail = self.at(self.bones.body(0, -0.035, 0.795)[:2])
            half = self.spread(0.066, 0.05) * unit
            root = center - (0, 0.4 * ry)
            outline = [
                root + (-0.95 * half, 0),
                root + (0.95 * half, 0),
                tail + (half, 0),
                tail + (0.45 * half, 0.02 * unit),
                tail + (-0.45 * half, 0.02 * unit),
                tail - (half, 0),
            ]
            self.canvas.solid(smooth_outline(np.stack(outline)), HAIR)
        elif self.look.hair == "ponytail":
            root = self.at(self.bones.body(0, -0.06, 0.955)[:2])
            tail = self.at(self.bones.body(0.01, -0.085, 0.80)[:2])
            self.canvas.limb(root, tail, (0.027 * unit, 0.012 * unit), HAIR)

    def _hat(self, center: np.ndarray, rx: float, ry: float) -> None:
        hat = self.look.hat
        if hat == "none":
            return
        canvas = self.canvas
        turn = np.linspace(math.pi, 2 * math.pi, 12)
        lift = 1.26 if hat == "beanie" else 1.19
        base = 0.10 if hat == "beanie" else 0.24
        wide = 1.17 if self.look.hair != "curly" else 1.27
        dome = np.stack([np.cos(turn) * rx * wide, np.sin(turn) * ry * (lift - base + 0.06)], 1)
        dome += center - (0, base * ry)
        canvas.solid(dome, HAT)
        if hat == "cap" and self.front > -0.5:
            root = center + (0.45 * rx * self.side, -0.26 * ry)
            tip = center + (1.55 * rx * self.side, -0.20 * ry + 0.1 * ry * self.front)
            canvas.limb(
                root, tip, (0.13 * ry + 0.35 * rx * max(0, self.front) * 0.3, 0.1 * ry), HAT
            )
            if self.front > 0.3:
                brim = ellipse_outline(root + (0.3 * rx * self.side, 0.02 * ry),
                                       (1.0 * rx, 0.17 * ry), 0, 14)  # fmt: skip
                canvas.solid(brim, HAT, lift=-10)
        elif hat == "brimmed hat":
            brim = ellipse_outline(center - (0, 0.30 * ry), (1.75 * rx, 0.2 * ry), 0, 18)
            canvas.solid(brim, HAT)
        elif hat == "beanie":
            edge = np.stack([center + (-1.14 * rx, -0.16 * ry), center + (1.14 * rx, -0.16 * ry)])
            canvas.line(edge, 0.26 * ry, HAT, 104)

    # -- bags and patterns --------------------------------------------------------------------

    def _bag_behind(self) -> None:
        if self.look.bag != "backpack":
            return
        center = self.bones.body(0, -0.098, 0.70)
        half = self.spread(0.085, 0.052)
        middle = self.at(center[:2])
        x, y = half * self.unit, 0.118 * self.unit
        box = np.array([(-0.8, -1), (0.8, -1), (1, -0.5), (1, 0.9), (-1, 0.9), (-1, -0.5)]) * (x, y)
        self.canvas.solid(smooth_outline(middle + box, 1), BAG)
        if self.front < 0.35:
            pocket = np.array([(-0.7, 0.15), (0.7, 0.15), (0.7, 0.75), (-0.7, 0.75)]) * (x, y)
            self.canvas.edge(smooth_outline(middle + pocket, 1), 82)

    def _bag_straps(self) -> None:
        look, unit = self.look, self.unit
        if look.bag == "backpack" and self.front > -0.25:
            for side in (1, -1):
                if side * self.side > 0.75:
                    continue
                route = (
                    (0.06 * side, -0.03, 0.85),
                    (0.064 * side, 0.055, 0.80),
                    (0.074 * side, 0.045, 0.69),
                    (0.08 * side, -0.04, 0.64),
                )
                points = [self.bones.body(*point) for point in route]
                self.canvas.line(self.at(np.stack(points)), 0.02 * unit, STRAP, 116)
        if look.bag == "shoulder bag":
            outside = math.copysign(0.06, self.front)  # on the chest or on the back
            route = ((0.06, 0.0, 0.852), (0.0, outside, 0.70), (-0.1, 0.0, 0.55))
            points = [self.bones.body(*point) for point in route]
            self.canvas.line(self.at(np.stack(points)), 0.016 * unit, STRAP, 112)

    def _hand_bag(self) -> None:
        look, unit = self.look, self.unit
        if look.bag == "handbag":
            hand = self.joint("hand", -self.pose.free_side)
            x, y = 0.062 * unit * max(0.55, abs(self.side)), 0.05 * unit
            top = hand + (0, 0.05 * unit)
            self.canvas.line(
                np.stack([top - (0.6 * x, 0), hand, top + (0.6 * x, 0)]), 0.01 * unit, STRAP, 110
            )
            box = np.array([(-0.85, 0), (0.85, 0), (1.05, 2), (-1.05, 2)]) * (x, y)
            self.canvas.solid(smooth_outline(top + box, 1), BAG)
        elif look.bag == "shoulder bag":
            center = self.at(self.bones.body(-0.115, 0.0, 0.505)[:2])
            x, y = self.spread(0.045, 0.08) * unit, 0.058 * unit
            if self.side > 0.5:  # the bag hangs on the hidden side
                return
            box = np.array([(-1, -0.9), (1, -0.9), (1, 1), (-1, 1)]) * (x, y)
            self.canvas.solid(smooth_outline(center + box, 1), BAG)

    def _patterns(self) -> None:
        look, material, unit = self.look, self.canvas.material, self.unit
        if look.pattern == "plain" or look.top == "open jacket":
            return
        height, width = material.shape
        center = self.at(self.bones.body(0, 0, 0.7)[:2])
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
        self.canvas.pattern(mask, TOP, TOP_SECOND)


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
        look: attributes of the identity.
        pose: what the person does at this moment.
        height: height in pixels of a person of stature 1 body height, head to ground.
        light: horizontal light direction, -1..1.
        pitch: how far the camera looks down, radians.
        ambient: 0..1, how flat the light is.
        folds: offset of the cloth's texture.

    Returns:
        Color (h, w, 3) float32 BGR 0..255 multiplied by alpha, alpha (h, w) float32 0..1, and the
        point (x, y) of that picture that stands on the ground.
    """
    figure = Figure(look, pose, height, light, pitch)
    figure.draw()
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


def _reduce(picture: np.ndarray, matrix: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Cuts and shrinks a picture; area averaging as a box blur before bilinear sampling."""
    factor = 1.0 / matrix[0, 0]
    if factor > 1.3:
        side = max(2, round(factor))
        picture = cv2.blur(picture, (side, side), borderType=cv2.BORDER_CONSTANT)
    return cv2.warpAffine(picture, matrix, size, flags=cv2.INTER_LINEAR)
