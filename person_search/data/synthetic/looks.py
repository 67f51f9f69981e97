# SPDX-License-Identifier: Apache-2.0
"""Appearance of a person: its attributes, the distance of two looks, and a caption."""

import dataclasses
from dataclasses import dataclass

import numpy as np

# Names and RGB. Fabric and hair colors are jittered a little per identity.
CLOTH_COLORS = {
    "white": (236, 236, 232),
    "light gray": (176, 178, 182),
    "gray": (112, 114, 120),
    "black": (36, 36, 42),
    "red": (200, 40, 44),
    "maroon": (112, 28, 44),
    "orange": (234, 126, 36),
    "yellow": (236, 202, 58),
    "olive": (106, 108, 50),
    "green": (44, 142, 70),
    "teal": (28, 136, 144),
    "sky blue": (120, 184, 232),
    "blue": (40, 86, 196),
    "navy": (30, 40, 88),
    "purple": (116, 62, 150),
    "pink": (238, 144, 178),
    "beige": (212, 192, 154),
    "brown": (110, 74, 48),
}
BOTTOM_COLORS = ("black", "navy", "blue", "sky blue", "gray", "beige", "brown", "olive", "white",
                 "maroon", "light gray")  # fmt: skip
SHOE_COLORS = ("black", "white", "brown", "red", "gray", "blue", "beige")
BAG_COLORS = ("black", "brown", "red", "navy", "green", "yellow", "pink", "gray")
HAT_COLORS = ("black", "white", "red", "navy", "green", "yellow")
HAIR_COLORS = {
    "black": (30, 26, 26),
    "dark brown": (62, 42, 30),
    "brown": (104, 70, 42),
    "blond": (206, 168, 96),
    "red": (146, 66, 32),
    "gray": (158, 156, 154),
}
SKIN_COLORS = ((250, 218, 194), (238, 196, 164), (218, 170, 132), (184, 130, 92), (132, 88, 60),
               (96, 62, 44))  # fmt: skip

PATTERNS = ("plain", "stripes", "vertical stripes", "checks", "dots", "two-tone", "chest band")
TOPS = ("t-shirt", "sweater", "open jacket", "coat")
BOTTOMS = ("trousers", "shorts", "skirt")
HAIR_STYLES = ("short", "long", "bun", "ponytail", "curly", "bald")
HATS = ("none", "cap", "beanie", "brimmed hat")
BAGS = ("none", "backpack", "handbag", "shoulder bag")


@dataclass(frozen=True)
class Look:
    """Attributes of an identity that are the same in all images.

    ``stature`` is in meters, ``build`` is a factor on the widths (1 = average) and ``skin`` an
    index into ``SKIN_COLORS``. ``tint`` shifts the named color of each garment by gray levels.
    """

    top: str
    top_color: str
    pattern: str
    second_color: str
    bottom: str
    bottom_color: str
    shoe_color: str
    hair: str
    hair_color: str
    hat: str
    hat_color: str
    bag: str
    bag_color: str
    beard: bool
    skin: int
    stature: float
    build: float
    tint: tuple[int, ...]

    def describe(self) -> str:
        """Returns the look as one English phrase, for example for a caption."""
        top = f"{self.top_color} {self.top}"
        if self.top == "open jacket":
            top += f" over {self.second_color}"
        elif self.pattern != "plain":
            top = f"{self.top_color} and {self.second_color} {self.top} ({self.pattern})"
        words = [top, f"{self.bottom_color} {self.bottom}", f"{self.shoe_color} shoes"]
        bald = self.hair == "bald"
        words.append("bald head" if bald else f"{self.hair} {self.hair_color} hair")
        if self.beard:
            words.append("beard")
        if self.hat != "none":
            words.append(f"{self.hat_color} {self.hat}")
        if self.bag != "none":
            words.append(f"{self.bag_color} {self.bag}")
        frame = "slim" if self.build < 0.93 else "heavy" if self.build > 1.12 else "average"
        size = "short" if self.stature < 1.63 else "tall" if self.stature > 1.80 else "medium"
        return f"{size}, {frame} person: " + ", ".join(words)


def _pick(rng: np.random.Generator, options: tuple, weights: tuple | None = None):
    if weights is None:
        return options[int(rng.integers(len(options)))]
    return options[int(rng.choice(len(options), p=np.asarray(weights) / np.sum(weights)))]


def sample_look(rng: np.random.Generator) -> Look:
    """Samples a look; the second color always contrasts with the garment."""
    cloth = tuple(CLOTH_COLORS)
    top = _pick(rng, TOPS, (4, 3, 2, 1.5))
    top_color = _pick(rng, cloth)
    contrast = tuple(name for name in cloth if _color_gap(name, top_color) > 150)
    hair = _pick(rng, HAIR_STYLES, (4, 3, 1.5, 1.5, 1.2, 0.8))
    male_hair = hair in ("short", "bald", "curly")
    return Look(
        top=top,
        top_color=top_color,
        pattern="plain" if top == "open jacket" else _pick(rng, PATTERNS, (4, 2, 1, 1.5, 1, 2, 1)),
        second_color=_pick(rng, contrast),
        bottom=_pick(rng, BOTTOMS, (5, 1.5, 0.6 if male_hair else 2.5)),
        bottom_color=_pick(rng, BOTTOM_COLORS),
        shoe_color=_pick(rng, SHOE_COLORS),
        hair=hair,
        hair_color=_pick(rng, tuple(HAIR_COLORS), (4, 3, 3, 2.5, 1.5, 1)),
        hat=_pick(rng, HATS, (7, 1, 1, 0.6)),
        hat_color=_pick(rng, HAT_COLORS),
        bag=_pick(rng, BAGS, (4, 2.5, 1.5, 1.5)),
        bag_color=_pick(rng, BAG_COLORS),
        beard=bool(male_hair and rng.random() < 0.3),
        skin=int(rng.integers(len(SKIN_COLORS))),
        stature=float(np.round(np.clip(rng.normal(1.72, 0.09), 1.50, 1.95), 3)),
        build=float(np.round(np.clip(rng.normal(1.0, 0.11), 0.82, 1.30), 3)),
        tint=tuple(int(v) for v in rng.integers(-10, 11, size=6)),
    )


def _color_gap(first: str, second: str) -> int:
    return sum(abs(a - b) for a, b in zip(CLOTH_COLORS[first], CLOTH_COLORS[second], strict=True))


def look_distance(a: Look, b: Look) -> int:
    """Number of attributes that differ and can be seen, from 0 (twins) to 7."""
    pattern_a = "open" if a.top == "open jacket" else a.pattern
    pattern_b = "open" if b.top == "open jacket" else b.pattern
    plain = pattern_a == pattern_b == "plain"
    return sum(
        (
            a.top_color != b.top_color,
            pattern_a != pattern_b or (not plain and a.second_color != b.second_color),
            a.bottom_color != b.bottom_color,
            a.bottom != b.bottom or (a.top == "coat") != (b.top == "coat"),
            (a.bag, a.bag != "none" and a.bag_color) != (b.bag, b.bag != "none" and b.bag_color),
            (a.hat, a.hat != "none" and a.hat_color) != (b.hat, b.hat != "none" and b.hat_color),
            a.hair != b.hair or (a.hair != "bald" and a.hair_color != b.hair_color),
        )
    )


def alter_look(rng: np.random.Generator, look: Look, changes: int) -> Look:
    """Returns a copy of a look with exactly ``changes`` (1 to 4) different visible attributes."""
    fresh = look
    for _ in range(200):
        other = sample_look(rng)
        fields = (("top_color",), ("bottom_color",), ("bag", "bag_color"), ("hair", "hair_color"))
        chosen = rng.choice(len(fields), size=changes, replace=False)
        names = [name for index in chosen for name in fields[index]]
        fresh = dataclasses.replace(look, **{name: getattr(other, name) for name in names})
        readable = _color_gap(fresh.top_color, fresh.second_color) > 150
        if look_distance(look, fresh) == changes and readable:
            break
    return fresh


def sample_looks(
    rng: np.random.Generator, count: int, alike_share: float, taken: tuple[Look, ...] = ()
) -> tuple[list[Look], list[int | None]]:
    """Samples the looks of ``count`` identities.

    Identities that are not look-alikes differ from each other and from ``taken`` in at least
    three visible attributes, as far as 60 draws find such a look.

    Args:
        rng: Random stream.
        count: Number of identities.
        alike_share: Share of the identities that copy another one but for 1 or 2 attributes.
        taken: Looks of other identities.

    Returns:
        The looks, and for each identity the index of the one that it copies, or None.
    """
    copies = round(alike_share * count) if count > 1 else 0
    copies = min(copies, count - 1)
    looks: list[Look] = []
    for _ in range(count - copies):
        best_gap = -1
        for _ in range(60):
            look = sample_look(rng)
            gap = min((look_distance(look, other) for other in (*taken, *looks)), default=7)
            if gap > best_gap:
                best, best_gap = look, gap
            if gap >= 3:
                break
        looks.append(best)
    sources: list[int | None] = [None] * len(looks)
    for _ in range(copies):
        source = int(rng.integers(count - copies))
        looks.append(alter_look(rng, looks[source], int(rng.integers(1, 3))))
        sources.append(source)
    order = rng.permutation(count)
    place = {int(old): new for new, old in enumerate(order)}
    shuffled = [None if sources[i] is None else place[sources[i]] for i in order]
    return [looks[i] for i in order], shuffled
