# SPDX-License-Identifier: Apache-2.0
"""Captions of crops of synthetic scenes, from what the generator knows of them.

A caption says of some of the people in the crop what they wear, in an order that varies, or is one
word that is true of the crop. Words therefore vary with the content, and a prompt of one word, as
DiffPS gives, is nothing new to the model.
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
"""Where each part lies in the box of a person, as shares of its height from the top."""

PRIOR_WORDS = (*WORDS, "maroon", "olive", "teal", "navy", "beige", "blond", "bald")
"""Words that get a token of their own: all that captions are made of."""

_COLOR_WORDS = {"sky blue": "light blue"}  # all others are words as they are
_PLACE = "street"
_LEAST_OF_PERSON = 0.25
_LEAST_OF_PART = 0.6
_LEAST_SIDE = 3.0  # pixels, below which a part is not worth a word


@dataclass(frozen=True)
class Figure:
    """A person in a scene: what is there to be said, and where.

    ``box`` is (x1, y1, x2, y2) in pixels of the scene.
    """

    box: tuple[float, float, float, float]
    colors: dict[str, str]
    """Part -> color words."""

    def part_box(self, part: str) -> tuple[float, float, float, float]:
        """Where a part is, by its usual share of the box."""
        x1, y1, x2, y2 = self.box
        top, bottom = PART_SPANS[part]
        return (x1, y1 + top * (y2 - y1), x2, y1 + bottom * (y2 - y1))


def part_colors(look: Look) -> dict[str, str]:
    """Color words of the four parts of a person; those of the head tell hat, hair or baldness."""
    if look.hat != "none":
        head = look.hat_color
    else:
        head = "bald" if look.hair == "bald" else look.hair_color
    names = (head, look.top_color, look.bottom_color, look.shoe_color)
    return {p: _COLOR_WORDS.get(name, name) for p, name in zip(PARTS, names, strict=True)}


def visible_parts(
    figures: Sequence[Figure], crop: tuple[float, float, float, float]
) -> list[tuple[str, ...]]:
    """Parts of each person that are in a crop, one tuple per person who is.

    A person is in the crop with a quarter of the box, a part with 60 % of its own.
    """
    people = []
    for figure in figures:
        if _share_inside(figure.box, crop) < _LEAST_OF_PERSON:
            continue
        boxes = {part: figure.part_box(part) for part in PARTS}
        people.append(
            tuple(
                part
                for part, box in boxes.items()
                if _share_inside(box, crop) >= _LEAST_OF_PART and box[3] - box[1] >= _LEAST_SIDE
            )
        )
    return people


def write_caption(
    figures: Sequence[Figure],
    crop: tuple[float, float, float, float],
    rng: np.random.Generator,
    max_words: int,
    single_share: float = 0.4,
) -> str:
    """Draws one of the captions that are true of a crop.

    Args:
        figures: everybody in the scene.
        crop: (x1, y1, x2, y2) in pixels of the scene.
        max_words: people are left out from there on.
        single_share: share of captions of a single word.
    """
    seen = [f for f in figures if _share_inside(f.box, crop) >= _LEAST_OF_PERSON]
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
    """``person`` in half of the crops with people, else a part or the place."""
    if not parts:
        return _PLACE
    if rng.random() < 0.5:
        return PERSON
    words = sorted({part for some in parts for part in some}) + [_PLACE]
    return words[int(rng.integers(len(words)))]


def _phrase(figure: Figure, parts: Sequence[str], rng: np.random.Generator) -> list[str]:
    """Words for one person: "navy pants person", "person red shirts black head" ..."""
    count = int(rng.integers(len(parts) + 1))
    chosen = [parts[i] for i in rng.permutation(len(parts))[:count]]
    described = [word for part in chosen for word in (*figure.colors[part].split(), part)]
    # the text encoder looks back only: a last "person" knows what the person wears
    return [*described, PERSON] if rng.random() < 0.7 else [PERSON, *described]


def _share_inside(box: Sequence[float], crop: Sequence[float]) -> float:
    """Share of a box that lies in a crop."""
    width = min(box[2], crop[2]) - max(box[0], crop[0])
    height = min(box[3], crop[3]) - max(box[1], crop[1])
    return max(0.0, width) * max(0.0, height) / ((box[2] - box[0]) * (box[3] - box[1]))
