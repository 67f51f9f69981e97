# SPDX-License-Identifier: Apache-2.0
"""A real person search model of 6 k parameters and a data set of a few small images, for tests.

Shape shorthand: N images, D embedding, (h, w) cells of stride 8, n boxes.

Importing this module registers ``TinyPersonSearch`` in META_ARCH_REGISTRY.
"""

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from detectron2.config import CfgNode, configurable, get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.modeling import META_ARCH_REGISTRY, detector_postprocess
from detectron2.structures import Boxes, BoxMode, ImageList, Instances
from PIL import Image
from torch import nn
from torchvision.ops import nms, roi_align

from person_search.config import add_person_search_config
from person_search.schema import Query, SearchProtocol

STRIDE = 8
BOX_SIZE = (48.0, 96.0)  # unit of predicted width and height, pixels
COLORS = ((220, 40, 40), (40, 60, 220), (230, 200, 40))  # one per identity
IMAGE_SIZE = (96, 160)  # height, width of the images


@META_ARCH_REGISTRY.register()
class TinyPersonSearch(nn.Module):
    """Every cell says whether it is a person's center, and how large the person is."""

    @configurable
    def __init__(self, *, embed_dim: int, num_pids: int, pixel_mean, pixel_std, jitter: float):
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 16, 4, stride=4),
            nn.ReLU(),
            nn.Conv2d(16, 16, 3, stride=2, padding=1),
            nn.ReLU(),
        )
        self.detect = nn.Conv2d(16, 3, 5, padding=2)  # objectness, log width, log height
        self.embed = nn.Linear(16 * 6, embed_dim)
        self.classify = nn.Linear(embed_dim, max(num_pids, 1))
        self.jitter = jitter  # in training boxes are moved by so many pixels: uses the global RNG
        self.register_buffer("pixel_mean", torch.tensor(pixel_mean).view(-1, 1, 1), False)
        self.register_buffer("pixel_std", torch.tensor(pixel_std).view(-1, 1, 1), False)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict:
        return {
            "embed_dim": cfg.MODEL.REID.EMBED_DIM,
            "num_pids": cfg.MODEL.REID.NUM_PIDS,
            "pixel_mean": cfg.MODEL.PIXEL_MEAN,
            "pixel_std": [58.0] * 3,
            "jitter": 2.0,
        }

    def forward(self, batched_inputs: list[dict]) -> dict[str, torch.Tensor] | list[dict]:
        if not self.training:
            return self.inference(batched_inputs)
        _, features = self._features(batched_inputs)
        predictions = self.detect(features)
        boxes = [x["instances"].gt_boxes.tensor.to(features.device) for x in batched_inputs]
        pids = torch.cat([x["instances"].gt_pids for x in batched_inputs]).to(features.device)
        target, size = torch.zeros_like(predictions[:, 0]), predictions.new_zeros(())
        for i, image_boxes in enumerate(boxes):
            centers = (image_boxes[:, :2] + image_boxes[:, 2:]) / 2 / STRIDE
            x, y = centers.long().unbind(1)
            x, y = x.clamp(0, target.shape[2] - 1), y.clamp(0, target.shape[1] - 1)
            target[i, y, x] = 1
            wanted = (image_boxes[:, 2:] - image_boxes[:, :2]) / image_boxes.new_tensor(BOX_SIZE)
            size = size + (predictions[i, 1:, y, x].t() - wanted.log()).abs().sum()
        moved = [b + self.jitter * (torch.rand_like(b) - 0.5) for b in boxes]
        logits = self.classify(self.embed_boxes(features, moved))
        known = pids >= 0
        return {
            "loss_cls": F.binary_cross_entropy_with_logits(predictions[:, 0], target) * 10,
            "loss_box": size / max(len(pids), 1),
            "loss_reid": F.cross_entropy(10 * logits[known], pids[known], reduction="sum")
            / max(int(known.sum()), 1),
        }

    def inference(
        self,
        batched_inputs: list[dict],
        detected_instances: list[Instances] | None = None,
        do_postprocess: bool = True,
    ) -> list[dict] | list[Instances]:
        images, features = self._features(batched_inputs)
        if detected_instances is None:
            found = self._detect(features, images.image_sizes)
        else:
            found = [x.to(features.device) for x in detected_instances]
        for instances, feats in zip(found, self._embed(features, found), strict=True):
            instances.reid_feats = feats
        if not do_postprocess:
            return found
        queries = [x.get("queries", Instances(s, pred_boxes=Boxes(torch.zeros(0, 4))))
                   for x, s in zip(batched_inputs, images.image_sizes, strict=True)]  # fmt: skip
        query_feats = self._embed(features, [q.to(features.device) for q in queries])
        return [
            {
                "instances": detector_postprocess(i, x.get("height", s[0]), x.get("width", s[1])),
                "query_feats": feats,
            }
            for i, x, s, feats in zip(
                found, batched_inputs, images.image_sizes, query_feats, strict=True
            )
        ]

    def embed_boxes(self, features: torch.Tensor, boxes: list[torch.Tensor]) -> torch.Tensor:
        """Returns (n, D) unit vectors of all boxes, image by image."""
        regions = roi_align(features, boxes, (3, 2), 1 / STRIDE, 2, aligned=True)
        return F.normalize(self.embed(regions.flatten(1)), dim=1)

    def _embed(self, features: torch.Tensor, items: list[Instances]) -> list[torch.Tensor]:
        boxes = [x.pred_boxes.tensor for x in items]
        return list(self.embed_boxes(features, boxes).split([len(b) for b in boxes]))

    def _features(self, batched_inputs: list[dict]) -> tuple[ImageList, torch.Tensor]:
        device = self.pixel_mean.device
        images = [(x["image"].to(device) - self.pixel_mean) / self.pixel_std
                  for x in batched_inputs]  # fmt: skip
        image_list = ImageList.from_tensors(images, STRIDE)
        return image_list, self.features(image_list.tensor)

    def _detect(self, features: torch.Tensor, sizes: list[tuple[int, int]]) -> list[Instances]:
        predictions = self.detect(features)
        h, w = predictions.shape[2:]
        y, x = torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij")
        centers = (torch.stack((x, y), 2).view(-1, 2).to(features) + 0.5) * STRIDE
        found = []
        for prediction, size in zip(predictions, sizes, strict=True):
            scores = prediction[0].flatten().sigmoid()
            half = prediction[1:].flatten(1).t().clamp(-4, 2).exp() * centers.new_tensor(BOX_SIZE)
            boxes = Boxes(torch.cat((centers - half / 2, centers + half / 2), 1))
            boxes.clip(size)
            keep = nms(boxes.tensor, scores, 0.4)[:10]
            found.append(
                Instances(
                    size,
                    pred_boxes=boxes[keep],
                    scores=scores[keep],
                    pred_classes=torch.zeros_like(keep),
                )
            )
        return found


def write_tiny_dataset(folder: Path, num_images: int = 6) -> list[dict]:
    """Writes JPEGs with two of three persons each, as plain colored boxes on a noisy background.

    Returns:
        The records, with queries: the first person of each image.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    height, width = IMAGE_SIZE
    records = []
    for i in range(num_images):
        image = rng.integers(90, 130, (height, width, 3), dtype=np.uint8)
        annotations = []
        for slot, pid in enumerate((i % 3, (i + 1) % 3)):
            x = int(rng.integers(5, 20)) + 75 * slot
            y, w, h = int(rng.integers(2, 10)), int(rng.integers(34, 42)), int(rng.integers(66, 80))
            image[y : y + h, x : x + w] = COLORS[pid]
            annotations.append(
                {
                    "bbox": [float(x), float(y), float(x + w), float(y + h)],
                    "bbox_mode": BoxMode.XYXY_ABS,
                    "category_id": 0,
                    "person_id": pid,
                }
            )
        path = folder / f"s{i + 1}.jpg"
        Image.fromarray(image).save(path, quality=95)
        query = {k: annotations[0][k] for k in ("bbox", "bbox_mode")}
        records.append(
            {
                "file_name": str(path),
                "image_id": i,
                "height": height,
                "width": width,
                "cam_id": None,
                "annotations": annotations,
                "queries": [{"query_id": i, **query}],
            }
        )
    return records


def tiny_protocol(records: list[dict]) -> SearchProtocol:
    """Every image but the query's own is its gallery."""
    queries, query, image, box = [], [], [], []
    for q, record in enumerate(records):
        person = record["annotations"][0]
        queries.append(
            Query(q, record["image_id"], tuple(person["bbox"]), person["person_id"], None)
        )
        for other in records:
            for annotation in other["annotations"]:
                if other is not record and annotation["person_id"] == person["person_id"]:
                    query.append(q)
                    image.append(other["image_id"])
                    box.append(annotation["bbox"])
    return SearchProtocol(
        "all",
        queries,
        None,
        np.array(query, np.int32),
        np.array(image, np.int32),
        np.array(box, np.float32).reshape(-1, 4),
        np.array([[record["image_id"]] for record in records], np.int32),
    )


def register_tiny_dataset(name: str, folder: Path, num_images: int = 6) -> list[dict]:
    """Writes and registers a data set, replacing one of the same name."""
    records = write_tiny_dataset(folder, num_images)
    unregister_dataset(name)
    DatasetCatalog.register(name, lambda: records)
    MetadataCatalog.get(name).set(
        evaluator_type="person_search",
        thing_classes=["person"],
        search_protocols={"all": lambda: tiny_protocol(records)},
        default_search_protocols=("all",),
    )
    return records


def unregister_dataset(name: str) -> None:
    if name in DatasetCatalog.list():
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def tiny_cfg(output_dir: Path | str, dataset: str) -> CfgNode:
    """Returns a config that trains the tiny model for a few iterations on a CPU."""
    cfg = get_cfg()
    add_person_search_config(cfg)
    cfg.MODEL.META_ARCHITECTURE = "TinyPersonSearch"
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.WEIGHTS = ""
    cfg.MODEL.REID.EMBED_DIM = 8
    cfg.DATASETS.TRAIN = (dataset,)
    cfg.DATASETS.TEST = (dataset,)
    cfg.DATALOADER.NUM_WORKERS = 0
    cfg.DATALOADER.ASPECT_RATIO_GROUPING = False
    cfg.INPUT.MIN_SIZE_TRAIN = (64, 80, 96)
    cfg.INPUT.MIN_SIZE_TEST = 96
    cfg.SOLVER.IMS_PER_BATCH = 2
    cfg.SOLVER.OPTIMIZER = "AdamW"
    cfg.SOLVER.BASE_LR = 0.003
    cfg.SOLVER.MAX_ITER = 8
    cfg.SOLVER.WARMUP_ITERS = 2
    cfg.SOLVER.STEPS = (6,)
    cfg.SOLVER.CHECKPOINT_PERIOD = 4
    cfg.TEST.PERSON_SEARCH.SCORE_THRESH = 0.2
    cfg.SEED = 1
    cfg.OUTPUT_DIR = str(output_dir)
    return cfg
