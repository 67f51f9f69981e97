# SPDX-License-Identifier: Apache-2.0
"""The whole of DiffPS on the tiny Stable Diffusion folder."""

import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, Backbone, build_model
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage
from diffps_model_tiny import EMBED_DIM, IMAGE_SIZE, tiny_cfg, tiny_model, training_input

from person_search.modeling.optimize import optimize_for_inference
from person_search.testing import PersonSearchModelTests


@pytest.fixture(scope="class")
def folder(request, tiny_sd):
    request.cls.folder = tiny_sd


@pytest.mark.usefixtures("folder")
class TestDiffPS(PersonSearchModelTests):
    """The contract of a person search model."""

    image_size = IMAGE_SIZE

    def build(self, seed):
        return tiny_model(self.folder, seed)

    def training_input(self, persons):
        return training_input(persons)


@torch.no_grad()
def test_optimized_model_finds_the_same(tiny_sd):
    """The norms of the heads are folded; the frozen part is shared, not copied."""
    torch.manual_seed(0)
    model = tiny_model(tiny_sd).eval()
    for norm in (m for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d)):
        norm.running_mean.uniform_(-0.1, 0.1)
        norm.running_var.uniform_(0.5, 2.0)
    fast = optimize_for_inference(model, "float32")
    for part in ("det_aggregator", "msfrn"):
        kinds = {type(m) for m in getattr(fast, part).modules()}
        assert torch.nn.BatchNorm2d not in kinds and torch.nn.Conv2d in kinds
    assert fast.backbone is model.backbone
    inputs = [training_input(2)]
    (mine,), (wanted,) = fast(inputs), model(inputs)
    mine, wanted = mine["instances"], wanted["instances"]
    assert len(wanted) > 0
    torch.testing.assert_close(mine.pred_boxes.tensor, wanted.pred_boxes.tensor, atol=1e-2, rtol=0)
    torch.testing.assert_close(mine.reid_feats, wanted.reid_feats, atol=1e-4, rtol=0)


DETECTION_LOSSES = ("loss_rpn_cls", "loss_rpn_loc", "loss_cls", "loss_box_reg")
REID_MODULES = ("msfrn.", "roi_heads.reid_head.")


def losses_of(model, inputs):
    with EventStorage():
        return model.train()(inputs)


@BACKBONE_REGISTRY.register()
class ShapesOfStableDiffusion21(Backbone):
    """Has the sizes of the real backbone, for counting weights; cannot run."""

    def __init__(self, cfg, input_shape):
        super().__init__()

    def forward(self):
        raise NotImplementedError

    def output_shape(self):
        sizes = {"u1r2_q": (1280, 32), "u2r1_v": (640, 16), "u2r2_q": (640, 16), "attn": (1, 8)}
        sizes |= dict.fromkeys(("u3r0_q", "u3r0_k", "u3r0_v", "u3r1_k"), (320, 8))
        return {name: ShapeSpec(channels=c, stride=s) for name, (c, s) in sizes.items()}

    def word_vectors(self, words):
        return torch.ones(len(words), 1024)


def test_heads_do_not_train_without_targets(tiny_sd):
    heads = tiny_model(tiny_sd, seed=0).roi_heads.train()
    with pytest.raises(ValueError, match="needs the targets of all images"):
        heads(None, {}, [])


def test_parameters_of_the_full_model(tiny_sd):
    cfg = tiny_cfg(
        tiny_sd,
        BACKBONE__NAME="ShapesOfStableDiffusion21",
        ANCHOR_GENERATOR__SIZES=[[32, 64, 128, 256, 512]],
        ANCHOR_GENERATOR__ASPECT_RATIOS=[[0.5, 1.0, 2.0]],
        REID__EMBED_DIM=1024,
        DIFFPS__DET_AGG__DIM=1024,
        DIFFPS__MSFRN__DIM=1024,
        DIFFPS__HEAD__RES5_WIDTH=512,
        DIFFPS__REID__POOL=[24, 12],
        DIFFPS__SFAN__LEARN_TEMPERATURE=False,
    )
    cfg.MODEL.DEVICE = "meta"
    with torch.device("meta"):
        model = build_model(cfg)
    parts = [340_992, 9_515_083, 2, 14_964_736, 12_298, 25_484_294, 14_964_736, 5_527_844, 5]
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == sum(parts)
    assert sum(parts) == 70_809_990


def test_the_backbone_is_neither_trained_nor_saved(tiny_sd):
    model = tiny_model(tiny_sd)
    assert not [name for name, _ in model.named_parameters() if name.startswith("backbone")]
    assert not [name for name in model.state_dict() if name.startswith("backbone")]
    assert {f"roi_heads.reid_head.oim.{n}" for n in ("lut", "cq", "cq_head")} <= set(
        model.state_dict()
    )


@pytest.mark.parametrize("sampler", ["balanced", "fraction"])
def test_a_batch_without_persons_has_small_losses(tiny_sd, sampler):
    model = tiny_model(tiny_sd, DIFFPS__HEAD__SAMPLER=sampler).train()
    losses = losses_of(model, [training_input(0, seed=1), training_input(0, seed=2)])
    assert {"loss_rpn_cls", "loss_cls", "loss_oim"} <= set(losses)
    assert all(0 <= float(loss) < 3 for loss in losses.values()), losses
    assert losses["loss_oim"] == losses["loss_box_reg"] == losses["loss_rpn_loc"] == 0
    sum(losses.values()).backward()
    trainable = [p for p in model.parameters() if p.requires_grad]
    assert all(p.grad is not None and p.grad.isfinite().all() for p in trainable)


def test_no_gradient_crosses_between_detection_and_reid(tiny_sd):
    model = tiny_model(tiny_sd, DIFFPS__DGRPN__GAMMA_INIT=0.5)
    inputs = [training_input(2), training_input(1, seed=1)]
    # from an empty table all similarities are zero, and so is the gradient
    torch.nn.init.normal_(model.roi_heads.reid_head.oim.lut)
    losses_of(model, inputs)["loss_oim"].backward()
    reached = {n for n, p in model.named_parameters() if p.grad is not None and p.grad.any()}
    assert reached and all(name.startswith(REID_MODULES) for name in reached), reached

    model.zero_grad(set_to_none=True)
    losses = losses_of(model, inputs)
    sum(losses[name] for name in DETECTION_LOSSES).backward()
    reached = {n for n, p in model.named_parameters() if p.grad is not None and p.grad.any()}
    assert reached and not [name for name in reached if name.startswith(REID_MODULES)]
    assert "proposal_generator.modulator.beta" in reached


@pytest.mark.parametrize(
    "switches",
    [
        {"ROI_HEADS__IN_FEATURES": ["det"]},
        {"DIFFPS__DGRPN__ENABLED": False, "DIFFPS__BACKBONE__ATTN__LAYERS": []},
        {"DIFFPS__MSFRN__FRM_MODE": "paper", "DIFFPS__MSFRN__REFINE_LL": True},
        {"DIFFPS__MSFRN__ENABLED": False, "DIFFPS__SFAN__ENABLED": False},
        {"DIFFPS__SFAN__NORM": "part", "DIFFPS__SFAN__SKIP": False},
        {"DIFFPS__MSFRN__DIM": 16, "DIFFPS__SFAN__PROJECT": True},
        {"DIFFPS__REID__USE_INPUT_MAP": False, "DIFFPS__REID__DROP_BACKGROUND": True},
        {"DIFFPS__HEAD__SAMPLER": "fraction", "DIFFPS__HEAD__INIT": "v2"},
        {"DIFFPS__OIM__QUEUE_SIZE": 0},
        {"DIFFPS__BACKBONE__NOISE": "random", "DIFFPS__BACKBONE__VAE_SAMPLE": True},
    ],
)
def test_every_switch_trains_and_tests(switches, tiny_sd):
    model = tiny_model(tiny_sd, **switches)
    losses = losses_of(model, [training_input(2), training_input(0)])
    assert set(losses) == {*DETECTION_LOSSES, "loss_oim"}
    sum(losses.values()).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and torch.isfinite(parameter.grad).all(), name
    item = {"image": training_input()["image"], "queries": _queries()}
    (output,) = model.eval()([item])
    assert output["query_feats"].shape == (2, EMBED_DIM)


def _queries():
    instances = training_input(2)["instances"]
    instances.pred_boxes = instances.gt_boxes
    return instances


def test_other_families_by_config(tiny_sd15, tiny_sdxl):
    """Overrides as README lists them: SD 1.5 has other text, SDXL also other levels and strides."""
    sdxl = {
        "DIFFPS__BACKBONE__OUT_FEATURES": ["u0r2b1_q", "u1r1_v", "u1r2_q", "u2r1_res"],
        "DIFFPS__BACKBONE__ATTN__LAYERS": ["u1r2"],
        "DIFFPS__MSFRN__LEVELS": [["u0r2b1_q"], ["u1r1_v", "u1r2_q"], ["u2r1_res"]],
        "DIFFPS__DET_AGG__IN_FEATURE": "u2r1_res",
    }
    for folder, overrides in ((tiny_sd15, {}), (tiny_sdxl, sdxl)):
        model = tiny_model(folder, DIFFPS__SFAN__PROJECT=True, **overrides)
        losses = losses_of(model, [training_input(2)])
        sum(losses.values()).backward()
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None and torch.isfinite(parameter.grad).all(), name
        item = {"image": training_input()["image"], "queries": _queries()}
        (output,) = model.eval()([item])
        assert output["query_feats"].shape == (2, EMBED_DIM)


@pytest.mark.parametrize("size", [(1, 1), (20, 50)])
def test_images_smaller_than_64_pixels(tiny_sd, size):
    """Beside one of usual size, in training with a person and in testing."""
    h, w = size
    small = {
        "image": torch.full((3, h, w), 90, dtype=torch.uint8),
        "instances": Instances(
            size,
            gt_boxes=Boxes(torch.tensor([[0.0, 0.0, w, h]])),
            gt_classes=torch.zeros(1, dtype=torch.int64),
            gt_pids=torch.tensor([1]),
        ),
    }
    model = tiny_model(tiny_sd)
    losses = losses_of(model, [small, training_input(2)])
    total = sum(losses.values())
    total.backward()
    assert torch.isfinite(total)
    queries = Instances(size, pred_boxes=small["instances"].gt_boxes)
    (output,) = model.eval()([{"image": small["image"], "queries": queries}])
    assert output["instances"].image_size == size
    torch.testing.assert_close(output["query_feats"].norm(dim=1), torch.ones(1))


@pytest.mark.parametrize("drop_background", [False, True])
@pytest.mark.parametrize("persons", [0, 2])
def test_a_batch_without_identities_trains_detection_only(persons, drop_background, tiny_sd):
    model = tiny_model(tiny_sd, DIFFPS__REID__DROP_BACKGROUND=drop_background)
    inputs = [training_input(persons, pids=(-1, -1)) for _ in range(2)]
    losses = losses_of(model, inputs)
    assert losses["loss_oim"] == 0 and losses["loss_cls"] > 0
    sum(losses.values()).backward()
    for name, parameter in model.named_parameters():
        # what distributed training needs: every weight has a gradient, if only of zeros
        assert parameter.grad is not None, name
        if name.startswith(REID_MODULES):
            assert not parameter.grad.any(), name
    oim = model.roi_heads.reid_head.oim
    assert not oim.lut.any() and oim.cq.any() == (persons > 0)


def test_an_image_passes_the_backbone_once_with_its_detections_and_queries(tiny_sd):
    model, passed = tiny_model(tiny_sd).eval(), []
    model.backbone.register_forward_hook(lambda module, args, output: passed.append(len(args[0])))
    inputs = [{"image": training_input()["image"], "queries": _queries()}] * 3
    outputs = model(inputs)
    assert passed == [3] and all(len(x["query_feats"]) == 2 for x in outputs)


def test_a_query_that_was_detected_has_the_embedding_of_the_detection(tiny_sd):
    model, image = tiny_model(tiny_sd).eval(), training_input()["image"]
    (found,) = model.inference([{"image": image}], do_postprocess=False)
    assert len(found) > 0
    (output,) = model([{"image": image, "queries": found}])
    torch.testing.assert_close(output["query_feats"], found.reid_feats)


def test_images_without_queries_beside_one_with(tiny_sd):
    model, image = tiny_model(tiny_sd).eval(), training_input()["image"]
    plain, asked = model([{"image": image}, {"image": image, "queries": _queries()}])
    assert "query_feats" not in plain and len(asked["query_feats"]) == 2


def test_given_boxes_do_not_run_detection(tiny_sd):
    model, image = tiny_model(tiny_sd).eval(), training_input()["image"]
    model.det_aggregator.register_forward_hook(lambda *_: pytest.fail("detection ran"))
    (result,) = model.inference(
        [{"image": image}], detected_instances=[_queries()], do_postprocess=False
    )
    assert result.reid_feats.shape == (2, EMBED_DIM)


def test_an_image_without_detections_has_no_embeddings(tiny_sd):
    model = tiny_model(tiny_sd, ROI_HEADS__SCORE_THRESH_TEST=1.0).eval()
    (output,) = model([{"image": training_input()["image"]}])
    assert output["instances"].reid_feats.shape == (0, EMBED_DIM)


def test_trains_and_tests_in_mixed_precision(tiny_sd):
    model = tiny_model(tiny_sd)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = losses_of(model, [training_input(2), training_input(0)])
        assert all(loss.dtype == torch.float32 for loss in losses.values())
    sum(losses.values()).backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        (output,) = model.eval()([{"image": training_input()["image"], "queries": _queries()}])
    for feats in (output["instances"].reid_feats, output["query_feats"]):
        assert feats.dtype == torch.float32
        torch.testing.assert_close(feats.norm(dim=1), torch.ones(len(feats)))


@pytest.mark.parametrize(
    ("switches", "message"),
    [
        ({"RPN__IN_FEATURES": ["res4"]}, "MODEL.RPN.IN_FEATURES.*'guided'"),
        ({"ROI_HEADS__IN_FEATURES": ["p2"]}, "MODEL.ROI_HEADS.IN_FEATURES"),
        ({"DIFFPS__MSFRN__DIM": 16}, "MODEL.DIFFPS.SFAN.PROJECT"),
        ({"REID__NUM_PIDS": 0}, "MODEL.REID.NUM_PIDS is 0"),
        ({"DIFFPS__REID__POOL": [4, 2]}, "MODEL.DIFFPS.REID.POOL"),
        ({"DIFFPS__DET_AGG__IN_FEATURE": "u3r2_q"}, "MODEL.DIFFPS.DET_AGG.IN_FEATURE"),
        ({"DIFFPS__HEAD__INIT": "v9"}, "MODEL.DIFFPS.HEAD.INIT"),
    ],
)
def test_invalid_settings_name_their_key(switches, message, tiny_sd):
    with pytest.raises(ValueError, match=message):
        tiny_model(tiny_sd, **switches)


def test_an_identity_that_the_table_has_no_row_for(tiny_sd):
    with pytest.raises(ValueError, match=r"\[483\].*5 rows \(MODEL.REID.NUM_PIDS\)"):
        losses_of(tiny_model(tiny_sd), [training_input(2, pids=(483, 0))])
