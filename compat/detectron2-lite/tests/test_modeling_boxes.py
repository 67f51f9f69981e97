# SPDX-License-Identifier: Apache-2.0
"""Box codes, matching, sampling, anchors, pooling and proposals on cases checked by hand."""

import math

import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator, build_anchor_generator
from detectron2.modeling.box_regression import Box2BoxTransform, _dense_box_regression_loss
from detectron2.modeling.matcher import Matcher
from detectron2.modeling.poolers import (
    ROIPooler,
    assign_boxes_to_levels,
    convert_boxes_to_pooler_format,
)
from detectron2.modeling.postprocessing import detector_postprocess
from detectron2.modeling.proposal_generator.proposal_utils import (
    add_ground_truth_to_proposals,
    find_top_rpn_proposals,
)
from detectron2.modeling.sampling import subsample_labels
from detectron2.structures import Boxes, Instances
from hypothesis import given, settings
from hypothesis import strategies as st

side = st.floats(min_value=1.0, max_value=500.0)
position = st.floats(min_value=-500.0, max_value=500.0)
box = st.tuples(position, position, side, side).map(
    lambda b: [b[0], b[1], b[0] + b[2], b[1] + b[3]]
)


def boxes(*rows):
    return torch.tensor(rows, dtype=torch.float32).reshape(-1, 4)


class TestBoxCode:
    def test_deltas_of_a_shifted_and_doubled_box(self):
        code = Box2BoxTransform(weights=(1.0, 2.0, 3.0, 4.0))
        # Center (5, 10) -> (10, 15), width 10 -> 20, height 20 -> 10.
        deltas = code.get_deltas(boxes([0, 0, 10, 20]), boxes([0, 10, 20, 20]))
        expected = [0.5, 2 * 0.25, 3 * math.log(2), -4 * math.log(2)]
        assert torch.allclose(deltas, torch.tensor([expected]))

    @settings(max_examples=50, deadline=None)
    @given(src=box, dst=box)
    def test_decoding_undoes_encoding(self, src, dst):
        code = Box2BoxTransform(weights=(10.0, 10.0, 5.0, 5.0), scale_clamp=math.log(1000.0))
        src, dst = boxes(src), boxes(dst)
        decoded = code.apply_deltas(code.get_deltas(src, dst), src)
        assert torch.allclose(decoded, dst, rtol=1e-3, atol=0.05)

    def test_size_is_clamped(self):
        code = Box2BoxTransform(weights=(1.0, 1.0, 1.0, 1.0))
        decoded = code.apply_deltas(torch.tensor([[0.0, 0, 50, 0]]), boxes([0, 0, 16, 16]))
        assert decoded[0, 2] - decoded[0, 0] == pytest.approx(1000.0, rel=1e-5)

    def test_several_deltas_per_box_and_half_precision(self):
        code = Box2BoxTransform(weights=(1.0, 1.0, 1.0, 1.0))
        deltas = torch.tensor([[0.0, 0, 0, 0, 1, 0, 0, 0]], dtype=torch.float16)
        decoded = code.apply_deltas(deltas, boxes([0, 0, 4, 4]))
        assert decoded.dtype == torch.float32
        assert decoded.tolist() == [[0, 0, 4, 4, 4, 0, 8, 4]]

    def test_no_boxes(self):
        code = Box2BoxTransform(weights=(1.0, 1.0, 1.0, 1.0))
        assert code.apply_deltas(torch.zeros(0, 8), boxes()).shape == (0, 8)
        assert code.get_deltas(boxes(), boxes()).shape == (0, 4)

    def test_source_without_width_is_refused(self):
        code = Box2BoxTransform(weights=(1.0, 1.0, 1.0, 1.0))
        with pytest.raises(AssertionError, match="not valid"):
            code.get_deltas(boxes([3, 0, 3, 5]), boxes([0, 0, 1, 1]))

    def test_loss_is_l1_of_the_foreground(self):
        code = Box2BoxTransform(weights=(1.0, 1.0, 1.0, 1.0))
        anchor = boxes([0, 0, 10, 10], [0, 0, 10, 10])
        gt = boxes([5, 0, 15, 10], [0, 0, 99, 99])
        loss = _dense_box_regression_loss(
            [anchor], code, [torch.zeros(1, 2, 4)], [gt], torch.tensor([[True, False]])
        )
        assert loss.item() == pytest.approx(0.5)

    def test_unknown_loss_names_the_known_ones(self):
        code = Box2BoxTransform(weights=(1.0, 1.0, 1.0, 1.0))
        mask = torch.tensor([[True]])
        args = ([boxes([0, 0, 1, 1])], code, [torch.zeros(1, 1, 4)], [boxes([0, 0, 1, 1])], mask)
        with pytest.raises(ValueError, match="'l7'"):
            _dense_box_regression_loss(*args, "l7")


class TestMatcher:
    quality = torch.tensor([[0.2, 0.5, 0.7, 0.0], [0.1, 0.6, 0.8, 0.0]])

    def test_bands(self):
        matches, labels = Matcher([0.3, 0.7], [0, -1, 1])(self.quality)
        assert matches.tolist() == [0, 1, 1, 0]
        assert labels.tolist() == [0, -1, 1, 0]
        assert labels.dtype == torch.int8

    def test_low_quality_matches_include_ties(self):
        quality = torch.tensor([[0.2, 0.2, 0.1]])
        matcher = Matcher([0.5], [0, 1], allow_low_quality_matches=True)
        assert matcher(quality)[1].tolist() == [1, 1, 0]

    def test_without_ground_truth_all_get_the_lowest_band(self):
        matches, labels = Matcher([0.3, 0.7], [0, -1, 1])(torch.zeros(0, 3))
        assert matches.tolist() == [0, 0, 0] and labels.tolist() == [0, 0, 0]

    @pytest.mark.parametrize(
        "thresholds, labels", [([0.7, 0.3], [0, -1, 1]), ([0.5], [0]), ([0.5], [0, 2])]
    )
    def test_senseless_bands_are_refused(self, thresholds, labels):
        with pytest.raises(AssertionError):
            Matcher(thresholds, labels)


@settings(max_examples=50, deadline=None)
@given(
    labels=st.lists(st.integers(-1, 3), max_size=40),
    num=st.integers(0, 30),
    fraction=st.floats(0.0, 1.0),
)
def test_samples_are_of_their_kind_and_as_many_as_possible(labels, num, fraction):
    labels = torch.tensor(labels, dtype=torch.int64)
    fg, bg = subsample_labels(labels, num, fraction, 3)
    num_fg = int(((labels >= 0) & (labels < 3)).sum())
    assert len(fg) == min(int(num * fraction), num_fg)
    assert len(bg) == min(num - len(fg), int((labels == 3).sum()))
    assert ((labels[fg] >= 0) & (labels[fg] < 3)).all() and (labels[bg] == 3).all()
    assert len(set(fg.tolist())) == len(fg) and len(set(bg.tolist())) == len(bg)


class TestAnchors:
    def test_order_and_ratio(self):
        generator = DefaultAnchorGenerator(sizes=[4], aspect_ratios=[1, 4], strides=[8], offset=0.0)
        (level,) = generator([torch.zeros(1, 1, 2, 2)])
        # Height over width is the aspect ratio: 4 means 2 wide, 8 high.
        assert level.tensor[0].tolist() == [-2, -2, 2, 2]
        assert level.tensor[1].tolist() == [-1, -4, 1, 4]
        assert level.tensor[2].tolist() == [6, -2, 10, 2]  # next column
        assert level.tensor[4].tolist() == [-2, 6, 2, 10]  # next row

    def test_not_part_of_checkpoints(self):
        generator = DefaultAnchorGenerator(sizes=[4], aspect_ratios=[1], strides=[8])
        assert generator.state_dict() == {}

    def test_one_list_serves_all_levels(self):
        generator = DefaultAnchorGenerator(sizes=[4, 8], aspect_ratios=[1], strides=[8, 16])
        assert generator.num_anchors == [2, 2]

    def test_wrong_number_of_levels(self):
        with pytest.raises(AssertionError, match="sizes"):
            DefaultAnchorGenerator(sizes=[[4], [8]], aspect_ratios=[1], strides=[8, 16, 32])

    def test_from_config(self):
        from detectron2.config import get_cfg

        cfg = get_cfg()
        generator = build_anchor_generator(cfg, [ShapeSpec(channels=1, stride=16)])
        assert generator.num_anchors == [15] and generator.offset == 0.0


class TestPooler:
    def test_level_doubles_with_the_side(self):
        sides = [56, 112, 224, 447, 448, 3000, 0]
        b = Boxes(boxes(*[[0, 0, s, s] for s in sides]))
        assert assign_boxes_to_levels([b], 2, 5, 224, 4).tolist() == [0, 1, 2, 2, 3, 3, 0]

    def test_rows_start_with_the_image(self):
        rows = convert_boxes_to_pooler_format([Boxes(boxes([1, 2, 3, 4])), Boxes(boxes())])
        assert rows.tolist() == [[0, 1, 2, 3, 4]]
        rows = convert_boxes_to_pooler_format([Boxes(boxes()), Boxes(boxes([1, 2, 3, 4]))])
        assert rows.tolist() == [[1, 1, 2, 3, 4]]

    def test_each_box_reads_its_level_and_image(self):
        fine = torch.tensor([1.0, 2.0]).view(2, 1, 1, 1).expand(2, 1, 32, 32)
        coarse = fine[:, :, ::2, ::2] * 10
        pooler = ROIPooler(2, (1 / 4, 1 / 8), 2, "ROIAlignV2", canonical_box_size=64)
        out = pooler(
            [fine, coarse],
            [
                Boxes(boxes([20, 20, 30, 30], [10, 10, 90, 90])),
                Boxes(boxes([10, 10, 90, 90], [20, 20, 30, 30])),
            ],
        )
        # canonical level 4 at 64 pixels: 10 pixels -> level 2, 80 pixels -> clamped to 3.
        assert out.mean(dim=(1, 2, 3)).tolist() == [1, 10, 20, 2]

    def test_empty(self):
        pooler = ROIPooler(7, (1 / 4, 1 / 8), 0, "ROIAlign")
        maps = [torch.zeros(2, 3, 8, 8), torch.zeros(2, 3, 4, 4)]
        assert pooler(maps, [Boxes(boxes())] * 2).shape == (0, 3, 7, 7)

    def test_unknown_type(self):
        with pytest.raises(ValueError, match="(?i)unknown pooler type: Mean"):
            ROIPooler(7, (1 / 4,), 0, "Mean")

    def test_scales_must_be_a_pyramid(self):
        with pytest.raises(AssertionError):
            ROIPooler(7, (1 / 4, 1 / 16), 0, "ROIAlign")
        with pytest.raises(AssertionError):
            ROIPooler(7, (1 / 5,), 0, "ROIAlign")


class TestProposals:
    def test_best_first_clipped_without_duplicates(self):
        level0 = boxes([0, 0, 10, 10], [0, 0, 10, 11], [90, 90, 200, 200])[None]
        level1 = boxes([0, 0, 10, 10], [300, 300, 400, 400])[None]
        logits = [torch.tensor([[0.1, 0.9, 0.5]]), torch.tensor([[0.4, 5.0]])]
        (found,) = find_top_rpn_proposals(
            [level0, level1], logits, [(100, 120)], 0.7, 3, 10, 0.0, True
        )
        # Suppressed within its level, kept across levels; empty after clipping: gone.
        assert found.proposal_boxes.tensor.tolist() == [
            [0, 0, 10, 11],
            [90, 90, 120, 100],
            [0, 0, 10, 10],
        ]
        assert found.objectness_logits.tolist() == pytest.approx([0.9, 0.5, 0.4])

    def test_topk_before_and_after(self):
        b = boxes(*[[20 * i, 0, 20 * i + 10, 10] for i in range(5)])[None]
        logits = [torch.arange(5.0)[None]]
        (found,) = find_top_rpn_proposals([b], logits, [(100, 100)], 0.7, 4, 2, 0.0, True)
        assert found.objectness_logits.tolist() == [4, 3]

    def test_not_finite(self):
        b, logits = boxes([0, 0, 5, 5], [0, 0, 9, 9])[None], torch.tensor([[float("nan"), 1.0]])
        args = ([b], [logits], [(20, 20)], 0.7, 5, 5, 0.0)
        with pytest.raises(FloatingPointError, match="diverged"):
            find_top_rpn_proposals(*args, True)
        (found,) = find_top_rpn_proposals(*args, False)
        assert found.objectness_logits.tolist() == [1.0]

    def test_ground_truth_comes_last_and_outranks(self):
        proposals = Instances(
            (9, 9),
            proposal_boxes=Boxes(boxes([0, 0, 1, 1])),
            objectness_logits=torch.tensor([2.0]),
        )
        (joined,) = add_ground_truth_to_proposals([Boxes(boxes([0, 0, 4, 4]))], [proposals])
        assert joined.proposal_boxes.tensor.tolist() == [[0, 0, 1, 1], [0, 0, 4, 4]]
        assert joined.objectness_logits[1] > 20
        assert len(proposals) == 1

    def test_one_ground_truth_per_image(self):
        with pytest.raises(ValueError, match="same length"):
            add_ground_truth_to_proposals([], [Instances((9, 9))])


class TestPostprocess:
    def test_scales_clips_and_drops_empty(self):
        instances = Instances(
            (10, 20),
            pred_boxes=Boxes(boxes([1, 1, 4, 4], [15, 5, 40, 40], [30, 1, 40, 2])),
            scores=torch.tensor([0.3, 0.2, 0.1]),
        )
        out = detector_postprocess(instances, 20, 60)
        assert out.image_size == (20, 60)
        assert out.pred_boxes.tensor.tolist() == [[3, 2, 12, 8], [45, 10, 60, 20]]
        assert out.scores.tolist() == pytest.approx([0.3, 0.2])

    def test_needs_boxes(self):
        with pytest.raises((ValueError, AssertionError), match="boxes"):
            detector_postprocess(Instances((5, 5), scores=torch.ones(1)), 10, 10)
