# SPDX-License-Identifier: Apache-2.0
"""The whole of PSDiff at tiny size: what goes in, what comes out, and what must not change it."""

import pytest
import torch
from psdiff_tiny import EMBED_DIM, image_input, tiny_cfg, tiny_model, training_input

from person_search.testing import PersonSearchModelTests
from psdiff.head import HeadOutput
from psdiff.teachers.crops import crop_image
from psdiff.teachers.registry import build_teacher


class TestPSDiff(PersonSearchModelTests):
    """All that a person search model must keep to."""

    def build(self, seed):
        return tiny_model(seed)

    def training_input(self, persons):
        return training_input(persons)


TEACHER = {
    "TEACHER__BACKBONE": "build_slim_resnet_backbone",
    "TEACHER__BACKBONE_WEIGHTS": "",
    "TEACHER__CROP_SIZE": [32, 16],
}


class TestPSDiffWithTeacher(TestPSDiff):
    """The same with its teacher as a part of the model."""

    def build(self, seed):
        return tiny_model(seed, **TEACHER, FROZEN_SHARE=0.25)


def test_similarities_are_the_weighted_mean_of_student_and_teacher(tmp_path):
    """Student and teacher alone give the two similarities; the weights are read from their file."""
    torch.manual_seed(7)
    teacher = build_teacher(tiny_cfg(**TEACHER)).eval()
    teacher.save(str(tmp_path / "teacher.safetensors"))
    files = {**TEACHER, "TEACHER__WEIGHTS": str(tmp_path / "teacher.safetensors")}
    both = tiny_model(**files, FROZEN_SHARE=0.25, EMBED_DETECTIONS=True).eval()
    both.load_initial_weights()
    item = image_input(queries=2)
    student = tiny_model(EMBED_DETECTIONS=True).eval()
    student.load_state_dict(both.state_dict(), strict=False)

    found, alone = both([item])[0], student([item])[0]
    boxes = item["queries"].pred_boxes.tensor
    with torch.no_grad():
        taught = teacher(crop_image(item["image"], boxes.tolist(), teacher.crop_size))
    given = alone["query_feats"]
    assert found["query_feats"].shape == (2, both.embed_dim) == (2, 2 * EMBED_DIM)
    torch.testing.assert_close(
        found["query_feats"] @ found["query_feats"].T,
        0.75 * given @ given.T + 0.25 * taught @ taught.T,
    )
    torch.testing.assert_close(
        found["instances"].reid_feats[:, :EMBED_DIM], 0.75**0.5 * alone["instances"].reid_feats
    )


def test_a_teacher_in_the_model_does_not_learn_and_needs_weights():
    model = tiny_model(**TEACHER, FROZEN_SHARE=0.5).train()
    before = {name: x.clone() for name, x in model.teacher.state_dict().items()}
    sum(model([training_input(2)]).values()).backward()
    assert all(x.grad is None for x in model.teacher.parameters())
    assert all(torch.equal(x, before[name]) for name, x in model.teacher.state_dict().items())
    with pytest.raises(ValueError, match="FROZEN_SHARE is 0.5, but the teacher has no weights"):
        model.load_initial_weights()
    with pytest.raises(ValueError, match="FROZEN_SHARE is 1.5; it must be between 0 and 1"):
        tiny_model(**TEACHER, FROZEN_SHARE=1.5)


@pytest.mark.parametrize(
    "switches",
    [
        {"CDL__SA": False, "CDL__DC": False, "CDL__CA": False},
        {"CDL__SA_OVER": "cells"},
        {"CDL__PREDICTION": "cascaded"},
        {"CDL__PREDICTION": "parallel"},
        {"CDL__TOKEN_SCALE": "wiener"},
        {"PAD": "noise", "MATCHER": "hungarian", "EMBED_NORM": "rms"},
    ],
)
def test_every_switch_trains_and_tests(switches):
    model = tiny_model(**switches).train()
    sum(model([training_input(2)]).values()).backward()
    for name, parameter in model.named_parameters():
        # Without cross-attention and dynamic convolution nothing else is left unused.
        assert parameter.grad is not None, name
    output = model.eval()([image_input(queries=1)])[0]
    assert output["query_feats"].shape == (1, EMBED_DIM)


def test_more_draws_of_one_image_equal_more_copies_of_it():
    """With its noise fixed by the seed, one image drawn twice gives the loss of the image twice."""
    losses = []
    for draws, copies in ((2, 1), (1, 2)):
        model = tiny_model(TRAIN_DRAWS=draws).eval()  # eval: batch norm must not see the batch
        model.training = True
        torch.manual_seed(5)
        losses.append(model([training_input(2)] * copies))
    for name, value in losses[0].items():
        torch.testing.assert_close(value, losses[1][name])


def test_noise_depends_on_seed_and_image_only():
    inputs = [image_input(5)]
    first = tiny_model().eval()(inputs)[0]["instances"]
    torch.randn(7)  # the global generator must not matter
    again = tiny_model().eval()(inputs)[0]["instances"]
    other = tiny_model(SEED=1).eval()(inputs)[0]["instances"]
    torch.testing.assert_close(first.scores, again.scores)
    assert len(first) != len(other) or not torch.equal(first.scores, other.scores)


def test_query_embedding_does_not_depend_on_the_other_queries():
    model = tiny_model(QUERY_DRAWS=2, ETA=1.0).eval()
    two, one = image_input(queries=2), image_input(queries=1)
    both = model([two])[0]["query_feats"]
    alone = model([one])[0]["query_feats"]
    torch.testing.assert_close(both[:1], alone, atol=1e-5, rtol=0)


def test_detections_embedded_like_queries_have_the_embedding_of_a_query():
    model = tiny_model(EMBED_DETECTIONS=True).eval()
    (instances,) = model.inference([image_input()], do_postprocess=False)
    item = image_input()
    item["queries"] = instances
    torch.testing.assert_close(model([item])[0]["query_feats"], instances.reid_feats)


def test_an_ensemble_holds_the_predictions_of_every_step():
    counts = []
    for ensemble in (False, True):
        model = tiny_model(ENSEMBLE=ensemble, NMS_THRESH=1.0).eval()
        counts.append(len(model([image_input()])[0]["instances"]))
    assert counts[0] <= 12 < counts[1] <= 36


def test_an_image_without_queries_and_one_without_detections():
    model = tiny_model(SCORE_THRESH=0.999).eval()
    output = model([image_input(queries=0)])[0]
    assert len(output["instances"]) == 0
    assert output["instances"].reid_feats.shape == (0, EMBED_DIM)
    assert output["query_feats"].shape == (0, EMBED_DIM)


class _Oracle(torch.nn.Module):
    """A head that knows the truth: every proposal predicts the next ground truth in turn."""

    def __init__(self, head, boxes, reid):
        super().__init__()
        self.codec, self.in_features = head.codec, head.in_features
        self.boxes, self.reid = boxes, reid

    def forward(self, features, boxes, reid_signal, t, dtype):
        index = torch.arange(boxes.shape[1]) % len(self.boxes)
        shape = (len(boxes), -1, -1)
        return HeadOutput(
            boxes=self.boxes[index].expand(*shape),
            logits=torch.full(boxes.shape[:2], 5.0),
            reid_feats=self.reid[index].expand(*shape),
        )


@pytest.mark.parametrize("steps", [1, 4, 8])
def test_an_oracle_head_comes_out_of_the_loop_unharmed(steps):
    model = tiny_model(STEPS=steps).eval()
    boxes = torch.tensor([[4.0, 6.0, 20.0, 40.0], [30.0, 5.0, 44.0, 33.0]])
    reid = torch.nn.functional.normalize(torch.randn(2, EMBED_DIM), dim=1)
    model.head = _Oracle(model.head, boxes, reid)
    instances = model.inference([image_input()], do_postprocess=False)[0]
    order = instances.pred_boxes.tensor[:, 0].argsort()
    torch.testing.assert_close(instances.pred_boxes.tensor[order], boxes)
    torch.testing.assert_close(instances.reid_feats[order], reid)


def test_noise_generator_keeps_clean_ground_truth_at_time_zero():
    model = tiny_model(NUM_PROPOSALS=2)
    target = training_input(2)["instances"]
    boxes, reid = model.noisy_proposals([target], torch.tensor([0]))
    torch.testing.assert_close(boxes[0], target.gt_boxes.tensor, atol=1.5, rtol=0)
    assert (torch.nn.functional.cosine_similarity(reid[0], target.gt_reid_feats) > 0.99).all()


def test_wrong_settings_name_their_key():
    from detectron2.modeling import build_model

    for key, value in (
        ("CDL__PREDICTION", "both"),
        ("CDL__SA_OVER", "pixels"),
        ("CDL__HEADS", 5),
        ("CDL__TOKEN_SCALE", "half"),
        ("CDL__IN_FEATURES", ["p9"]),
    ):
        with pytest.raises(ValueError, match="MODEL.PSDIFF." + key.replace("__", ".")):
            build_model(tiny_cfg(**{key: value}))


@pytest.mark.slow
def test_parameters_of_the_full_model():
    """Paper, Table II: 31 M with ResNet-50 and FPN."""
    from detectron2.config import get_cfg
    from detectron2.modeling import build_model

    from person_search.config import add_person_search_config
    from psdiff import add_psdiff_config

    cfg = get_cfg()
    add_person_search_config(cfg)
    add_psdiff_config(cfg)
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.META_ARCHITECTURE = "PSDiff"
    cfg.MODEL.BACKBONE.NAME = "build_resnet_fpn_backbone"
    cfg.MODEL.RESNETS.OUT_FEATURES = ["res2", "res3", "res4", "res5"]
    cfg.MODEL.FPN.IN_FEATURES = ["res2", "res3", "res4", "res5"]
    model = build_model(cfg)
    assert sum(p.numel() for p in model.backbone.parameters()) == 26_799_296
    total = sum(p.numel() for p in model.parameters())
    assert 30.5e6 < total < 31.5e6, total
