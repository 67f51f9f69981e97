# SPDX-License-Identifier: Apache-2.0
"""Captions of crops of synthetic scenes, from the annotations of the generator.

A caption describes the clothes of some of the persons in the crop, in varying order, or is one word
that applies to the crop. Words therefore vary with the content, and the model has seen prompts of
one word, as DiffPS uses them.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from diffps.tiny import WORDS
from person_search.data.synthetic.looks import Look

PERSON = "person"
PARTS = ("head", "shirts", "pants", "shoes")
PART_SPANS = {
    "head": (0.0, 0.15),
    "shirts": (0.15, 0.5),
    "pants": (0.5, 0.93),
    "shoes": (0.93, 1.0),
}
"""Top and bottom of each part in the box of a person, as shares of the height of the box."""

PRIOR_WORDS = (*WORDS, "maroon", "olive", "teal", "navy", "beige", "blond", "bald")
"""Single-token words: all words of the captions."""

_COLOR_WORDS = {"sky blue": "light blue"}  # all others are used unchanged
_PLACE = "street"
_MIN_SHARE_OF_PERSON = 0.25
_MIN_SHARE_OF_PART = 0.6
_MIN_HEIGHT_OF_PART = 3.0  # in pixels


@dataclass(frozen=True)
class ScenePerson:
    """A person in a scene.

    Attributes:
        box: (x1, y1, x2, y2) in pixels of the scene.
        colors: Part -> color words.
    """

    box: tuple[float, float, float, float]
    colors: dict[str, str]

    def part_box(self, part: str) -> tuple[float, float, float, float]:
        """Returns the box of a part, by its usual share of the person's box."""
        x1, y1, x2, y2 = self.box
        top, bottom = PART_SPANS[part]
        return (x1, y1 + top * (y2 - y1), x2, y1 + bottom * (y2 - y1))


def part_colors(look: Look) -> dict[str, str]:
    """Returns color words of the parts of a person; those of the head name hat, hair or bald."""
    if look.hat != "none":
        head = look.hat_color
    else:
        head = "bald" if look.hair == "bald" else look.hair_color
    names = (head, look.top_color, look.bottom_color, look.shoe_color)
    return {p: _COLOR_WORDS.get(name, name) for p, name in zip(PARTS, names, strict=True)}


def visible_parts(
    persons: Sequence[ScenePerson], crop: tuple[float, float, float, float]
) -> list[tuple[str, ...]]:
    """Returns the visible parts of each person that is in a crop.

    A person is in the crop if a quarter of the box is, a part is visible if 60 % of its box is.
    """
    visible = []
    for person in persons:
        if _share_inside(person.box, crop) < _MIN_SHARE_OF_PERSON:
            continue
        boxes = {part: person.part_box(part) for part in PARTS}
        visible.append(
            tuple(
                part
                for part, box in boxes.items()
                if _share_inside(box, crop) >= _MIN_SHARE_OF_PART
                and box[3] - box[1] >= _MIN_HEIGHT_OF_PART
            )
        )
    return visible


def write_caption(
    persons: Sequence[ScenePerson],
    crop: tuple[float, float, float, float],
    rng: np.random.Generator,
    max_words: int,
    single_share: float = 0.4,
) -> str:
    """Draws a caption of a crop.

    Args:
        persons: All persons in the scene.
        crop: (x1, y1, x2, y2) in pixels of the scene.
        rng: Source of randomness.
        max_words: Maximum number of words; persons beyond are omitted.
        single_share: Share of captions of a single word.
    """
    seen = [p for p in persons if _share_inside(p.box, crop) >= _MIN_SHARE_OF_PERSON]
    parts = visible_parts(seen, crop)
    if rng.random() < single_share:
        return _single_word(parts, rng)
    if not seen:
        return _PLACE if rng.random() < 0.5 else f"a photo of the {_PLACE}"
    words: list[str] = []
    for index in rng.permutation(len(seen)):
        phrase = _phrase(seen[index], parts[index], rng)
        joint = ["and"] if words else []
        if len(words) + len(joint) + len(phrase) > max_words:
            break
        words += joint + phrase
    if len(words) + 3 <= max_words and rng.random() < 0.25:
        words += ["on", "the", _PLACE]
    return " ".join(words) or PERSON


def _single_word(parts: Sequence[tuple[str, ...]], rng: np.random.Generator) -> str:
    """Draws ``person`` for half of the crops with persons, otherwise a part or the place."""
    if not parts:
        return _PLACE
    if rng.random() < 0.5:
        return PERSON
    words = sorted({part for some in parts for part in some}) + [_PLACE]
    return words[int(rng.integers(len(words)))]


def _phrase(person: ScenePerson, parts: Sequence[str], rng: np.random.Generator) -> list[str]:
    """Draws the words for one person: "navy pants person", "person red shirts black head" ..."""
    count = int(rng.integers(len(parts) + 1))
    chosen = [parts[i] for i in rng.permutation(len(parts))[:count]]
    described = [word for part in chosen for word in (*person.colors[part].split(), part)]
    # the text encoder is causal: only a last "person" attends to the words of the clothes
    return [*described, PERSON] if rng.random() < 0.7 else [PERSON, *described]


def _share_inside(box: Sequence[float], crop: Sequence[float]) -> float:
    """Returns the share of a box that lies in a crop."""
    width = min(box[2], crop[2]) - max(box[0], crop[0])
    height = min(box[3], crop[3]) - max(box[1], crop[1])
    return max(0.0, width) * max(0.0, height) / ((box[2] - box[0]) * (box[3] - box[1]))
