# SPDX-License-Identifier: Apache-2.0
"""A small articulated skeleton: where the joints of a walking or standing person lie on screen.

Body frame, in body heights: a = to the person's left, b = forward, y = up, origin on the ground.
Screen frame: u right, v up, d toward the camera. Yaw 0 faces the camera, +90 degrees faces right.
"""

import math
from dataclasses import dataclass

import numpy as np

HIP, KNEE, ANKLE = 0.515, 0.285, 0.045
SHOULDER, NECK, HEAD = 0.815, 0.86, 0.925
UPPER_ARM, FORE_ARM = 0.165, 0.150


@dataclass(frozen=True)
class Pose:
    """One moment of a person.

    Angles are in radians. ``stride`` is the amplitude of the legs' swing, ``phase`` the moment in
    the step, ``gesture`` one of ``swing``, ``phone``, ``hip``, ``pocket`` for the free arm.
    """

    yaw: float
    stride: float
    phase: float
    gesture: str
    free_side: int
    lean: float


def sample_pose(rng: np.random.Generator) -> Pose:
    """Draws a pose; front, back and side views are equally likely, two in three people walk."""
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
        pose: the moment to show.
        breadth: half distance of the shoulder joints.
        pitch: how far the camera looks down, radians.
    """

    def __init__(self, pose: Pose, breadth: float, pitch: float) -> None:
        self._cos, self._sin = math.cos(pose.yaw), math.sin(pose.yaw)
        self._pitch = math.sin(pitch)
        self.joints: dict[str, np.ndarray] = {}
        legs = {side: self._leg(pose, side, 0.42 * breadth) for side in (1, -1)}
        drop = min(float(leg["heel"][2]) for leg in legs.values())
        self.drop = drop
        self.lean = pose.lean
        for side, leg in legs.items():
            for name, point in leg.items():
                self._put(f"{name}{side:+d}", point - (0, 0, drop))
            for name, point in self._arm(pose, side, breadth).items():
                self._put(f"{name}{side:+d}", point - (0, 0, drop))

    def _put(self, name: str, point: np.ndarray) -> None:
        self.joints[name] = self.project(*point)

    def project(self, a: float, b: float, y: float) -> np.ndarray:
        """Body coordinates to (u, v, d)."""
        u = a * self._cos + b * self._sin
        d = -a * self._sin + b * self._cos
        return np.array((u, y - d * self._pitch, d))

    def body(self, a: float, b: float, y: float) -> np.ndarray:
        """Like :meth:`project` for a point of trunk or head, which lean and rise with the step."""
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
        # the foot tips with the shank when it is behind, and lies flat in front
        tip = min(0.0, lower) * 0.9
        forward = np.array((side * 0.16, math.cos(tip), math.sin(tip)))
        heel = ankle - 0.02 * forward - (0.0, 0.0, 0.026)
        toe = heel + 0.115 * forward
        heel = heel if heel[2] <= toe[2] else np.array((*heel[:2], heel[2]))
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
