# SPDX-License-Identifier: Apache-2.0
"""Drawing of the synthetic data: looks, persons, images and the plan of a split."""

import dataclasses
import itertools

import numpy as np
import pytest

from person_search.data.synthetic import SyntheticConfig, scene
from person_search.data.synthetic.looks import (
    BAGS,
    BOTTOMS,
    HAIR_STYLES,
    HATS,
    PATTERNS,
    TOPS,
    alter_look,
    look_distance,
    sample_look,
    sample_looks,
)
from person_search.data.synthetic.person import Pose, draw_person, sample_pose
from person_search.data.synthetic.plan import make_casts, plan_split
from person_search.data.synthetic.props import PROPS, draw_prop
from person_search.data.synthetic.scene import SceneSpec, render_scene
from person_search.synthetic_config import DIFFICULTY_NAMES

STANDING = Pose(yaw=0.0, stride=0.05, phase=0.0, gesture="swing", free_side=1, lean=0.0)


def make_spec(look_count: int, seed: int = 0, **changes) -> SceneSpec:
    looks, _ = sample_looks(np.random.default_rng(seed), look_count, 0.0)
    people = tuple((pid, look) for pid, look in enumerate(looks))
    spec = SceneSpec("a.jpg", seed, 1, 0, 0, (160, 120), 0.3, people)
    return dataclasses.replace(spec, **changes)


def test_unrelated_looks_differ_in_three_attributes():
    looks, sources = sample_looks(np.random.default_rng(0), 40, 0.0)
    assert sources == [None] * 40
    assert min(look_distance(a, b) for a, b in itertools.combinations(looks, 2)) >= 3


def test_look_alikes_differ_in_one_or_two_attributes():
    looks, sources = sample_looks(np.random.default_rng(1), 40, 0.5)
    copies = [(i, source) for i, source in enumerate(sources) if source is not None]
    assert len(copies) == 20
    assert {look_distance(looks[i], looks[source]) for i, source in copies} == {1, 2}
    assert all(sources[source] is None for _, source in copies)


@pytest.mark.parametrize("changes", [1, 2, 4])
def test_alter_look_changes_so_many_attributes(changes):
    rng = np.random.default_rng(changes)
    look = sample_look(rng)
    assert look_distance(look, alter_look(rng, look, changes)) == changes


def test_attributes_that_cannot_be_seen_do_not_count():
    look = dataclasses.replace(sample_look(np.random.default_rng(0)), bag="none", hat="none")
    same = dataclasses.replace(look, bag_color="red", hat_color="yellow", beard=not look.beard)
    assert look_distance(look, same) == 0


def test_every_garment_can_be_drawn_and_named():
    look = sample_look(np.random.default_rng(0))
    values = {"top": TOPS, "bottom": BOTTOMS, "hair": HAIR_STYLES, "hat": HATS, "bag": BAGS,
              "pattern": PATTERNS}  # fmt: skip
    for field, options in values.items():
        for option, yaw in itertools.product(options, (0.0, 1.6, 3.1, -1.2)):
            worn = dataclasses.replace(look, **{field: option})
            pose = dataclasses.replace(STANDING, yaw=yaw)
            color, alpha, foot = draw_person(worn, pose, 60, -1.0, 0.1, 0.2, (3, 5))
            assert color.shape == (*alpha.shape, 3) and alpha.max() == pytest.approx(1.0)
            assert 0 <= foot[0] < alpha.shape[1] and 0.9 * alpha.shape[0] < foot[1]
            assert worn.describe()
            if option not in ("none", "plain") and field in ("bottom", "hat", "bag"):
                assert option in worn.describe()


@pytest.mark.parametrize("height", [20, 75.5, 260])
def test_a_person_has_the_requested_height(height):
    look = dataclasses.replace(sample_look(np.random.default_rng(2)), hat="none", hair="short")
    _, alpha, _ = draw_person(look, STANDING, height, 0.5, 0.0, 0.2, (0, 0))
    rows = np.flatnonzero((alpha > 0.5).any(axis=1))
    assert rows[-1] - rows[0] + 1 == pytest.approx(height, rel=0.06, abs=1.5)


def test_color_of_a_garment_is_seen():
    """The middle of the trunk of a red shirt is red, that of a blue one blue."""
    base = dataclasses.replace(
        sample_look(np.random.default_rng(3)), top="sweater", pattern="plain", bag="none"
    )
    means = {}
    for name in ("red", "blue"):
        look = dataclasses.replace(base, top_color=name)
        color, alpha, _ = draw_person(look, STANDING, 120, 1.0, 0.0, 0.3, (0, 0))
        h, w = alpha.shape
        means[name] = color[int(0.27 * h) : int(0.4 * h), w // 2 - 4 : w // 2 + 4].mean((0, 1))
    assert means["red"].argmax() == 2 and means["blue"].argmax() == 0  # BGR


@pytest.mark.parametrize("kind", PROPS)
def test_furniture_stands_on_its_foot(kind):
    color, alpha, foot = draw_prop(kind, np.random.default_rng(0), 40.0, 1.0, 0.2)
    assert color.shape == (*alpha.shape, 3) and alpha.max() == pytest.approx(1.0)
    assert foot[1] == pytest.approx(alpha.shape[0], abs=2)
    assert alpha.shape[0] == pytest.approx(40 * PROPS[kind], rel=0.12)


def test_poses_look_into_all_directions():
    rng = np.random.default_rng(0)
    yaws = np.array([sample_pose(rng).yaw for _ in range(200)])
    for share in ((np.cos(yaws) > 0.7).mean(), (np.cos(yaws) < -0.7).mean(),
                  (np.sin(yaws) > 0.7).mean(), (np.sin(yaws) < -0.7).mean()):  # fmt: skip
        assert 0.1 < share < 0.4


def test_scene_is_a_function_of_its_spec():
    first, second = render_scene(make_spec(3)), render_scene(make_spec(3))
    assert np.array_equal(first[0], second[0]) and first[1] == second[1]
    other = render_scene(make_spec(3, index=1))
    assert not np.array_equal(first[0], other[0])


@pytest.mark.parametrize("index", range(6))
def test_boxes_lie_inside_and_include_every_identity(index):
    spec = make_spec(5, index=index, camera=index, difficulty=1.0)
    image, people = render_scene(spec)
    assert image.shape == (120, 160, 3) and image.dtype == np.uint8
    assert [person.person_id for person in people] == [0, 1, 2, 3, 4]
    for person in people:
        x1, y1, x2, y2 = person.box
        assert 0 <= x1 < x2 <= 160 and 0 <= y1 < y2 <= 120
        assert 0 <= person.hidden <= 0.70


def test_person_lies_inside_the_box():
    """Other clothes on the same person change no pixel outside the box."""
    spec = make_spec(1, difficulty=0.0)
    with_person, people = render_scene(spec)
    x1, y1, x2, y2 = people[0].box
    other = make_spec(1, seed=0, difficulty=0.0)
    bright = dataclasses.replace(other.people[0][1], top_color="yellow", bottom_color="white")
    changed, _ = render_scene(dataclasses.replace(other, people=((0, bright),)))
    rows, cols = np.nonzero(np.abs(with_person.astype(int) - changed).max(axis=2) > 40)
    assert len(rows) > 20
    assert x1 <= cols.min() and cols.max() < x2 and y1 <= rows.min() and rows.max() < y2


def test_box_and_hidden_share_by_hand():
    """A block of 60 x 20 pixels, cut by the left border, its lower third covered."""
    spec = make_spec(1)
    alpha = np.zeros((70, 40), np.float32)
    alpha[5:65, 10:30] = 1.0
    alpha[4, 10:30] = 0.4  # a soft rim, less than half covered
    sprite = scene._Sprite(np.zeros((70, 40, 3), np.float32), alpha, -15, 20, 85.0, owner=0)
    owner = np.full((120, 160), -1, np.int16)
    owner[25:85, 0:15] = 0  # columns 10..15 of the block lie outside
    owner[65:85] = 1
    person = scene._measure(spec, sprite, 0, owner)
    assert person.box == (0, 25, 15, 85)
    assert person.hidden == pytest.approx(1 - 40 * 15 / 1200)
    assert person.is_hard
    owner[40:85] = 1  # 15 of 60 rows left
    assert scene._measure(spec, sprite, 0, owner) is None


def test_left_border_cuts_the_first_person():
    _, people = render_scene(make_spec(3, at_left_border=True))
    assert people[0].box[0] == 0


def test_a_crowd_is_never_lost():
    """Too many persons for the image: the last attempt places them side by side."""
    _, people = render_scene(make_spec(12, difficulty=1.0))
    assert [person.person_id for person in people] == list(range(12))


TINY = SyntheticConfig(train_images=12, test_images=12, train_ids=6, test_ids=5, people=(2, 4))


def plan(cfg: SyntheticConfig, cameras: list[int], twins: int = 0):
    cast, _ = make_casts(cfg, 1)
    return plan_split(cfg, np.random.default_rng(cfg.seed), cast, cameras, twins), cast


@pytest.mark.parametrize("seed", range(5))
def test_every_identity_appears_in_two_images_and_cameras(seed):
    cfg = dataclasses.replace(TINY, seed=seed)
    plans, _ = plan(cfg, [i % 3 for i in range(12)])
    for pid in range(cfg.train_ids):
        cameras = [p.camera for p in plans if pid in [who for who, _ in p.people]]
        assert len(cameras) >= 2 and len(set(cameras)) >= 2
    assert all(2 <= len(p.people) <= 4 for p in plans)
    assert sum(all(pid < 0 for pid, _ in p.people) for p in plans) == 1  # the quirk


def test_twins_stand_in_one_image_only_when_asked():
    doubled = [0, 0]
    for twins in (0, 1):
        plans, _ = plan(TINY, [0] * 12, twins)
        for p in plans:
            ids = [pid for pid, _ in p.people if pid >= 0]
            doubled[twins] += len(ids) - len(set(ids))
    assert doubled == [0, 1]


def test_too_many_identities_are_refused_with_the_counts():
    cfg = dataclasses.replace(TINY, train_ids=200, train_images=12)
    with pytest.raises(ValueError, match="200 identities need two appearances each"):
        plan(cfg, [0] * 12)


def test_passers_by_differ_from_every_identity():
    plans, cast = plan(dataclasses.replace(TINY, difficulty=1.0, labeled_share=0.3), [0] * 12)
    strangers = [look for p in plans for pid, look in p.people if pid < 0]
    assert strangers
    assert min(look_distance(s, look) for s in strangers for look in cast.looks) >= 1


def test_training_and_test_identities_differ():
    train, test = make_casts(TINY, 1)
    assert min(look_distance(a, b) for a in train.looks for b in test.looks) >= 1
    assert make_casts(TINY, 2)[0].looks != train.looks  # the second layout has its own identities


def test_difficulty_sets_the_look_alike_share():
    shares = []
    for difficulty in DIFFICULTY_NAMES.values():
        cfg = dataclasses.replace(TINY, difficulty=difficulty, train_ids=30)
        train, _ = make_casts(cfg, 1)
        shares.append(sum(source is not None for source in train.alike) / 30)
    assert shares[0] < shares[1] < shares[2]
    fixed = dataclasses.replace(TINY, difficulty=1.0, look_alike_share=0.0)
    assert make_casts(fixed, 1)[0].alike == [None] * 6


@pytest.mark.parametrize(
    "change",
    [
        {"difficulty": 1.5}, {"width": 10}, {"test_images": 1}, {"test_ids": 1},
        {"people": (5, 2)}, {"labeled_share": 0.0}, {"gallery_sizes": (1,)}, {"cameras": 0},
        {"look_alike_share": -0.1}, {"jpeg_quality": 0},
    ],
)  # fmt: skip
def test_bad_options_are_named_with_value_and_range(change):
    ((name, value),) = change.items()
    with pytest.raises(ValueError, match=f"{name} is .* must be") as caught:
        SyntheticConfig(**change)
    assert repr(value) in str(caught.value)
