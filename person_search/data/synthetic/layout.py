# SPDX-License-Identifier: Apache-2.0
"""Where people stand: depth, scale and how much they may cover each other."""

import math
from dataclasses import dataclass

import numpy as np

_ASPECT = 0.40
"""Typical width of a walking person over the height, for guesses before drawing."""

_MEAN_STATURE = 1.72
"""Meters."""


@dataclass(frozen=True)
class Spot:
    """A place to stand: ground point (x, y) and scale in pixels per meter."""

    x: float
    y: float
    scale: float

    def guess_box(self, stature: float) -> tuple[float, float, float, float]:
        """Expected (x1, y1, x2, y2) of a person of that stature in meters."""
        high = stature * self.scale
        return (self.x - 0.5 * _ASPECT * high, self.y - high, self.x + 0.5 * _ASPECT * high, self.y)


def _hidden_share(index: int, boxes: list, feet: list[float], size: tuple[int, int]) -> float:
    """Upper bound on the share of a box that nearer boxes and the image's border hide."""
    x1, y1, x2, y2 = boxes[index]
    area = (x2 - x1) * (y2 - y1)
    inside = max(0.0, min(x2, size[0]) - max(x1, 0)) * max(0.0, min(y2, size[1]) - max(y1, 0))
    covered = 0.0
    for other, (a1, b1, a2, b2) in enumerate(boxes):
        if other != index and feet[other] > feet[index]:
            covered += max(0.0, min(x2, a2) - max(x1, a1)) * max(0.0, min(y2, b2) - max(y1, b1))
    return max(covered / area, 1.0 - inside / area)


def _random_spot(
    rng: np.random.Generator,
    high: float,
    size: tuple[int, int],
    horizon: float,
    eye: float,
    edge: bool,
) -> Spot:
    """A spot where people are about ``high`` pixels tall; ``edge`` allows the border to cut."""
    width, height = size
    inset = 0.16 * high * (-0.4 if edge else 1.0)
    x = rng.uniform(inset, max(inset + 1, width - inset))
    y = min(horizon + eye * high / _MEAN_STATURE, (1.12 if edge else 0.99) * height)
    return Spot(x, y, (y - horizon) / eye)


def _spot_beside(
    rng: np.random.Generator, other: Spot, horizon: float, eye: float, size: tuple[int, int]
) -> Spot:
    """A spot so close to another one that one person covers a part of the other."""
    shift = rng.uniform(0.2, 0.42) * (1.0 if rng.random() < 0.5 else -1.0)
    scale = other.scale * rng.uniform(0.8, 1.2)
    y = min(horizon + eye * scale, 0.99 * size[1])
    x = float(np.clip(other.x + shift * _MEAN_STATURE * scale, 0, size[0]))
    return Spot(x, y, (y - horizon) / eye)


def place_people(
    rng: np.random.Generator,
    statures: list[float],
    size: tuple[int, int],
    horizon: float,
    eye: float,
    difficulty: float,
    crowding: float = 1.0,
) -> list[Spot]:
    """Chooses a spot for everyone, the first in the list first.

    Args:
        rng: stream of this image.
        statures: body heights in meters.
        size: (width, height) of the image.
        horizon: row of the horizon.
        eye: camera height in meters.
        difficulty: 0..1; higher lets people stand farther off and cover each other more.
        crowding: factor on the cover that is allowed; 0 asks for free-standing people.

    Returns:
        One spot per person; the best of 40 draws where none keeps to the allowed cover.
    """
    height = size[1]
    allowed = crowding * (0.40 + 0.30 * difficulty)
    company = crowding * (0.30 + 0.40 * difficulty)
    smallest = (0.30 - 0.12 * difficulty) * height
    largest = 0.80 * height
    # a crowd cannot be all in front: the more people, the smaller on average
    largest = max(1.3 * smallest, largest * min(1.0, 2.6 / math.sqrt(len(statures) + 2.0)))
    spots: list[Spot] = []
    boxes: list[tuple[float, float, float, float]] = []
    for stature in statures:
        best_score = math.inf
        for _ in range(40):
            high = math.exp(rng.uniform(math.log(smallest), math.log(largest)))
            edge = rng.random() < 0.12 * crowding
            spot = _random_spot(rng, high, size, horizon, eye, edge)
            if spots and rng.random() < company:
                spot = _spot_beside(rng, spots[int(rng.integers(len(spots)))], horizon, eye, size)
            trial = [*boxes, spot.guess_box(stature)]
            feet = [s.y for s in (*spots, spot)]
            score = max(_hidden_share(i, trial, feet, size) for i in range(len(trial)))
            if score < best_score:
                best, best_score = spot, score
            if score <= allowed:
                break
        spots.append(best)
        boxes.append(best.guess_box(stature))
    return spots


def line_up(
    rng: np.random.Generator,
    statures: list[float],
    size: tuple[int, int],
    horizon: float,
    eye: float,
) -> list[Spot]:
    """Puts everyone side by side at one depth so that nobody is covered; the last resort."""
    width, height = size
    column = width / len(statures)
    scale = min(column / (0.62 * max(statures)), 0.55 * height / max(statures))
    y = min(horizon + eye * scale, 0.98 * height)
    order = rng.permutation(len(statures))
    return [Spot((float(order[i]) + 0.5) * column, y, scale) for i in range(len(statures))]
