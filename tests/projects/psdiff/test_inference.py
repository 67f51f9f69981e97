# SPDX-License-Identifier: Apache-2.0
"""What may change at run time: steps, sampler, renewal, ensemble, source of the noise."""

import copy

import pytest
import torch
from detectron2.structures import Boxes, Instances
from psdiff_tiny import EMBED_DIM, image_input, tiny_cfg, tiny_model

from psdiff.inference_settings import InferenceSettings, image_seed, image_seeds
from psdiff.sampler import SAMPLERS

N = 12


@pytest.fixture(scope="module")
def plain_model():
    """Built once; its settings must not be changed."""
    return tiny_model().eval()


@pytest.fixture
def model(plain_model):
    """A model whose settings a test may change."""
    return copy.deepcopy(plain_model)


def instances_of(model, item, **kwargs):
    return model.inference([item], do_postprocess=False, **kwargs)[0]


def assert_same(ours, theirs, tolerance=0.0):
    """Equal detections, in the same order."""
    assert len(ours) == len(theirs)
    for a, b in (
        (ours.pred_boxes.tensor, theirs.pred_boxes.tensor),
        (ours.scores, theirs.scores),
        (ours.reid_feats, theirs.reid_feats),
    ):
        torch.testing.assert_close(a, b, atol=tolerance, rtol=tolerance)


def differ(ours, theirs):
    return len(ours) != len(theirs) or not torch.equal(ours.scores, theirs.scores)


def middle_score(model, item):
    """A threshold between the scores of the first step, not close to any of them."""
    first = model.denoising_steps([item])[0].output.logits.sigmoid().sort().values[0]
    gaps = first.diff()
    gaps[: N // 4] = gaps[-N // 4 :] = 0
    split = gaps.argmax()
    return ((first[split] + first[split + 1]) / 2).item()


# ---- at run time --------------------------------------------------------------------------------
@pytest.mark.parametrize("steps", [1, 2, 5, 12])
def test_steps_are_chosen_at_run_time(plain_model, model, steps):
    built = instances_of(tiny_model(STEPS=steps).eval(), image_input())
    assert_same(instances_of(plain_model, image_input(), steps=steps), built)
    model.set_inference(steps=steps)
    assert_same(instances_of(model, image_input()), built)
    assert len(model.denoising_steps([image_input()])) == steps


def test_a_setting_for_one_call_is_forgotten(model):
    before = instances_of(model, image_input())
    assert differ(instances_of(model, image_input(), steps=1, sampler="dpmsolver"), before)
    assert_same(instances_of(model, image_input()), before)
    assert model.settings == InferenceSettings.from_config(tiny_cfg())


def test_settings_reach_queries_and_given_boxes_too(plain_model):
    item = image_input(queries=2)
    given = Instances((48, 64), pred_boxes=item["queries"].pred_boxes)
    for changes in ({"steps": 1}, {"sampler": "dpmsolver++", "steps": 5}, {"eta": 1.0}):
        queries = plain_model.inference([item], **changes)[0]["query_feats"]
        (embedded,) = plain_model.inference([item], [given], do_postprocess=False, **changes)
        torch.testing.assert_close(embedded.reid_feats, queries)
        assert (queries - plain_model([item])[0]["query_feats"]).abs().max() > 1e-4


@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("name", SAMPLERS)
def test_one_step_is_the_same_with_every_sampler(plain_model, name, order):
    settings = {"steps": 1, "sampler": name, "solver_order": order}
    expected = instances_of(plain_model, image_input(), steps=1)
    assert_same(instances_of(plain_model, image_input(), **settings), expected)


def test_first_order_of_the_data_form_detects_like_ddim(plain_model):
    ours = instances_of(plain_model, image_input(), sampler="dpmsolver++", solver_order=1)
    assert_same(ours, instances_of(plain_model, image_input()), 1e-3)


@pytest.mark.parametrize("name", ["dpmsolver", "dpmsolver++"])
def test_solvers_of_higher_order_differ_from_ddim(plain_model, name):
    ours = instances_of(plain_model, image_input(), sampler=name, solver_order=2)
    assert differ(ours, instances_of(plain_model, image_input()))


@pytest.mark.parametrize("name", SAMPLERS)
def test_image_features_are_computed_once(model, name):
    calls = []
    model.backbone.register_forward_hook(lambda *_: calls.append(1))
    model.set_inference(steps=8, sampler=name, ensemble=True, renewal=True, query_draws=2)
    model.inference([image_input(i, queries=2) for i in range(3)], embed_detections=True)
    assert len(calls) == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": 0}, "MODEL.PSDIFF.STEPS is 0"),
        ({"steps": 1001}, "MODEL.PSDIFF.STEPS is 1001"),
        ({"sampler": "euler"}, "MODEL.PSDIFF.SAMPLER is 'euler'"),
        ({"solver_order": 4}, "MODEL.PSDIFF.SOLVER_ORDER is 4"),
        ({"eta": 2.0}, "MODEL.PSDIFF.ETA is 2.0"),
        ({"eta": 1.0, "sampler": "dpmsolver++"}, "MODEL.PSDIFF.ETA is 1.0, but the sampler"),
        ({"renewal_thresh": 1.5}, "MODEL.PSDIFF.RENEWAL_THRESH is 1.5"),
        ({"latency_budget_ms": -1.0}, "MODEL.PSDIFF.LATENCY_BUDGET_MS is -1.0"),
        ({"latency_budget_ms": float("inf")}, "MODEL.PSDIFF.LATENCY_BUDGET_MS is inf"),
        ({"query_draws": 0}, "MODEL.PSDIFF.QUERY_DRAWS is 0"),
    ],
)
def test_wrong_settings_name_their_key(plain_model, model, changes, message):
    from detectron2.modeling import build_model

    with pytest.raises(ValueError, match=message):  # before training, not at the first test
        build_model(tiny_cfg(**{name.upper(): value for name, value in changes.items()}))
    with pytest.raises(ValueError, match=message):
        model.set_inference(**changes)
    with pytest.raises(ValueError, match=message):
        plain_model.inference([image_input()], **changes)


def test_a_misspelt_setting_is_refused(model):
    with pytest.raises(
        ValueError, match="unknown inference setting 'step' .*; did you mean 'steps'?"
    ):
        model.set_inference(step=2)
    with pytest.raises(
        ValueError, match="unknown inference setting 'x' .*; available: .*'solver_order'"
    ):
        model.inference([image_input()], x=2)


# ---- noise --------------------------------------------------------------------------------------
def test_a_number_stands_for_another_seed(plain_model):
    item = image_input(3, queries=1)
    ours = plain_model.inference([item], generator=5)[0]
    theirs = tiny_model(SEED=5).eval()([item])[0]
    assert_same(ours["instances"], theirs["instances"])
    torch.testing.assert_close(ours["query_feats"], theirs["query_feats"])
    assert differ(ours["instances"], plain_model([item])[0]["instances"])


def test_a_generator_makes_the_noise_reproducible(plain_model):
    def two_calls(seed):
        generator = torch.Generator().manual_seed(seed)
        return [instances_of(plain_model, image_input(), generator=generator) for _ in range(2)]

    (first, second), again, other = two_calls(1), two_calls(1), two_calls(2)
    assert_same(first, again[0])
    assert_same(second, again[1])
    assert differ(first, second), "the generator has moved on"
    assert differ(first, other[0])
    assert differ(first, instances_of(plain_model, image_input()))


def test_seeds_of_a_batch():
    assert image_seeds([4, 9], 0) == [4, 9]
    assert image_seeds([4, 9], 2) == [image_seed(2, 4), image_seed(2, 9)]
    assert image_seeds([4, 9], 0, 2) == image_seeds([4, 9], 2)
    drawn = image_seeds([4, 4], 0, torch.Generator().manual_seed(0))
    assert drawn[0] != drawn[1] and all(0 <= seed < 2**63 for seed in drawn)


# ---- renewal and ensemble -----------------------------------------------------------------------
class _Recorder(torch.nn.Module):
    """The head, and everything that went into it."""

    def __init__(self, head):
        super().__init__()
        self.head, self.inputs, self.in_features = head, [], head.in_features

    def forward(self, features, boxes, reid_signal, t, dtype):
        self.inputs.append((boxes, reid_signal))
        return self.head(features, boxes, reid_signal, t, dtype)


@pytest.mark.parametrize("name", SAMPLERS)
def test_weak_proposals_are_replaced_box_and_embedding(model, name):
    thresh = middle_score(model, image_input(7))
    model.head = _Recorder(model.head)
    codec, size = model.codec, (48, 64)
    changes = {"steps": 2, "sampler": name, "renewal_thresh": thresh}
    kept = model.denoising_steps([image_input(7)], **changes)
    kept_reid = model.head.inputs[-1][1]
    steps = model.denoising_steps([image_input(7)], renewal=True, **changes)
    boxes, reid = model.head.inputs[-1]
    assert len(steps) == 2 and len(model.head.inputs) == 4, "nothing after the last step"

    weak = steps[0].output.logits[0].sigmoid() < thresh
    assert 0 < weak.sum() < N
    generator = torch.Generator().manual_seed(image_seed(0, 7))
    first, second = (torch.randn(N, 4 + EMBED_DIM, generator=generator) for _ in range(2))
    torch.testing.assert_close(steps[0].boxes[0], codec.decode_boxes(first[:, :4], size))
    torch.testing.assert_close(boxes[0, weak], codec.decode_boxes(second[weak, :4], size))
    torch.testing.assert_close(reid[0, weak], second[weak, 4:])
    torch.testing.assert_close(boxes[0, ~weak], kept[1].boxes[0, ~weak])
    torch.testing.assert_close(reid[0, ~weak], kept_reid[0, ~weak])


@pytest.mark.parametrize(
    ("name", "eta"), [*((name, 0.0) for name in SAMPLERS), ("ddim", 1.0)], ids=str
)
def test_a_batch_gives_what_single_images_give(plain_model, name, eta):
    inputs = [image_input(i, queries=i) for i in range(3)]
    changes = {
        "sampler": name,
        "solver_order": 3,
        "eta": eta,
        "steps": 5,
        "renewal": True,
        "renewal_thresh": middle_score(plain_model, inputs[1]),
        "ensemble": True,
    }
    together = plain_model.inference(inputs, **changes)
    for item, ours in zip(inputs, together, strict=True):
        (alone,) = plain_model.inference([item], **changes)
        assert_same(ours["instances"], alone["instances"], 1e-3)
        torch.testing.assert_close(ours["query_feats"], alone["query_feats"], atol=1e-5, rtol=0)
    backwards = plain_model.inference(inputs[::-1], **changes)
    assert_same(backwards[0]["instances"], together[2]["instances"], 1e-3)


def test_renewal_below_every_score_changes_nothing(plain_model):
    expected = instances_of(plain_model, image_input())
    ours = instances_of(plain_model, image_input(), renewal=True, renewal_thresh=0.0)
    assert_same(ours, expected)


@pytest.mark.parametrize("name", SAMPLERS)
def test_an_ensemble_is_the_union_of_all_steps(plain_model, name):
    changes = {"sampler": name, "nms_thresh": 1.0, "score_thresh": 0.0, "max_detections": 1000}
    item = image_input()
    ours = instances_of(plain_model, item, ensemble=True, **changes)
    steps = plain_model.denoising_steps([item], sampler=name)
    boxes, scores = [], []
    for step in steps:
        clipped = Boxes(step.output.boxes[0].clone())
        clipped.clip((48, 64))
        boxes.append(clipped.tensor[clipped.nonempty()])
        scores.append(step.output.logits[0].sigmoid()[clipped.nonempty()])
    order = torch.cat(scores).sort(descending=True).indices
    torch.testing.assert_close(ours.scores, torch.cat(scores)[order])
    torch.testing.assert_close(ours.pred_boxes.tensor, torch.cat(boxes)[order])


def test_all_switches_are_config_keys():
    cfg = tiny_cfg(
        STEPS=3, SAMPLER="dpmsolver++", SOLVER_ORDER=3, RENEWAL=True, RENEWAL_THRESH=0.3,
        ENSEMBLE=True, LATENCY_BUDGET_MS=12.5, SEED=4,
    )  # fmt: skip
    cfg.TEST.DETECTIONS_PER_IMAGE = 7
    settings = InferenceSettings.from_config(cfg)
    assert settings == InferenceSettings(
        steps=3, sampler="dpmsolver++", solver_order=3, renewal=True, renewal_thresh=0.3,
        ensemble=True, latency_budget_ms=12.5, seed=4, score_thresh=0.0, max_detections=7,
    )  # fmt: skip


def test_other_number_of_proposals_in_testing():
    """N_test is a setting of its own (Section V-B)."""
    model = tiny_model(NUM_PROPOSALS_TEST=7).eval()
    assert model.denoising_steps([image_input()])[0].boxes.shape == (1, 7, 4)
    model.set_inference(num_proposals_test=0)
    assert model.denoising_steps([image_input()])[0].boxes.shape == (1, model.num_proposals, 4)
