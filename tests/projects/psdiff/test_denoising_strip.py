# SPDX-License-Identifier: Apache-2.0
"""Images of a denoising: what is drawn where, at every number of panels."""

import io

import numpy as np
import pytest
from PIL import Image

from person_search.vis.drawing import QUERY_COLOR, to_image
from psdiff.denoising_strip import (
    BEST_COLOR,
    HEAD,
    PERSON_COLOR,
    DenoisingPanel,
    StripQuery,
    _draw_panel,
    _label_places,
    _overlap,
    draw_denoising_frames,
    draw_denoising_strip,
    encode_animation,
)

SCENE = np.full((90, 120, 3), 200, np.uint8)
BOXES = np.array([[10, 20, 30, 70], [60, 20, 90, 80], [5, 5, 100, 85], [62, 22, 88, 78.0]])
SCORES = np.array([0.9, 0.8, 0.1, 0.7])
NOISE = DenoisingPanel("Start", BOXES)
STEP = DenoisingPanel("Step 1", BOXES, SCORES, np.array([0.2, 0.6, 0.9, 0.1]), [0, 1])
QUERY = StripQuery(SCENE, (10, 20, 30, 70))


def has_color(image, color):
    return bool((np.asarray(image) == color).all(axis=-1).any())


def test_the_best_match_is_a_detection():
    assert STEP.best == 1, "row 2 is more similar, but no detection"
    assert NOISE.best is None
    assert DenoisingPanel("", BOXES, SCORES, None, [0]).best is None
    assert DenoisingPanel("", BOXES, SCORES, SCORES, []).best is None


def test_notes_say_what_is_seen():
    assert NOISE.note == "4 random boxes"
    assert STEP.note == "2 detections, best match R 0.60"
    assert DenoisingPanel("", BOXES, SCORES, None, [0]).note == "1 detection"
    assert DenoisingPanel("", BOXES, SCORES, SCORES, []).note == "no detection"


def test_boxes_scale_with_the_scene_and_have_their_colors():
    card = _draw_panel(to_image(SCENE), STEP, (480, 360))
    pixels = np.asarray(card.crop((0, HEAD, 480, HEAD + 360)))
    # Row 0 is a person at four times its place, row 1 the best match: left edges below the labels.
    assert tuple(pixels[250, 41]) == PERSON_COLOR
    assert tuple(pixels[250, 242]) == BEST_COLOR
    assert not has_color(_draw_panel(to_image(SCENE), NOISE, (480, 360)), PERSON_COLOR)


def test_strong_proposals_are_less_faint():
    def change(score):
        panel = DenoisingPanel("", BOXES[:1], np.array([score]), None, [])
        pixels = np.asarray(_draw_panel(to_image(SCENE), panel, (120, 90)), int)
        return abs(pixels[HEAD + 45, 10] - 200).sum()

    assert 0 < change(0.0) < change(0.5) < change(1.0)


@pytest.mark.parametrize(("count", "shape"), [(1, (1, 1)), (3, (1, 3)), (5, (2, 3)), (9, (3, 3))])
def test_layout(count, shape):
    panels = [NOISE, *[STEP] * (count - 1)]
    alone = draw_denoising_strip(SCENE, [STEP], panel_width=240)
    sheet = draw_denoising_strip(SCENE, panels, panel_width=240)
    panel = (240, HEAD + 180 + 30)
    assert sheet.width - alone.width == (shape[1] - 1) * (panel[0] + 12)
    assert abs(sheet.height - alone.height - (shape[0] - 1) * (panel[1] + 12)) <= 60  # legend


def test_a_query_is_shown_beside_the_panels():
    plain = draw_denoising_strip(SCENE, [NOISE, STEP], title="T", caption="some words " * 40)
    sheet = draw_denoising_strip(SCENE, [NOISE, STEP], QUERY)
    assert has_color(sheet, QUERY_COLOR) and not has_color(plain, QUERY_COLOR)
    assert sheet.width > plain.width


def test_labels_lie_in_the_image():
    for box in BOXES - [[20, 30, 20, 30]]:
        for left, top, right, bottom in _label_places(box, (50, 30), (120, 90)):
            assert 0 <= left and 0 <= top and right < 120 and bottom < 90
    assert _overlap((0, 0, 5, 5), (5, 5, 9, 9)) and not _overlap((0, 0, 5, 5), (6, 0, 9, 9))


@pytest.mark.parametrize("query", [None, QUERY])
@pytest.mark.parametrize("shape", [(90, 120, 3), (200, 40, 3)])
def test_the_animation_has_a_frame_per_panel(query, shape):
    scene = np.full(shape, 200, np.uint8)
    frames = draw_denoising_frames(scene, [NOISE, STEP, STEP], query)
    assert len(frames) == 3 and len({frame.size for frame in frames}) == 1
    with Image.open(io.BytesIO(encode_animation([*frames[:2], frames[0]]))) as animation:
        assert animation.format == "GIF" and animation.n_frames == 3
        assert animation.info["loop"] == 0
        durations = []
        for index in range(3):
            animation.seek(index)
            durations.append(animation.info["duration"])
    assert durations == [1400, 900, 3000]


def test_wrong_scenes_are_refused():
    with pytest.raises(ValueError, match="must be an RGB array"):
        draw_denoising_strip(SCENE[..., 0], [NOISE])
