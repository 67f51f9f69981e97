# SPDX-License-Identifier: Apache-2.0
"""Backbones, heads and whole models: shapes, freezing, calls, and absent options."""

import detectron2
import modeling_inputs as inputs
import pytest
import torch
from detectron2.config import configurable, get_cfg
from detectron2.layers import FrozenBatchNorm2d, ShapeSpec
from detectron2.modeling import (
    BACKBONE_REGISTRY,
    FPN,
    META_ARCH_REGISTRY,
    ROI_HEADS_REGISTRY,
    Backbone,
    GeneralizedRCNN,
    StandardROIHeads,
    SwinTransformer,
    build_backbone,
    build_model,
)
from detectron2.modeling.backbone.fpn import LastLevelMaxPool
from detectron2.modeling.backbone.resnet import BasicBlock, BottleneckBlock, ResNet, make_stage
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.roi_heads import (
    FastRCNNConvFCHead,
    FastRCNNOutputLayers,
    select_foreground_proposals,
)
from detectron2.modeling.roi_heads.fast_rcnn import fast_rcnn_inference
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage

lite_only = pytest.mark.skipif(
    not hasattr(detectron2, "__lite__"), reason="the real Detectron2 has these parts"
)


class TinyBackbone(Backbone):
    """One convolution of stride 8."""

    def __init__(self):
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 8, 8, stride=8)
        self._out_features = ["f"]
        self._out_feature_channels = {"f": 8}
        self._out_feature_strides = {"f": 8}

    @property
    def size_divisibility(self):
        return 8

    def forward(self, x):
        return {"f": self.conv(x)}


@pytest.fixture
def tiny_cfg():
    if "build_tiny_backbone" not in BACKBONE_REGISTRY:
        BACKBONE_REGISTRY._do_register("build_tiny_backbone", lambda cfg, shape: TinyBackbone())
    cfg = inputs.stage_cfg()
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.PIXEL_STD = [57.0, 57.0, 57.0]
    cfg.MODEL.BACKBONE.NAME = "build_tiny_backbone"
    cfg.MODEL.ROI_HEADS.NAME = "StandardROIHeads"
    return cfg


class TestResNet:
    @pytest.mark.parametrize("depth, blocks", [(18, 8), (34, 16), (50, 16), (101, 33), (152, 50)])
    def test_depth(self, depth, blocks):
        stages = ResNet.make_default_stages(depth, norm="")
        assert sum(len(stage) for stage in stages) == blocks
        kind = BasicBlock if depth < 50 else BottleneckBlock
        assert all(isinstance(block, kind) for stage in stages for block in stage)

    def test_arguments_per_block(self):
        stage = make_stage(
            BasicBlock, 3, in_channels=4, out_channels=8, stride_per_block=[2, 1, 1], norm=""
        )
        assert [b.stride for b in stage] == [2, 1, 1]
        assert [b.in_channels for b in stage] == [4, 8, 8]
        with pytest.raises(AssertionError, match="stride_per_block"):
            make_stage(BasicBlock, 3, in_channels=4, out_channels=8, stride_per_block=[2])

    def test_freeze(self):
        cfg = inputs.small_cfg("build_resnet_backbone")
        cfg.MODEL.BACKBONE.FREEZE_AT = 2
        resnet = build_backbone(cfg)
        frozen = {
            name.split(".")[0] for name, p in resnet.named_parameters() if not p.requires_grad
        }
        trained = {name.split(".")[0] for name, p in resnet.named_parameters() if p.requires_grad}
        assert frozen == {"stem", "res2"} and trained == {"res3", "res4", "res5"}
        assert isinstance(resnet.stem.conv1.norm, FrozenBatchNorm2d)
        assert not isinstance(resnet.res3[0].conv1.norm, FrozenBatchNorm2d)

    def test_only_the_stages_asked_for(self):
        cfg = inputs.small_cfg("build_resnet_backbone")
        cfg.MODEL.RESNETS.OUT_FEATURES = ["stem", "res3"]
        resnet = build_backbone(cfg)
        assert not hasattr(resnet, "res4")
        out = resnet(torch.rand(1, 3, 32, 64))
        assert {k: tuple(v.shape) for k, v in out.items()} == {
            "stem": (1, 8, 8, 16),
            "res3": (1, 64, 4, 8),
        }
        assert resnet.output_shape()["res3"] == ShapeSpec(channels=64, stride=8)

    def test_images_must_come_as_a_batch(self):
        resnet = build_backbone(inputs.small_cfg("build_resnet_backbone"))
        with pytest.raises(AssertionError, match="N, C, H, W"):
            resnet(torch.rand(3, 32, 32))

    def test_r18_needs_its_width(self):
        cfg = inputs.small_cfg("build_resnet_backbone")
        cfg.MODEL.RESNETS.DEPTH = 18
        with pytest.raises(AssertionError, match="RES2_OUT_CHANNELS"):
            build_backbone(cfg)

    @lite_only
    def test_deformable_convolution_is_refused(self):
        cfg = inputs.small_cfg("build_resnet_backbone")
        cfg.MODEL.RESNETS.DEFORM_ON_PER_STAGE = [False, False, True, True]
        with pytest.raises(ImportError, match="DEFORM_ON_PER_STAGE.*install Detectron2"):
            build_backbone(cfg)


class TestFPN:
    def test_top_down_sum(self):
        class Pyramid(TinyBackbone):
            def __init__(self):
                super().__init__()
                self._out_features = ["a", "b"]
                self._out_feature_channels = {"a": 1, "b": 1}
                self._out_feature_strides = {"a": 4, "b": 8}

            def forward(self, x):
                return x

        fpn = FPN(Pyramid(), ["a", "b"], 1, top_block=LastLevelMaxPool(), square_pad=64)
        assert fpn.size_divisibility == 8
        assert fpn.padding_constraints["square_size"] == 64
        fpn.top_block.in_feature = "p3"
        for parameter in fpn.parameters():
            torch.nn.init.zeros_(parameter)
        for conv in (fpn.fpn_lateral2, fpn.fpn_lateral3, fpn.fpn_output2, fpn.fpn_output3):
            conv.weight.data[0, 0, conv.weight.shape[2] // 2, conv.weight.shape[3] // 2] = 1
        out = fpn({"a": torch.ones(1, 1, 4, 4), "b": torch.full((1, 1, 2, 2), 5.0)})
        assert list(out) == ["p2", "p3", "p4"]
        assert (out["p2"] == 6).all() and (out["p3"] == 5).all()
        assert out["p4"].shape == (1, 1, 1, 1)
        assert fpn.output_shape()["p4"] == ShapeSpec(channels=1, stride=16)

    def test_strides_must_double(self):
        bottom_up = build_backbone(inputs.small_cfg("build_resnet_backbone"))
        with pytest.raises(AssertionError, match="(?i)stride"):
            FPN(bottom_up, ["res2", "res4"], 8)


class TestSwin:
    def test_any_image_size(self):
        model = SwinTransformer(embed_dim=8, depths=(2, 2), num_heads=(1, 2), out_indices=(0, 1))
        out = model.eval()(torch.rand(1, 3, 33, 50))
        assert {k: tuple(v.shape[2:]) for k, v in out.items()} == {"p0": (9, 13), "p1": (5, 7)}
        assert model.output_shape()["p1"] == ShapeSpec(channels=16, stride=8)

    def test_checkpointing_changes_nothing(self):
        kwargs = {"embed_dim": 8, "depths": (2,), "num_heads": (2,), "out_indices": (0,)}
        x = torch.rand(1, 3, 40, 40)
        grads = []
        for use_checkpoint in (False, True):
            torch.manual_seed(0)
            model = SwinTransformer(**kwargs, drop_path_rate=0.0, use_checkpoint=use_checkpoint)
            model(x)["p0"].sum().backward()
            grads.append(model.patch_embed.proj.weight.grad)
        assert torch.allclose(*grads)

    def test_shifted_windows_do_not_wrap_around(self):
        torch.manual_seed(0)
        model = SwinTransformer(
            embed_dim=8, depths=(2,), num_heads=(2,), window_size=4, out_indices=(0,)
        ).eval()
        x = torch.rand(1, 3, 64, 64)
        changed = x.clone()
        changed[..., :4, :4] += 1  # the token in the upper left corner
        difference = (model(x)["p0"] - model(changed)["p0"]).abs().amax(dim=(0, 1))
        assert difference[:4, :4].max() > 1e-5
        assert difference[-4:].max() < 1e-6 and difference[:, -4:].max() < 1e-6


class TestBoxHead:
    def test_convolutions_then_linear(self):
        head = FastRCNNConvFCHead(
            ShapeSpec(channels=4, height=5, width=5), conv_dims=[6], fc_dims=[7, 8], conv_norm="BN"
        )
        assert head(torch.rand(3, 4, 5, 5)).shape == (3, 8)
        assert head.output_shape.channels == 8
        assert head(torch.rand(0, 4, 5, 5)).shape == (0, 8)
        assert {"conv1.weight", "conv1.norm.weight", "fc2.bias"} <= set(head.state_dict())

    def test_without_linear_layers_the_map_stays(self):
        head = FastRCNNConvFCHead(
            ShapeSpec(channels=4, height=5, width=5), conv_dims=[6], fc_dims=[]
        )
        assert head.output_shape == ShapeSpec(channels=6, height=5, width=5)

    def test_no_layers(self):
        with pytest.raises(AssertionError):
            FastRCNNConvFCHead(ShapeSpec(channels=4), conv_dims=[], fc_dims=[])


class TestFastRCNNInference:
    boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 11], [20, 20, 30, 30]])
    scores = torch.tensor([[0.8, 0.1, 0.1], [0.6, 0.3, 0.1], [0.05, 0.05, 0.9]])

    def run(self, boxes=boxes, scores=scores, topk=10):
        (found,), (kept,) = fast_rcnn_inference([boxes], [scores], [(40, 40)], 0.07, 0.5, topk)
        return found, kept

    def test_nms_is_per_class(self):
        found, kept = self.run()
        assert found.pred_classes.tolist() == [0, 1]
        assert kept.tolist() == [0, 1]
        assert found.scores.tolist() == pytest.approx([0.8, 0.3])

    def test_boxes_of_the_class(self):
        found, _ = self.run(boxes=torch.cat([self.boxes, self.boxes + 5], dim=1))
        assert found.pred_boxes.tensor.tolist() == [[0, 0, 10, 10], [5, 5, 15, 16]]

    def test_topk_and_not_finite(self):
        assert len(self.run(topk=1)[0]) == 1
        assert len(self.run(topk=-1)[0]) == 2
        broken = self.boxes.clone()
        broken[0, 0] = float("inf")
        assert self.run(boxes=broken)[0].scores.tolist() == pytest.approx([0.6, 0.3])

    def test_no_proposals(self):
        assert len(self.run(boxes=torch.zeros(0, 4), scores=torch.zeros(0, 3))[0]) == 0


def test_output_layers_have_losses_without_foreground():
    layers = FastRCNNOutputLayers(
        ShapeSpec(channels=4),
        box2box_transform=Box2BoxTransform(weights=(1.0, 1.0, 1.0, 1.0)),
        num_classes=2,
    )
    background = Instances(
        (9, 9), proposal_boxes=Boxes(torch.tensor([[0.0, 0, 4, 4]])), gt_classes=torch.tensor([2])
    )
    with EventStorage() as storage:
        losses = layers.losses(layers(torch.rand(1, 4)), [background])
        assert set(storage.latest()) == {"fast_rcnn/cls_accuracy"}
    assert losses["loss_box_reg"].item() == 0
    sum(losses.values()).backward()
    assert layers.bbox_pred.weight.grad is not None


def test_select_foreground_proposals():
    proposals = [Instances((9, 9), gt_classes=torch.tensor([2, 0, -1, 1]))]
    (kept,), (mask,) = select_foreground_proposals(proposals, bg_label=2)
    assert kept.gt_classes.tolist() == [0, 1]
    assert mask.tolist() == [False, True, False, True]


@ROI_HEADS_REGISTRY.register()
class HeadsWithMeanColor(StandardROIHeads):
    """Adds a field to each box, as a person search head adds its embedding."""

    @configurable
    def __init__(self, *, factor, **kwargs):
        super().__init__(**kwargs)
        self.factor = factor

    @classmethod
    def from_config(cls, cfg, input_shape):
        return {**super().from_config(cfg, input_shape), "factor": 2.0}

    def forward_with_given_boxes(self, features, instances):
        instances = super().forward_with_given_boxes(features, instances)
        pooled = self.box_pooler(
            [features[f] for f in self.box_in_features], [x.pred_boxes for x in instances]
        )
        means = self.factor * pooled.mean(dim=(2, 3))
        for x, mean in zip(instances, means.split([len(x) for x in instances]), strict=True):
            x.mean = mean
        return instances


class TestGeneralizedRCNN:
    def test_losses_and_gradients(self, tiny_cfg):
        model = build_model(tiny_cfg)
        with EventStorage():
            losses = model(inputs.batch())
        assert set(losses) == {"loss_cls", "loss_box_reg", "loss_rpn_cls", "loss_rpn_loc"}
        sum(losses.values()).backward()
        assert all(p.grad is not None for p in model.parameters())

    def test_results_are_in_the_frame_asked_for(self, tiny_cfg):
        model = build_model(tiny_cfg).eval()
        first, second, _ = model(inputs.batch())
        assert first["instances"].image_size == (128, 96)
        assert second["instances"].image_size == (70, 50)
        raw = model.inference(inputs.batch(), do_postprocess=False)
        assert raw[0].image_size == (64, 96)

    def test_given_boxes(self, tiny_cfg):
        tiny_cfg.MODEL.ROI_HEADS.NAME = "HeadsWithMeanColor"
        model = build_model(tiny_cfg).eval()
        batch = inputs.batch(empty=False)
        given = [
            Instances(
                x["image"].shape[1:],
                pred_boxes=Boxes(x["instances"].gt_boxes.tensor),
                pred_classes=x["instances"].gt_classes,
                query_ids=torch.arange(len(x["instances"])) + 7,
            )
            for x in batch
        ]
        out = model.inference(batch, detected_instances=given, do_postprocess=False)
        assert [len(x) for x in out] == [3, 2]
        assert out[0].mean.shape == (3, 8)
        assert out[0].query_ids.tolist() == [7, 8, 9]
        assert torch.equal(out[0].pred_boxes.tensor, batch[0]["instances"].gt_boxes.tensor)
        # The same attribute comes with detections, and survives postprocessing.
        detections = model(batch)[0]["instances"]
        assert detections.mean.shape == (len(detections), 8)

    def test_pixel_statistics_are_not_in_checkpoints(self, tiny_cfg):
        model = build_model(tiny_cfg)
        assert not any("pixel" in name for name in model.state_dict())
        image = model.preprocess_image([{"image": torch.full((3, 8, 5), 160)}]).tensor
        assert image.shape == (1, 3, 8, 8)
        assert image[0, :, 0, 0].tolist() == pytest.approx(
            [(160 - m) / 57 for m in tiny_cfg.MODEL.PIXEL_MEAN]
        )
        assert (image[..., 5:] == 0).all()

    def test_precomputed_proposals(self, tiny_cfg):
        tiny_cfg.MODEL.PROPOSAL_GENERATOR.NAME = "PrecomputedProposals"
        model = build_model(tiny_cfg).eval()
        proposals = Instances(
            (64, 96),
            proposal_boxes=Boxes(torch.tensor([[0.0, 0, 30, 30]])),
            objectness_logits=torch.tensor([1.0]),
        )
        (result,) = model([{"image": torch.rand(3, 64, 96), "proposals": proposals}])
        assert len(result["instances"]) <= tiny_cfg.MODEL.ROI_HEADS.NUM_CLASSES

    def test_gt_fields_follow_their_box(self, tiny_cfg):
        model = build_model(tiny_cfg)
        heads = model.roi_heads
        targets = Instances(
            (64, 96),
            gt_boxes=Boxes(torch.tensor([[0.0, 0, 20, 40], [50, 10, 80, 60]])),
            gt_classes=torch.tensor([0, 1]),
            gt_pids=torch.tensor([41, 42]),
        )
        proposals = Instances(
            (64, 96),
            proposal_boxes=Boxes(torch.tensor([[50.0, 10, 80, 58], [0, 50, 10, 60]])),
            objectness_logits=torch.tensor([1.0, 1.0]),
        )
        with EventStorage() as storage:
            (sampled,) = heads.label_and_sample_proposals([proposals], [targets])
            scalars = {k: v[0] for k, v in storage.latest().items()}
        foreground = sampled[sampled.gt_classes != heads.num_classes]
        assert sorted(foreground.gt_pids.tolist()) == [41, 42, 42]
        assert (foreground.gt_pids - 41 == foreground.gt_classes).all()
        assert scalars == {"roi_head/num_fg_samples": 3.0, "roi_head/num_bg_samples": 1.0}


class TestRegistries:
    def test_users_model_from_config(self, tiny_cfg):
        if "CountingRCNN" not in META_ARCH_REGISTRY:

            @META_ARCH_REGISTRY.register()
            class CountingRCNN(GeneralizedRCNN):
                @configurable
                def __init__(self, *, start, **kwargs):
                    super().__init__(**kwargs)
                    self.start = start

                @classmethod
                def from_config(cls, cfg):
                    return {**super().from_config(cfg), "start": 3}

        tiny_cfg.MODEL.META_ARCHITECTURE = "CountingRCNN"
        assert build_model(tiny_cfg).start == 3

    def test_unknown_name(self, tiny_cfg):
        tiny_cfg.MODEL.ROI_HEADS.NAME = "NoSuchHeads"
        with pytest.raises(KeyError, match="NoSuchHeads"):
            build_model(tiny_cfg)


@lite_only
class TestAbsentParts:
    @pytest.mark.parametrize("key", ["MASK_ON", "KEYPOINT_ON"])
    @pytest.mark.parametrize("heads", ["StandardROIHeads", "Res5ROIHeads"])
    def test_masks_and_keypoints(self, tiny_cfg, key, heads):
        tiny_cfg.MODEL[key] = True
        tiny_cfg.MODEL.ROI_HEADS.NAME = heads
        with pytest.raises(ImportError, match=f"{key} = True is not in detectron2-lite"):
            build_model(tiny_cfg)

    def test_visualization(self, tiny_cfg):
        tiny_cfg.VIS_PERIOD = 1
        with pytest.raises(ImportError, match="VIS_PERIOD = 1 is not in detectron2-lite"):
            build_model(tiny_cfg)

    def test_federated_loss_from_config(self):
        cfg = get_cfg()
        cfg.MODEL.ROI_BOX_HEAD.USE_FED_LOSS = True
        with pytest.raises(ImportError, match="USE_FED_LOSS"):
            FastRCNNOutputLayers(cfg, ShapeSpec(channels=4))
