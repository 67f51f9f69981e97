# SPDX-License-Identifier: Apache-2.0
"""Seeded inputs of the tests of ``detectron2.modeling``, and conversion of results to JSON."""

import hashlib

import torch
from detectron2.config import get_cfg
from detectron2.layers import ShapeSpec
from detectron2.structures import Boxes, ImageList, Instances


def numbers(value):
    """Converts nested tensors, boxes and instances to JSON types, floats to 7 digits."""
    if isinstance(value, Boxes):
        value = value.tensor
    if isinstance(value, Instances):
        return {"size": list(value.image_size), **numbers(value.get_fields())}
    if isinstance(value, torch.Tensor):
        value = value.detach().tolist()
    if isinstance(value, dict):
        return {str(k): numbers(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [numbers(v) for v in value]
    if isinstance(value, float):
        return float(f"{value:.7g}")
    return value


def digest(value):
    """Returns the shape, the sum, and a sum weighted by position of a tensor."""
    flat = value.detach().double().flatten()
    ramp = torch.linspace(-1, 1, len(flat), dtype=torch.float64)
    return {
        "shape": list(value.shape),
        "abs_sum": float(flat.abs().sum()),
        "ramp": float((flat.abs() * ramp).sum() / max(float(flat.abs().sum()), 1e-12)),
    }


def state(module):
    """Returns a hash of names and shapes, and the sum of each tensor."""
    names = hashlib.sha256()
    sums = []
    for name, value in module.state_dict().items():
        names.update(f"{name} {tuple(value.shape)} {value.dtype}\n".encode())
        sums.append(float(f"{value.double().abs().sum().item():.6g}"))
    trainable = sum(p.requires_grad for p in module.parameters())
    return {"names": names.hexdigest()[:16], "abs_sums": sums, "trainable": trainable}


def random_boxes(count, size, generator, smallest=4.0):
    """Returns (count, 4) boxes with sides of at least ``smallest`` in a square of side ``size``."""
    corner = torch.rand(count, 2, generator=generator) * (size - smallest)
    side = smallest + torch.rand(count, 2, generator=generator) * (size - smallest - corner)
    return torch.cat([corner, corner + side], dim=1)


def stage_inputs():
    """Returns images, features, their shapes and targets for RPN and ROI heads."""
    g = torch.Generator().manual_seed(7)
    sizes = [(64, 96), (80, 80)]
    images = ImageList(torch.rand(2, 3, 80, 96, generator=g), sizes)
    features = {"f": torch.rand(2, 16, 5, 6, generator=g)}
    targets = []
    for size, count in zip(sizes, (3, 2), strict=True):
        targets.append(
            Instances(
                size,
                gt_boxes=Boxes(random_boxes(count, 60, g, smallest=16)),
                gt_classes=torch.arange(count),
                gt_pids=torch.arange(count) + 10,
            )
        )
    return images, features, {"f": ShapeSpec(channels=16, stride=16)}, targets


def stage_cfg():
    """Returns a config of RPN and ROI heads for ``stage_inputs``."""
    cfg = get_cfg()
    cfg.MODEL.RPN.update(
        IN_FEATURES=["f"], CONV_DIMS=[8, -1], BATCH_SIZE_PER_IMAGE=64, PRE_NMS_TOPK_TRAIN=200
    )
    cfg.MODEL.RPN.update(POST_NMS_TOPK_TRAIN=60, POST_NMS_TOPK_TEST=12)
    cfg.MODEL.ROI_HEADS.update(
        IN_FEATURES=["f"], NUM_CLASSES=4, BATCH_SIZE_PER_IMAGE=16, SCORE_THRESH_TEST=0.0
    )
    cfg.MODEL.ROI_BOX_HEAD.update(NAME="FastRCNNConvFCHead", POOLER_RESOLUTION=3)
    cfg.MODEL.ROI_BOX_HEAD.update(NUM_CONV=1, CONV_DIM=8, NORM="BN", NUM_FC=1, FC_DIM=12)
    cfg.TEST.DETECTIONS_PER_IMAGE = 9
    return cfg


def small_cfg(backbone="build_resnet_fpn_backbone"):
    """Returns a config of a Faster R-CNN R50-FPN with an eighth of the usual width."""
    cfg = get_cfg()
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.PIXEL_STD = [57.0, 57.0, 57.0]
    cfg.MODEL.BACKBONE.update(NAME=backbone, FREEZE_AT=0)
    cfg.MODEL.RESNETS.update(NORM="BN", OUT_FEATURES=["res2", "res3", "res4", "res5"])
    cfg.MODEL.RESNETS.update(STEM_OUT_CHANNELS=8, RES2_OUT_CHANNELS=32, WIDTH_PER_GROUP=8)
    cfg.MODEL.FPN.update(IN_FEATURES=["res2", "res3", "res4", "res5"], OUT_CHANNELS=16)
    cfg.MODEL.FPN.FUSE_TYPE = "avg"
    cfg.MODEL.ANCHOR_GENERATOR.SIZES = [[16], [24], [32], [48], [64]]
    cfg.MODEL.RPN.update(IN_FEATURES=["p2", "p3", "p4", "p5", "p6"])
    cfg.MODEL.RPN.update(PRE_NMS_TOPK_TRAIN=100, PRE_NMS_TOPK_TEST=20)
    cfg.MODEL.ROI_HEADS.update(NAME="StandardROIHeads", IN_FEATURES=["p2", "p3", "p4", "p5"])
    cfg.MODEL.ROI_HEADS.update(NUM_CLASSES=3, SCORE_THRESH_TEST=0.0)
    cfg.MODEL.ROI_BOX_HEAD.update(NAME="FastRCNNConvFCHead", NUM_FC=2, FC_DIM=32)
    cfg.MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION = 7
    cfg.TEST.DETECTIONS_PER_IMAGE = 5
    return cfg


def faster_rcnn_r50_fpn_cfg():
    """Returns the config of the usual Faster R-CNN R50-FPN."""
    cfg, default = small_cfg(), get_cfg()
    cfg.MODEL.BACKBONE.FREEZE_AT = 2
    for key in ("NORM", "STEM_OUT_CHANNELS", "RES2_OUT_CHANNELS", "WIDTH_PER_GROUP"):
        cfg.MODEL.RESNETS[key] = default.MODEL.RESNETS[key]
    cfg.MODEL.FPN.update(OUT_CHANNELS=256, FUSE_TYPE="sum")
    cfg.MODEL.ANCHOR_GENERATOR.SIZES = [[32], [64], [128], [256], [512]]
    cfg.MODEL.RPN.update(PRE_NMS_TOPK_TRAIN=2000, PRE_NMS_TOPK_TEST=1000)
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = 80
    cfg.MODEL.ROI_BOX_HEAD.FC_DIM = default.MODEL.ROI_BOX_HEAD.FC_DIM
    cfg.MODEL.PIXEL_STD = default.MODEL.PIXEL_STD
    return cfg


def batch(empty=True):
    """Returns two images with boxes, and one without."""
    g = torch.Generator().manual_seed(17)
    out = []
    for (height, width), count in (((64, 96), 3), ((70, 50), 2), ((64, 64), 0))[: 2 + empty]:
        instances = Instances((height, width))
        instances.gt_boxes = Boxes(random_boxes(count, min(height, width), g, smallest=12))
        instances.gt_classes = torch.arange(count)
        image = (torch.rand(3, height, width, generator=g) * 255).byte()
        out.append({"image": image, "instances": instances})
    out[0].update(height=128, width=96)
    return out
