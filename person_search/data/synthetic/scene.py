# SPDX-License-Identifier: Apache-2.0
"""Draws one image with its people and measures their boxes.

An image depends on the options and on its own :class:`SceneSpec` only, never on another
image; so any number of processes writes the same bytes.

Shape shorthand: H, W pixels of the image; h, w of one drawn figure.
"""

import math
from dataclasses import dataclass

import cv2
import numpy as np

from .camera import Camera, build_camera, expose
from .layout import Spot, line_up, place_people
from .looks import Look
from .people import draw_person
from .pose import sample_pose
from .props import PROPS, draw_prop

_MOST_HIDDEN = 0.70
"""People hidden more than this are not boxed; nor are tiny ones."""

_HARD_HIDDEN = 0.40
_ATTEMPTS = 6


@dataclass(frozen=True)
class SceneSpec:
    """What an image shall show.

    Args:
        file_name: name of the image, with extension.
        seed: root seed.
        stream: random stream of the data set; cameras and images branch off it.
        index: number of the image in that stream.
        camera: number of the camera.
        size: (width, height) in pixels.
        difficulty: 0..1.
        people: (person id or -1, look) of everyone, maybe of nobody; the same id twice is allowed.
        at_left_border: push the first person across the left border.
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
    """A boxed person.

    ``box`` is (x1, y1, x2, y2) in whole pixels, right and lower end exclusive, clipped to the
    image; ``hidden`` the share of the figure that other things or the border cover.
    """

    person_id: int
    box: tuple[int, int, int, int]
    hidden: float
    is_hard: bool


@dataclass(frozen=True)
class _Sprite:
    """A drawn figure and where its top left pixel goes; owner -1 marks furniture."""

    color: np.ndarray
    alpha: np.ndarray
    left: int
    top: int
    foot: float
    owner: int

    def clip(self, size: tuple[int, int]) -> tuple[slice, slice, slice, slice] | None:
        """Slices (image rows, columns, own rows, columns) of the part inside the image."""
        height, width = self.alpha.shape
        x1, y1 = max(self.left, 0), max(self.top, 0)
        x2, y2 = min(self.left + width, size[0]), min(self.top + height, size[1])
        if x1 >= x2 or y1 >= y2:
            return None
        own_rows, own_cols = (slice(y1 - self.top, y2 - self.top),
                              slice(x1 - self.left, x2 - self.left))  # fmt: skip
        return slice(y1, y2), slice(x1, x2), own_rows, own_cols


def _generator(spec: SceneSpec, attempt: int) -> np.random.Generator:
    key = (spec.stream, 1_000_000 + spec.index, attempt)
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(spec.seed, spawn_key=key)))


def render_scene(spec: SceneSpec) -> tuple[np.ndarray, list[DrawnPerson]]:
    """Draws an image.

    A draw that hides a person with an identity too much is thrown away and repeated with more
    room; the last attempt lines everybody up.

    Returns:
        (H, W, 3) uint8 BGR and the boxed people in the order of ``spec.people``.
    """
    camera = build_camera(spec.seed, spec.stream, spec.camera, spec.size, spec.difficulty)
    wanted = sum(person_id >= 0 for person_id, _ in spec.people)
    for attempt in range(_ATTEMPTS):
        rng = _generator(spec, attempt)
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
    """Places and draws people and furniture, sorted from far to near."""
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
    """Lays the sprites over the place, far to near, and measures who stays visible."""
    width, height = spec.size
    frame = camera.place[shift[1] : shift[1] + height, shift[0] : shift[0] + width]
    frame = frame.astype(np.float32)
    _cast_shadows(frame, camera, rng, sprites)
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
    """Box and hidden share of a figure; None where it is hidden too much or tiny."""
    parts = sprite.clip(spec.size)
    if parts is None:
        return None
    rows, cols, own_rows, own_cols = parts
    solid = sprite.alpha > 0.5
    inside = solid[own_rows, own_cols]
    visible = int((owner[rows, cols] == number).sum())
    hidden = 1.0 - visible / max(1, int(solid.sum()))
    x, y, w, h = cv2.boundingRect(inside.astype(np.uint8))
    # some readers drop boxes below 10 x 20 pixels and then miss an identity's box
    least = (min(10, spec.size[0] // 32), min(20, spec.size[1] // 12))
    if hidden > _MOST_HIDDEN or w < least[0] or h < least[1]:
        return None
    left, top = cols.start + x, rows.start + y
    person_id, _ = spec.people[sprite.owner]
    hard = hidden > _HARD_HIDDEN or h < 0.2 * spec.size[1]
    return DrawnPerson(person_id, (left, top, left + w, top + h), round(hidden, 4), bool(hard))


def _cast_shadows(
    frame: np.ndarray, camera: Camera, rng: np.random.Generator, sprites: list[_Sprite]
) -> None:
    """Darkens the ground under the figures: soft contact everywhere, silhouettes in the sun."""
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
            # own pixel (u, v) goes to the ground: up becomes sideways and a little back
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
    """A large soft-edged shadow over one side of the image, people included."""
    height, width = frame.shape[:2]
    edge = rng.uniform(0.25, 0.75) * width
    slant = rng.uniform(-0.4, 0.4)
    sign = 1.0 if rng.random() < 0.5 else -1.0
    cols = np.arange(width, dtype=np.float32)[None, :]
    rows = np.arange(height, dtype=np.float32)[:, None]
    distance = sign * (cols - edge - slant * (rows - 0.5 * height))
    depth = rng.uniform(0.25, 0.45)
    frame *= (1.0 - depth / (1.0 + np.exp(-distance / (0.012 * width))))[..., None]
