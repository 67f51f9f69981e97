# SPDX-License-Identifier: Apache-2.0
"""Captions of crops."""

import dataclasses

import numpy as np
import pytest

from diffps.prior.captions import (
    PARTS,
    PRIOR_WORDS,
    ScenePerson,
    part_colors,
    visible_parts,
    write_caption,
)
from diffps.tiny import build_tokenizer
from person_search.data.synthetic.looks import (
    BOTTOM_COLORS,
    CLOTH_COLORS,
    HAIR_COLORS,
    sample_look,
)

COLORS = {"head": "blond", "shirts": "red", "pants": "light blue", "shoes": "white"}
MAN = ScenePerson((100.0, 0.0, 140.0, 100.0), COLORS)
EVERYTHING = (0.0, 0.0, 320.0, 256.0)


def captions(persons, crop=EVERYTHING, count=200, **kwargs):
    rng = np.random.default_rng(0)
    return [write_caption(persons, crop, rng, 30, **kwargs) for _ in range(count)]


def test_colors_of_parts():
    look = sample_look(np.random.default_rng(1))
    look = dataclasses.replace(
        look, top_color="sky blue", bottom_color="navy", shoe_color="brown", hat="none",
        hair="short", hair_color="dark brown",
    )  # fmt: skip
    assert part_colors(look) == {
        "head": "dark brown", "shirts": "light blue", "pants": "navy", "shoes": "brown"
    }  # fmt: skip
    assert part_colors(dataclasses.replace(look, hair="bald"))["head"] == "bald"
    hat = dataclasses.replace(look, hair="bald", hat="cap", hat_color="green")
    assert part_colors(hat)["head"] == "green"


def test_every_word_of_every_color_is_one_token():
    tokenizer = build_tokenizer(PRIOR_WORDS, 32)
    for name in {*CLOTH_COLORS, *BOTTOM_COLORS, *HAIR_COLORS, "bald"} - {"sky blue"}:
        count = len(name.split())
        assert len(tokenizer(name).input_ids) == count + 2, name


@pytest.mark.parametrize(
    ("crop", "parts"),
    [
        (EVERYTHING, [PARTS]),
        # to row 60: 60 % of the person; pants (50 to 93) only to 23 %
        ((0.0, 0.0, 320.0, 60.0), [("head", "shirts")]),
        # from row 35 on: shirts (15 to 50) only to 43 %
        ((0.0, 35.0, 320.0, 256.0), [("pants", "shoes")]),
        # columns 100 to 122 of 140: 55 % of all, enough for the person, for no part
        ((0.0, 0.0, 122.0, 256.0), [()]),
        # 20 % of the person
        ((0.0, 0.0, 108.0, 256.0), []),
        ((200.0, 0.0, 320.0, 256.0), []),
    ],
)
def test_parts_in_a_crop(crop, parts):
    assert visible_parts([MAN], crop) == parts


def test_small_parts_are_not_visible():
    small = ScenePerson((0.0, 0.0, 12.0, 30.0), COLORS)  # shoes: 2.1 pixels
    assert visible_parts([small], EVERYTHING) == [("head", "shirts", "pants")]


def test_captions_without_persons():
    words = {word for caption in captions([]) for word in caption.split()}
    assert words == {"street", "a", "photo", "of", "the"}
    assert {*captions([MAN], (200.0, 0.0, 320.0, 256.0))} == {*captions([])}


def test_single_words():
    found = captions([MAN], single_share=1.0)
    assert {*found} == {"person", "street", *PARTS}
    assert 0.4 < found.count("person") / len(found) < 0.6


def test_phrases_name_the_right_colors_and_both_orders_occur():
    found = captions([MAN], single_share=0.0)
    plain = [caption.removesuffix(" on the street") for caption in found]
    assert "person" in plain
    for caption in plain:
        assert caption.split().count("person") == 1
        for part in PARTS:
            if part in caption.split():
                assert f"{COLORS[part]} {part}" in caption
    firsts = sum(caption.startswith("person ") for caption in plain)
    lasts = sum(caption.endswith(" person") for caption in plain)
    assert firsts > 20 and lasts > 2 * firsts


def test_captions_are_limited_in_length():
    crowd = [ScenePerson((40.0 * i, 0.0, 40.0 * i + 30, 100.0), COLORS) for i in range(8)]
    rng = np.random.default_rng(0)
    for limit in (1, 5, 12):
        for _ in range(50):
            caption = write_caption(crowd, EVERYTHING, rng, limit, single_share=0.0)
            assert 0 < len(caption.split()) <= limit


def test_same_generator_same_captions():
    assert captions([MAN]) == captions([MAN])
