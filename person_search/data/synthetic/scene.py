# SPDX-License-Identifier: Apache-2.0
"""Draws one image with its persons and measures their boxes.

An image depends only on the options and on its own :class:`SceneSpec`, never on another image.
Any number of processes therefore writes the same bytes.

Shape shorthand: H, W pixels of the image; h, w of one drawn figure.
"""

import math
from dataclasses import dataclass

import cv2
import numpy as np

from person_search.synthetic_config import random_stream

from .camera import Camera, build_camera, expose
from .looks import Look
from .person import draw_person, sample_pose
from .props import PROPS, draw_prop

_MOST_HIDDEN = 0.70
"""Persons with a larger hidden share get no box; nor do tiny ones."""

_HARD_HIDDEN = 0.40
_ATTEMPTS = 6
_ASPECT = 0.40
"""Typical ratio of width to height of a walking person, for estimates before drawing."""

_MEAN_STATURE = 1.72
"""Meters."""


@dataclass(frozen=True)
class SceneSpec:
    """Content of one image.

    Attributes:
        file_name: Name of the image file, with extension.
        seed: Root seed.
        stream: Random stream of the data set; cameras and images branch off it.
        index: Number of the image in this stream.
        camera: Number of the camera.
        size: Width and height in pixels.
        difficulty: 0 to 1.
        people: Person id (or -1) and look of each person; an id may occur twice.
        at_left_border: Moves the first person across the left border.
    """

    file_name: str
    seed: int
    stream: int
    index: int
    camera: int
    size: tuple[int, int]
    difficulty: float
    people: tuple[tuple[int, Look], ...]
    at_left_border: bool = False


@dataclass(frozen=True)
class DrawnPerson:
    """A person with a box.

    Attributes:
        person_id: Person id or -1.
        box: (x1, y1, x2, y2) in whole pixels, right and lower end exclusive, clipped to the image.
        hidden: Share of the figure that other objects or the border hide.
        is_hard: Whether the person is hard to recognize: small or mostly hidden.
    """

    person_id: int
    box: tuple[int, int, int, int]
    hidden: float
    is_hard: bool


@dataclass(frozen=True)
class _Sprite:
    """A drawn figure and the position of its top left pixel; owner -1 marks furniture."""

    color: np.ndarray
    alpha: np.ndarray
    left: int
    top: int
    foot: float
    owner: int

    def clip(self, size: tuple[int, int]) -> tuple[slice, slice, slice, slice] | None:
        """Returns slices (image rows, columns, own rows, columns) of the part inside the image."""
        height, width = self.alpha.shape
        x1, y1 = max(self.left, 0), max(self.top, 0)
        x2, y2 = min(self.left + width, size[0]), min(self.top + height, size[1])
        if x1 >= x2 or y1 >= y2:
            return None
        own_rows = slice(y1 - self.top, y2 - self.top)
        own_cols = slice(x1 - self.left, x2 - self.left)
        return slice(y1, y2), slice(x1, x2), own_rows, own_cols


def render_scene(spec: SceneSpec) -> tuple[np.ndarray, list[DrawnPerson]]:
    """Draws an image.

    If too much of a person with an identity is hidden, the image is drawn again with more space;
    the last attempt places all persons side by side.

    Args:
        spec: Content of the image.

    Returns:
        Image (H, W, 3) uint8 BGR and the persons with a box, in the order of ``spec.people``.
    """
    camera = build_camera(spec.seed, spec.stream, spec.camera, spec.size, spec.difficulty)
    wanted = sum(person_id >= 0 for person_id, _ in spec.people)
    for attempt in range(_ATTEMPTS):
        rng = random_stream(spec.seed, spec.stream, 1_000_000 + spec.index, attempt)
        shift = camera.shift(rng)
        sprites = _stage(spec, camera, shift, rng, attempt)
        frame, people = _compose(spec, camera, shift, rng, sprites)
        shown = sum(person.person_id >= 0 for person in people)
        if shown == wanted and (people or not spec.people):
            break
    return expose(camera, rng, frame, spec.difficulty), people


def _stage(
    spec: SceneSpec, camera: Camera, shift: tuple[int, int], rng: np.random.Generator, attempt: int
) -> list[_Sprite]:
    """Places and draws persons and furniture; returns them sorted from far to near."""
    statures = [look.stature for _, look in spec.people]
    horizon, eye = camera.view.horizon - shift[1], camera.view.eye
    if attempt < _ATTEMPTS - 1:
        crowding = 1.0 - attempt / (_ATTEMPTS - 1)
        spots = place_people(rng, statures, spec.size, horizon, eye, spec.difficulty, crowding)
    else:
        spots = line_up(rng, statures, spec.size, horizon, eye)
    if spec.at_left_border:
        spots[0] = Spot(0.06 * statures[0] * spots[0].scale, spots[0].y, spots[0].scale)
    sprites = []
    for owner, ((_, look), spot) in enumerate(zip(spec.people, spots, strict=True)):
        fold_x, fold_y = (int(v) for v in rng.integers(0, 512, 2))
        color, alpha, foot = draw_person(
            look, sample_pose(rng), look.stature * spot.scale, camera.light, camera.pitch,
            camera.ambient, (fold_x, fold_y),
        )  # fmt: skip
        color *= math.exp(rng.normal(0, 0.03 + 0.06 * spec.difficulty))
        left, top = round(spot.x) - foot[0], round(spot.y) - foot[1]
        sprites.append(_Sprite(color, alpha, left, top, spot.y, owner))
    if attempt < 2:
        sprites += _furniture(spec, camera, horizon, rng)
    return sorted(sprites, key=lambda sprite: sprite.foot)


def _furniture(
    spec: SceneSpec, camera: Camera, horizon: float, rng: np.random.Generator
) -> list[_Sprite]:
    sprites = []
    for _ in range(int(rng.poisson(0.5 + 0.9 * spec.difficulty))):
        kind = str(rng.choice(tuple(PROPS)))
        scale = rng.uniform(0.16, 0.5) * spec.size[1] / 1.72
        y = horizon + camera.view.eye * scale
        if y > 1.05 * spec.size[1]:
            continue
        color, alpha, foot = draw_prop(kind, rng, scale, camera.light, camera.ambient)
        x = rng.uniform(0, spec.size[0])
        sprites.append(_Sprite(color, alpha, round(x) - foot[0], round(y) - foot[1], y, -1))
    return sprites


def _compose(
    spec: SceneSpec,
    camera: Camera,
    shift: tuple[int, int],
    rng: np.random.Generator,
    sprites: list[_Sprite],
) -> tuple[np.ndarray, list[DrawnPerson]]:
    """Draws the sprites over the place, far to near, and measures the visible persons."""
    width, height = spec.size
    frame = camera.place[shift[1] : shift[1] + height, shift[0] : shift[0] + width]
    frame = frame.astype(np.float32)
    _cast_shadows(frame, camera, sprites)
    owner = np.full((height, width), -1, np.int16)
    for number, sprite in enumerate(sprites):
        parts = sprite.clip(spec.size)
        if parts is None:
            continue
        rows, cols, own_rows, own_cols = parts
        alpha = sprite.alpha[own_rows, own_cols]
        frame[rows, cols] *= 1.0 - alpha[..., None]
        frame[rows, cols] += sprite.color[own_rows, own_cols]
        owner[rows, cols][alpha > 0.5] = number
    if camera.outdoors and rng.random() < 0.35:
        _building_shadow(frame, rng)
    measured = (
        (sprite.owner, _measure(spec, sprite, number, owner))
        for number, sprite in enumerate(sprites)
        if sprite.owner >= 0
    )
    found = {index: person for index, person in measured if person is not None}
    return frame, [found[index] for index in sorted(found)]


def _measure(
    spec: SceneSpec, sprite: _Sprite, number: int, owner: np.ndarray
) -> DrawnPerson | None:
    """Measures box and hidden share of a figure; None if it is mostly hidden or tiny."""
    parts = sprite.clip(spec.size)
    if parts is None:
        return None
    rows, cols, own_rows, own_cols = parts
    solid = sprite.alpha > 0.5
    inside = solid[own_rows, own_cols]
    visible = int((owner[rows, cols] == number).sum())
    hidden = 1.0 - visible / max(1, int(solid.sum()))
    x, y, w, h = cv2.boundingRect(inside.astype(np.uint8))
    # some readers drop boxes below 10 x 20 pixels and then miss the box of an identity
    least = (min(10, spec.size[0] // 32), min(20, spec.size[1] // 12))
    if hidden > _MOST_HIDDEN or w < least[0] or h < least[1]:
        return None
    left, top = cols.start + x, rows.start + y
    person_id, _ = spec.people[sprite.owner]
    hard = hidden > _HARD_HIDDEN or h < 0.2 * spec.size[1]
    return DrawnPerson(person_id, (left, top, left + w, top + h), round(hidden, 4), bool(hard))


def _cast_shadows(frame: np.ndarray, camera: Camera, sprites: list[_Sprite]) -> None:
    """Darkens the ground under the sprites: soft contact shadows, and silhouettes in the sun."""
    height, width = frame.shape[:2]
    half = (width // 2, height // 2)
    dark = np.zeros((half[1], half[0]), np.float32)
    sunny = camera.outdoors and camera.ambient < 0.24
    lean, squash = -0.75 * camera.light, 0.22
    for sprite in sprites:
        h, w = sprite.alpha.shape
        x, y = sprite.left + w / 2, min(sprite.foot, sprite.top + h)
        center = (round(x / 2), round(y / 2))
        reach = (max(1, round(0.2 * w)), max(1, round(0.022 * h)))
        cv2.ellipse(dark, center, reach, 0, 0, 360, 0.62, -1)
        if sunny:
            # maps pixel (u, v) to the ground: up becomes sideways and a little back
            up = 0.5 * np.array([[1.0, -lean * 0.5], [0.0, squash]])
            matrix = np.array(
                [
                    [up[0, 0], up[0, 1], 0.5 * sprite.left + 0.5 * lean * 0.5 * (h - 1)],
                    [0.0, up[1, 1], 0.5 * (sprite.top + h - 1) - up[1, 1] * (h - 1)],
                ]
            )
            cast = cv2.warpAffine(sprite.alpha, matrix, half, flags=cv2.INTER_LINEAR)
            np.maximum(dark, 0.5 * cast, out=dark)
    dark = cv2.GaussianBlur(dark, (0, 0), max(0.8, 0.004 * height))
    dark = cv2.resize(dark, (width, height), interpolation=cv2.INTER_LINEAR)
    frame *= 1.0 - dark[..., None]


def _building_shadow(frame: np.ndarray, rng: np.random.Generator) -> None:
    """Draws a large shadow with a soft edge over one side of the image, persons included."""
    height, width = frame.shape[:2]
    edge = rng.uniform(0.25, 0.75) * width
    slant = rng.uniform(-0.4, 0.4)
    sign = 1.0 if rng.random() < 0.5 else -1.0
    cols = np.arange(width, dtype=np.float32)[None, :]
    rows = np.arange(height, dtype=np.float32)[:, None]
    distance = sign * (cols - edge - slant * (rows - 0.5 * height))
    depth = rng.uniform(0.25, 0.45)
    frame *= (1.0 - depth / (1.0 + np.exp(-distance / (0.012 * width))))[..., None]


@dataclass(frozen=True)
class Spot:
    """Position of a person: ground point (x, y) and scale in pixels per meter."""

    x: float
    y: float
    scale: float

    def guess_box(self, stature: float) -> tuple[float, float, float, float]:
        """Estimates the box (x1, y1, x2, y2) of a person of a stature in meters."""
        high = stature * self.scale
        return (self.x - 0.5 * _ASPECT * high, self.y - high, self.x + 0.5 * _ASPECT * high, self.y)


def _hidden_share(index: int, boxes: list, feet: list[float], size: tuple[int, int]) -> float:
    """Returns an upper bound of the share of a box that nearer boxes and the border hide."""
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
    """Samples a spot with persons about ``high`` pixels tall; ``edge`` allows cut persons."""
    width, height = size
    inset = 0.16 * high * (-0.4 if edge else 1.0)
    x = rng.uniform(inset, max(inset + 1, width - inset))
    y = min(horizon + eye * high / _MEAN_STATURE, (1.12 if edge else 0.99) * height)
    return Spot(x, y, (y - horizon) / eye)


def _spot_beside(
    rng: np.random.Generator, other: Spot, horizon: float, eye: float, size: tuple[int, int]
) -> Spot:
    """Samples a spot so close to another one that one person hides a part of the other."""
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
    """Chooses a spot for each person, in order.

    Args:
        rng: Random stream of the image.
        statures: Body heights in meters.
        size: Width and height of the image.
        horizon: Row of the horizon.
        eye: Height of the camera in meters.
        difficulty: 0 to 1; at higher values persons are farther away and overlap more.
        crowding: Factor on the allowed overlap; 0 asks for free-standing persons.

    Returns:
        One spot per person; the best of 40 draws if none keeps to the allowed overlap.
    """
    height = size[1]
    allowed = crowding * (0.40 + 0.30 * difficulty)
    company = crowding * (0.30 + 0.40 * difficulty)
    smallest = (0.30 - 0.12 * difficulty) * height
    largest = 0.80 * height
    # a crowd does not fit in front: the more persons, the smaller on average
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
    """Places all persons side by side at one depth, so that none is hidden."""
    width, height = size
    column = width / len(statures)
    scale = min(column / (0.62 * max(statures)), 0.55 * height / max(statures))
    y = min(horizon + eye * scale, 0.98 * height)
    order = rng.permutation(len(statures))
    return [Spot((float(order[i]) + 0.5) * column, y, scale) for i in range(len(statures))]
