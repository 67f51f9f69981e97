# SPDX-License-Identifier: Apache-2.0
"""Records config, structures and layers of the real Detectron2 for ``test_parity.py``.

Run it with the real package:

    PYTHONPATH=<checkout of Detectron2> python record_core.py

It writes the results of the functions in ``CASES`` to data/core.json.
"""

import json
from pathlib import Path

import numpy as np
import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.layers import (
    FrozenBatchNorm2d,
    ROIAlign,
    batched_nms,
    ciou_loss,
    cross_entropy,
    diou_loss,
    get_norm,
)
from detectron2.structures import (
    BitMasks,
    Boxes,
    BoxMode,
    ImageList,
    Instances,
    PolygonMasks,
    pairwise_ioa,
    pairwise_iou,
    pairwise_point_box_distance,
)
from detectron2.structures.boxes import matched_pairwise_iou, pairwise_intersection

COMMIT = "02b5c4e"
DATA_FILE = Path(__file__).parent / "data" / "core.json"


def plain(value):
    """Converts nested tensors and arrays to JSON types, floats to 7 digits."""
    if isinstance(value, torch.Tensor):
        value = value.detach().numpy()
    if isinstance(value, (np.ndarray, np.generic)):
        value = value.tolist()
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, float):
        return float(f"{value:.7g}")
    return value


def random_boxes(count, seed):
    """(count, 4) boxes of up to 60 pixels; the last one is empty."""
    boxes = torch.rand(count, 4, generator=torch.Generator().manual_seed(seed)) * 60
    boxes[:, 2:] += boxes[:, :2]
    boxes[-1, 2:] = boxes[-1, :2]
    return boxes


def flat_config(cfg, prefix=""):
    """Returns {dotted key: [type, value]}; a list cannot be merged into a tuple."""
    flat = {}
    for key, value in cfg.items():
        if isinstance(value, CfgNode):
            flat.update(flat_config(value, f"{prefix}{key}."))
        else:
            flat[prefix + key] = [type(value).__name__, repr(value)]
    return flat


def default_config():
    return flat_config(get_cfg())


def box_modes():
    boxes = random_boxes(4, 1)
    rotated = torch.rand(3, 5, generator=torch.Generator().manual_seed(2)) * 90
    pairs = [("XYXY_ABS", "XYWH_ABS"), ("XYWH_ABS", "XYXY_ABS"), ("XYWH_ABS", "XYWHA_ABS")]
    results = {}
    for source, target in pairs:
        modes = BoxMode[source], BoxMode[target]
        results[f"{source} {target}"] = [
            BoxMode.convert(boxes, *modes),
            BoxMode.convert(boxes.double().numpy(), *modes),
            BoxMode.convert([0.1, 0.2, 30.3, 40.4], *modes),
            BoxMode.convert((1, 2, 30, 40), *modes),
        ]
    results["rotated"] = BoxMode.convert(rotated, BoxMode.XYWHA_ABS, BoxMode.XYXY_ABS)
    return results


def overlaps():
    many, few = Boxes(random_boxes(6, 3)), Boxes(random_boxes(4, 4))
    points = random_boxes(5, 5)[:, :2]
    return {
        "intersection": pairwise_intersection(many, few),
        "iou": pairwise_iou(many, few),
        "ioa": pairwise_ioa(many, few),
        "distance": pairwise_point_box_distance(points, few),
        "matched": matched_pairwise_iou(many[:3], few[:3]),
        "none": pairwise_iou(many[:0], few).shape,
    }


def boxes_methods():
    boxes = Boxes(random_boxes(6, 6) - 10)
    clipped = boxes.clone()
    clipped.clip((50, 40))
    scaled = boxes.clone()
    scaled.scale(2.0, 0.5)
    return {
        "area": boxes.area(),
        "centers": boxes.get_centers(),
        "inside": boxes.inside_box((50, 40)),
        "inside_by_10": boxes.inside_box((50, 40), 10),
        "nonempty": boxes.nonempty(threshold=5.0),
        "clipped": clipped.tensor,
        "scaled": scaled.tensor,
        "text": str(Boxes([[1.0, 2.0, 3.0, 4.0]])),
    }


def image_lists():
    images = [torch.full((3, 7, 5), 1.0), torch.full((3, 4, 9), 2.0)]
    constraints = {"square_size": 16, "size_divisibility": 5}
    lists = [
        ImageList.from_tensors(images, 4, pad_value=-1.0),
        ImageList.from_tensors(images[:1], 4),
        ImageList.from_tensors(images, padding_constraints=constraints),
    ]
    return [[i.tensor.shape, i.tensor.sum(dim=(1, 2, 3)), i.image_sizes] for i in lists]


def instances_text():
    instances = Instances((3, 4), scores=torch.tensor([0.5, 0.25]), names=["a", "b"])
    return [str(instances), str(instances[1]), str(Instances.cat([instances, instances]))]


def masks():
    polygons = [
        [np.array([1.0, 1, 8, 1, 8, 6])],
        [np.array([1.0, 1, 3, 1, 3, 6]), np.array([5.0, 5, 9, 5, 9, 9, 5, 9])],
    ]
    bits = BitMasks.from_polygon_masks(polygons, 10, 12)
    lines = PolygonMasks(polygons)
    return {
        "pixels": bits.tensor.sum(dim=(1, 2)),
        "pixel_boxes": bits.get_bounding_boxes().tensor,
        "areas": lines.area(),
        "polygon_boxes": lines.get_bounding_boxes().tensor,
        "picked": [len(lines[torch.tensor([True, False])]), len(lines[[0, 1]]), len(bits[1])],
    }


def box_losses():
    boxes = random_boxes(6, 7)[:5], random_boxes(6, 8)[:5]
    return {
        name: {reduction: loss(*boxes, reduction) for reduction in ("none", "mean", "sum")}
        | {"empty": loss(boxes[0][:0], boxes[1][:0], "mean")}
        for name, loss in (("diou", diou_loss), ("ciou", ciou_loss))
    }


def suppression():
    boxes = random_boxes(12, 9).repeat(2, 1) + 0.5
    generator = torch.Generator().manual_seed(10)
    scores = torch.rand(24, generator=generator)
    return [batched_nms(boxes, scores, torch.arange(24) % 3, t) for t in (0.1, 0.5, 0.9)]


def roi_align():
    features = torch.arange(2 * 2 * 6 * 7, dtype=torch.float32).reshape(2, 2, 6, 7).sin()
    rois = torch.tensor([[0, 1.0, 1.0, 9.0, 7.0], [1, 3.0, 2.0, 3.0, 9.0], [1, -5.0, 0, 40.0, 4.0]])
    return {
        str(aligned): [
            ROIAlign((2, 3), 0.5, ratio, aligned=aligned)(features, rois) for ratio in (0, 2)
        ]
        for aligned in (True, False)
    } | {"text": str(ROIAlign((2, 3), 0.5, 0))}


def layer_text(layer):
    """Returns the text of a layer without the additions of newer versions of torch."""
    return str(layer).replace("affine=True, bias=True", "affine=True")


def frozen_norm():
    norm = torch.nn.BatchNorm2d(3)
    generator = torch.Generator().manual_seed(11)
    for name, value in norm.state_dict().items():
        if name != "num_batches_tracked":
            value.copy_(torch.rand(3, generator=generator) + 0.5)
    x = torch.randn(2, 3, 2, 2, generator=generator)
    frozen = FrozenBatchNorm2d.convert_frozen_batchnorm(norm)
    learned = FrozenBatchNorm2d.convert_frozenbatchnorm2d_to_batchnorm2d(frozen)
    return {
        "fixed": frozen(x),
        "with_gradient": frozen(x.clone().requires_grad_()),
        "thawed": learned.eval()(x),
        "names": [list(m.state_dict()) for m in (FrozenBatchNorm2d(3), frozen, learned)],
        "text": [layer_text(frozen), layer_text(learned)],
    }


def norms():
    names = ["BN", "SyncBN", "FrozenBN", "GN", "LN", "nnSyncBN"]
    x = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(12))
    return {
        "text": [layer_text(get_norm(name, 64)) for name in names],
        "names": {name: list(get_norm(name, 64).state_dict()) for name in names},
        "none": [get_norm("", 4), get_norm(None, 4)],
        "layer": get_norm("LN", 3)(x),
    }


def empty_cross_entropy():
    logits, targets = torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64)
    return [cross_entropy(logits, targets), cross_entropy(logits, targets, reduction="sum")]


CASES = {
    f.__name__: f
    for f in (
        default_config,
        box_modes,
        overlaps,
        boxes_methods,
        image_lists,
        instances_text,
        masks,
        box_losses,
        suppression,
        roi_align,
        frozen_norm,
        norms,
        empty_cross_entropy,
    )
}


def write_record(data_file, cases):
    """Runs the cases on the real Detectron2 and writes their results."""
    import detectron2

    if hasattr(detectron2, "__lite__"):
        raise SystemExit("record on the real Detectron2: put its checkout first in PYTHONPATH")
    record = {
        "detectron2_commit": COMMIT,
        "torch": torch.__version__,
        "cases": {name: plain(case()) for name, case in cases.items()},
    }
    data_file.write_text(json.dumps(record, separators=(",", ":")) + "\n")
    print(f"wrote {data_file}")


if __name__ == "__main__":
    write_record(DATA_FILE, CASES)
