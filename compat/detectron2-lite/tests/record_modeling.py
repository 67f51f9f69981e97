# SPDX-License-Identifier: Apache-2.0
"""Records the models of the real Detectron2 for ``test_parity.py``.

Run it with the real package:

    PYTHONPATH=<checkout of Detectron2> python record_modeling.py

It writes the results of the functions in ``CASES`` to data/modeling.json. See also
``modeling_inputs.py``.
"""

import json
from pathlib import Path

import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling import FPN, SwinTransformer, build_model, detector_postprocess
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator
from detectron2.modeling.backbone import ResNet, build_backbone
from detectron2.modeling.backbone.resnet import BasicStem
from detectron2.modeling.box_regression import (
    Box2BoxTransform,
    _dense_box_regression_loss,
)
from detectron2.modeling.matcher import Matcher
from detectron2.modeling.poolers import ROIPooler, assign_boxes_to_levels
from detectron2.modeling.proposal_generator import RPN
from detectron2.modeling.proposal_generator.proposal_utils import find_top_rpn_proposals
from detectron2.modeling.roi_heads import FastRCNNOutputLayers, StandardROIHeads
from detectron2.modeling.sampling import subsample_labels
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage
from modeling_inputs import (
    batch,
    digest,
    faster_rcnn_r50_fpn_cfg,
    numbers,
    random_boxes,
    small_cfg,
    stage_cfg,
    stage_inputs,
    state,
)

COMMIT = "02b5c4e"
DATA_FILE = Path(__file__).parent / "data" / "modeling.json"


def box_codes():
    g = torch.Generator().manual_seed(1)
    src, dst = random_boxes(6, 100, g), random_boxes(6, 100, g)
    deltas = torch.randn(6, 8, generator=g) * 3
    code = Box2BoxTransform(weights=(10.0, 10.0, 5.0, 5.0))
    return {
        "deltas": code.get_deltas(src, dst),
        "boxes": code.apply_deltas(deltas, src),
        "clamped": code.apply_deltas(deltas * 100, src),
    }


def box_losses():
    g = torch.Generator().manual_seed(2)
    anchors = [random_boxes(5, 100, g), random_boxes(3, 100, g)]
    gt = [random_boxes(8, 100, g) for _ in range(2)]
    deltas = [torch.randn(2, 5, 4, generator=g) * 0.2, torch.randn(2, 3, 4, generator=g) * 0.2]
    mask = torch.rand(2, 8, generator=g) > 0.5
    code = Box2BoxTransform(weights=(1.0, 1.0, 1.0, 1.0))
    kinds = ("smooth_l1", "giou", "diou", "ciou")
    as_boxes = [Boxes(a) for a in anchors]
    losses = {k: _dense_box_regression_loss(as_boxes, code, deltas, gt, mask, k) for k in kinds}
    losses["smooth_l1 beta 0.5"] = _dense_box_regression_loss(
        anchors, code, deltas, gt, mask, "smooth_l1", 0.5
    )
    return losses


def matching_and_sampling():
    quality = torch.rand(4, 40, generator=torch.Generator().manual_seed(3)) ** 2
    out = {}
    for low in (False, True):
        matcher = Matcher([0.3, 0.7], [0, -1, 1], allow_low_quality_matches=low)
        out[f"low {low}"] = matcher(quality)
    out["empty"] = matcher(quality[:0])
    labels = out["low True"][1].to(torch.int64)
    torch.manual_seed(4)
    out["sampled"] = subsample_labels(labels, 12, 0.5, 0)
    out["few"] = subsample_labels(labels, 2, 0.25, 0)
    return out


def anchors():
    generator = DefaultAnchorGenerator(
        sizes=[[20, 50], [80, 100]], aspect_ratios=[[0.5, 1, 2]], strides=[8, 16], offset=0.5
    )
    maps = generator([torch.zeros(1, 1, 3, 2), torch.zeros(1, 1, 1, 2)])
    return {
        "anchors": maps,
        "num_anchors": generator.num_anchors,
        "num_cell_anchors": generator.num_cell_anchors,
        "box_dim": generator.box_dim,
    }


def pooling():
    g = torch.Generator().manual_seed(5)
    maps = [torch.rand(2, 3, 64 // 2**i, 64 // 2**i, generator=g) for i in range(3)]
    boxes = [Boxes(random_boxes(9, 256, g)), Boxes(random_boxes(4, 64, g))]
    levels = assign_boxes_to_levels(boxes, 2, 4, 100, 4)
    out = {"levels": levels}
    for kind in ("ROIAlign", "ROIAlignV2", "ROIPool"):
        pooler = ROIPooler(
            output_size=(3, 3),
            scales=(1 / 4, 1 / 8, 1 / 16),
            sampling_ratio=2,
            pooler_type=kind,
            canonical_box_size=100,
        )
        out[kind] = digest(pooler(maps, boxes))
    single = ROIPooler(output_size=4, scales=(1 / 4,), sampling_ratio=0, pooler_type="ROIAlignV2")
    out["one level"] = digest(single(maps[:1], boxes))
    return out


def top_proposals():
    g = torch.Generator().manual_seed(6)
    boxes = [
        torch.stack([random_boxes(n, 60, g, smallest=1.0) for _ in range(2)]) for n in (30, 10)
    ]
    logits = [torch.randn(2, n, generator=g) for n in (30, 10)]
    return find_top_rpn_proposals(boxes, logits, [(40, 60), (60, 50)], 0.5, 20, 7, 2.0, True)


def rpn_and_roi_heads():
    images, features, shapes, targets = stage_inputs()
    torch.manual_seed(8)
    rpn = RPN(stage_cfg(), shapes)
    heads = StandardROIHeads(stage_cfg(), shapes)
    out = {"rpn": state(rpn), "heads": state(heads)}
    with EventStorage() as storage:
        proposals, rpn_losses = rpn(images, features, targets)
        sampled, losses = heads(images, features, proposals, targets)
        out["scalars"] = {k: v[0] for k, v in storage.latest().items()}
    out["losses"] = {**losses, **rpn_losses}
    out["proposals"] = [len(p) for p in proposals]
    out["sampled"] = [
        {"gt_classes": s.gt_classes, "gt_pids": s.gt_pids, "fields": sorted(s.get_fields())}
        for s in sampled
    ]
    rpn.eval(), heads.eval()
    proposals, _ = rpn(images, features)
    out["test proposals"] = proposals
    out["detections"] = heads(images, features, proposals)[0]
    return out


def output_layers():
    g = torch.Generator().manual_seed(9)
    code = Box2BoxTransform(weights=(10.0, 10.0, 5.0, 5.0))
    proposals = [
        Instances(
            (50, 60),
            proposal_boxes=Boxes(random_boxes(n, 50, g)),
            gt_boxes=Boxes(random_boxes(n, 50, g)),
            gt_classes=torch.randint(0, 4, (n,), generator=g),
        )
        for n in (5, 3)
    ]
    x = torch.rand(8, 6, generator=g)
    variants = {
        "plain": {"smooth_l1_beta": 0.1},
        "agnostic giou": {"cls_agnostic_bbox_reg": True, "box_reg_loss_type": "giou"},
        "sigmoid": {"use_sigmoid_ce": True, "loss_weight": {"loss_cls": 3.0}},
    }
    out = {}
    for name, kwargs in variants.items():
        torch.manual_seed(10)
        layers = FastRCNNOutputLayers(
            ShapeSpec(channels=6), box2box_transform=code, num_classes=3, **kwargs
        )
        with EventStorage() as storage:
            predictions = layers(x)
            losses = layers.losses(predictions, proposals)
            scalars = {k: v[0] for k, v in storage.latest().items()}
        detections, kept = layers.inference(predictions, proposals)
        gt_boxes = layers.predict_boxes_for_gt_classes(predictions, proposals)
        out[name] = {
            "state": state(layers),
            "losses": losses,
            "scalars": scalars,
            "detections": detections,
            "kept": kept,
            "gt boxes": [digest(b) for b in gt_boxes],
        }
    return out


def postprocessing():
    boxes = Boxes(torch.tensor([[1.0, 2, 5, 9], [8, 8, 30, 40], [50, 3, 60, 9]]))
    instances = Instances((20, 20), pred_boxes=boxes, scores=torch.tensor([0.3, 0.2, 0.1]))
    return detector_postprocess(instances, 60, 41)


SWIN_VARIANTS = {
    "plain": {"embed_dim": 8, "depths": (2, 3), "num_heads": (1, 2), "out_indices": (0, 1)},
    "ape, frozen": {
        "embed_dim": 8,
        "depths": (2, 1, 1),
        "num_heads": (1, 2, 4),
        "out_indices": (1, 2),
        "window_size": 4,
        "ape": True,
        "patch_norm": False,
        "qkv_bias": False,
        "drop_rate": 0.1,
        "frozen_stages": 2,
    },
}
TRUNCATED_NORMAL = "truncated normal numbers"


def new_swin():
    """Returns the weights of new models, and random numbers of the initializer of torch."""
    generator = torch.Generator().manual_seed(10)
    out = {TRUNCATED_NORMAL: torch.nn.init.trunc_normal_(torch.zeros(8), generator=generator)}
    for name, kwargs in SWIN_VARIANTS.items():
        torch.manual_seed(12)
        out[name] = state(SwinTransformer(**kwargs))
    return out


def swin():
    x = torch.rand(2, 3, 50, 77, generator=torch.Generator().manual_seed(11))
    out = {}
    for name, kwargs in SWIN_VARIANTS.items():
        model = SwinTransformer(**kwargs)
        generator = torch.Generator().manual_seed(15)
        for parameter in model.parameters():
            parameter.data.uniform_(-0.1, 0.1, generator=generator)
        out[name] = {}
        for mode in (True, False):
            model.train(mode)
            torch.manual_seed(13)
            out[name][f"train {mode}"] = {k: digest(v) for k, v in model(x).items()}
    return out


def backbones():
    x = torch.rand(1, 3, 64, 96, generator=torch.Generator().manual_seed(14))
    torch.manual_seed(15)
    stages = ResNet.make_default_stages(18, norm="BN")
    classifier = ResNet(BasicStem(), stages, num_classes=5, out_features=["res3", "linear"])
    out = {"classifier": state(classifier)}
    out["logits"] = {k: digest(v) for k, v in classifier.eval()(x).items()}

    cfg = small_cfg("build_resnet_backbone")
    cfg.MODEL.RESNETS.RES5_DILATION = 2
    cfg.MODEL.RESNETS.NUM_GROUPS = 2
    torch.manual_seed(16)
    backbone = FPN(build_backbone(cfg), ["res3", "res4"], 16, fuse_type="avg")
    out["dilated"] = state(backbone)
    out["strides"] = {k: [v.channels, v.stride] for k, v in backbone.output_shape().items()}
    out["pyramid"] = {k: digest(v) for k, v in backbone(x).items()}
    return out


def _run_model(cfg, inputs):
    torch.manual_seed(18)
    model = build_model(cfg)
    out = {"state": state(model)}
    torch.manual_seed(19)
    with EventStorage() as storage:
        losses = model(inputs)
        sum(losses.values()).backward()
        out["losses"] = losses
        out["scalars"] = {k: v[0] for k, v in storage.latest().items()}
    norms = [p.grad.double().norm() for p in model.parameters() if p.grad is not None]
    out["gradient"] = float(sum(norms))
    model.eval()
    with torch.no_grad():
        out["results"] = model(inputs)
    return out


def model_r50_fpn():
    return _run_model(faster_rcnn_r50_fpn_cfg(), batch())


def model_small_giou():
    cfg = small_cfg()
    cfg.MODEL.RPN.BBOX_REG_LOSS_TYPE = "giou"
    cfg.MODEL.ROI_BOX_HEAD.BBOX_REG_LOSS_TYPE = "giou"
    cfg.MODEL.ROI_BOX_HEAD.TRAIN_ON_PRED_BOXES = True
    cfg.MODEL.RPN.BOUNDARY_THRESH = 4
    return _run_model(cfg, batch())


def model_c4():
    cfg = small_cfg("build_resnet_backbone")
    cfg.MODEL.RESNETS.OUT_FEATURES = ["res4"]
    cfg.MODEL.RPN.IN_FEATURES = ["res4"]
    cfg.MODEL.ANCHOR_GENERATOR.SIZES = [[16, 32, 64]]
    cfg.MODEL.ROI_HEADS.NAME = "Res5ROIHeads"
    cfg.MODEL.ROI_HEADS.IN_FEATURES = ["res4"]
    cfg.MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE = 16
    cfg.MODEL.RPN.POST_NMS_TOPK_TEST = 20
    return _run_model(cfg, batch())


CASES = {
    f.__name__: f
    for f in (
        box_codes,
        box_losses,
        matching_and_sampling,
        anchors,
        pooling,
        top_proposals,
        rpn_and_roi_heads,
        output_layers,
        postprocessing,
        new_swin,
        swin,
        backbones,
        model_r50_fpn,
        model_small_giou,
        model_c4,
    )
}


def main():
    import detectron2

    if hasattr(detectron2, "__lite__"):
        raise SystemExit("record on the real Detectron2: put its checkout first in PYTHONPATH")
    cases = {name: numbers(case()) for name, case in CASES.items()}
    record = {"detectron2_commit": COMMIT, "torch": torch.__version__, "cases": cases}
    DATA_FILE.write_text(json.dumps(record, separators=(",", ":")) + "\n")
    print(f"wrote {DATA_FILE}")


if __name__ == "__main__":
    main()
