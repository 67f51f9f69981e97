# SPDX-License-Identifier: Apache-2.0
"""Person crops of a data set, and batches of P identities with K crops each."""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from detectron2.data.detection_utils import read_image
from torch import Tensor
from torch.utils.data import Dataset, Sampler
from torchvision.transforms import v2

from person_search.schema import UNLABELED_PID


def crop_image(image: Tensor, boxes: Sequence[Sequence[float]], size: tuple[int, int]) -> Tensor:
    """Cuts boxes out of an image and resizes them.

    Args:
        image: (3, H, W) uint8. boxes: XYXY pixels; clipped to the image, at least one pixel wide.
        size: (h, w) of a crop.

    Returns:
        (n, 3, h, w) uint8.
    """
    height, width = image.shape[1:]
    crops = torch.zeros(len(boxes), 3, *size, dtype=torch.uint8)
    for index, (x1, y1, x2, y2) in enumerate(boxes):
        left, top = min(max(int(x1), 0), width - 1), min(max(int(y1), 0), height - 1)
        right, bottom = max(min(int(x2 + 0.5), width), left + 1), 0
        bottom = max(min(int(y2 + 0.5), height), top + 1)
        crop = image[None, :, top:bottom, left:right].float()
        crop = F.interpolate(crop, size, mode="bilinear", align_corners=False, antialias=True)
        crops[index] = crop[0].round().clamp(0, 255).to(torch.uint8)
    return crops


class SceneCrops(Dataset):
    """All crops of one scene per item, so that every picture is read once.

    Args:
        records: of the data set. size: (h, w) of a crop. image_format: ``cfg.INPUT.FORMAT``.
    """

    def __init__(self, records: Sequence[dict], size: tuple[int, int], image_format: str) -> None:
        self.records, self.size, self.image_format = records, size, image_format

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> Tensor:
        record = self.records[index]
        image = read_image(record["file_name"], self.image_format)
        image = torch.as_tensor(np.ascontiguousarray(image.transpose(2, 0, 1)))
        boxes = [annotation["bbox"] for annotation in record["annotations"]]
        return crop_image(image, boxes, self.size)


def augmentations(size: tuple[int, int]) -> v2.Compose:
    """Flip, pad and crop, light change, random erasing: of one crop (3, h, w) uint8."""
    pad = max(2, size[1] // 16)
    return v2.Compose(
        [
            v2.RandomHorizontalFlip(),
            v2.Pad(pad, padding_mode="edge"),
            v2.RandomCrop(size),
            v2.ColorJitter(brightness=0.2, contrast=0.15),
            v2.RandomErasing(p=0.5, scale=(0.02, 0.3)),
        ]
    )


class LabeledCrops(Dataset):
    """(crop, pid) pairs held in memory as uint8; augmented when taken.

    Args:
        crops: (M, 3, h, w) uint8. pids: (M,) int64. augment: applied to each crop.
    """

    def __init__(self, crops: Tensor, pids: Tensor, augment: v2.Transform | None) -> None:
        self.crops, self.pids, self.augment = crops, pids, augment

    def __len__(self) -> int:
        return len(self.crops)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        crop = self.crops[index]
        return (self.augment(crop) if self.augment else crop), self.pids[index]


class IdentityBatches(Sampler[list[int]]):
    """Endless batches: P identities with K crops each, and as many unlabelled crops as asked for.

    Args:
        pids: (M,) of all crops. ids_per_batch: P.
        crops_per_id: K; identities with fewer crops show some twice.
        unlabeled_per_batch: further crops without identity. seed: of the order.
    """

    def __init__(
        self,
        pids: Tensor,
        ids_per_batch: int,
        crops_per_id: int,
        unlabeled_per_batch: int = 0,
        seed: int = 0,
    ) -> None:
        pids = np.asarray(pids)
        self.rows = [np.flatnonzero(pids == p) for p in np.unique(pids[pids != UNLABELED_PID])]
        if len(self.rows) < 2:
            raise ValueError(
                "A teacher needs at least two labelled identities, but the data set has "
                f"{len(self.rows)}."
            )
        self.unlabeled = np.flatnonzero(pids == UNLABELED_PID)
        self.ids_per_batch = min(ids_per_batch, len(self.rows))
        self.crops_per_id = crops_per_id
        self.unlabeled_per_batch = unlabeled_per_batch if len(self.unlabeled) else 0
        self.seed = seed

    def __iter__(self) -> Iterator[list[int]]:
        rng = np.random.default_rng(self.seed)
        while True:
            order = rng.permutation(len(self.rows))
            for start in range(0, len(order) - self.ids_per_batch + 1, self.ids_per_batch):
                batch: list[int] = []
                for identity in order[start : start + self.ids_per_batch]:
                    rows = self.rows[identity]
                    few = len(rows) < self.crops_per_id
                    batch += rng.choice(rows, self.crops_per_id, replace=few).tolist()
                if self.unlabeled_per_batch:
                    batch += rng.choice(self.unlabeled, self.unlabeled_per_batch).tolist()
                yield batch
