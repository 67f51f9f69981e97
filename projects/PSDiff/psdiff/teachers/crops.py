# SPDX-License-Identifier: Apache-2.0
"""Person crops of a data set: cropped from scenes, kept in memory, augmented for training.

Shape shorthand in this file: M crops of all scenes, (h, w) size of a crop.

An unreadable scene raises BadImageError with its file name. With ``DATALOADER.ON_BAD_IMAGE skip``
it is logged and its crops are missing.
"""

from collections.abc import Callable, Sequence

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from detectron2.config import CfgNode
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2
from tqdm import tqdm

from person_search.data import RecordImageReader
from person_search.data.samplers import sample_seed
from psdiff.config import check_choice

_JPEG = [cv2.IMWRITE_JPEG_QUALITY, 95, cv2.IMWRITE_JPEG_SAMPLING_FACTOR, 0x111111]
"""High quality with full color resolution: colors distinguish persons."""

Boxes = list[list[float]]
BoxesOf = Callable[[dict], Boxes]


def training_boxes(record: dict) -> Boxes:
    """Returns the XYXY boxes of all annotations of a record."""
    return [annotation["bbox"] for annotation in record["annotations"]]


def crop_image(image: Tensor, boxes: Sequence[Sequence[float]], size: tuple[int, int]) -> Tensor:
    """Crops boxes from an image and resizes them.

    Args:
        image: Image (3, H, W) uint8.
        boxes: XYXY boxes in pixels; clipped to the image, at least one pixel wide and high.
        size: Size (h, w) of a crop.

    Returns:
        Crops (n, 3, h, w) uint8.
    """
    height, width = image.shape[1:]
    crops = torch.zeros(len(boxes), 3, *size, dtype=torch.uint8)
    for index, (x1, y1, x2, y2) in enumerate(boxes):
        left, top = min(max(int(x1), 0), width - 1), min(max(int(y1), 0), height - 1)
        right = max(min(int(x2 + 0.5), width), left + 1)
        bottom = max(min(int(y2 + 0.5), height), top + 1)
        crop = image[None, :, top:bottom, left:right].float()
        crop = F.interpolate(crop, size, mode="bilinear", align_corners=False, antialias=True)
        crops[index] = crop[0].round().clamp(0, 255).to(torch.uint8)
    return crops


class SceneCrops(Dataset):
    """Data set with all crops of one scene per item, so that each image is read once.

    An item is (n, 3, h, w) uint8, or None for an unreadable image that is skipped.

    Args:
        records: Records of the data set.
        size: Size (h, w) of a crop.
        cfg: Config with the image format and ``DATALOADER.ON_BAD_IMAGE``.
        boxes_of: Returns the boxes of a record that are cropped.
    """

    def __init__(
        self,
        records: Sequence[dict],
        size: tuple[int, int],
        cfg: CfgNode,
        boxes_of: BoxesOf = training_boxes,
    ) -> None:
        self.records, self.size, self.boxes_of = records, size, boxes_of
        self.read = RecordImageReader(cfg.INPUT.FORMAT, cfg.DATALOADER.ON_BAD_IMAGE)

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> Tensor | None:
        record = self.records[index]
        image = self.read(record)
        if image is None:
            return None
        image = torch.as_tensor(np.ascontiguousarray(image.transpose(2, 0, 1)))
        return crop_image(image, self.boxes_of(record), self.size)

    def loader(self, num_workers: int) -> DataLoader:
        """Returns a loader that yields the scenes in order."""
        return DataLoader(self, batch_size=None, num_workers=num_workers)


class CropStore:
    """All training crops in memory; an item is (3, h, w) uint8.

    Args:
        count: Maximum number of crops.
        size: Size (h, w) of a crop.
        kind: ``raw``, 3 h w bytes per crop, or ``jpeg``, decoded on access.
    """

    def __init__(self, count: int, size: tuple[int, int], kind: str) -> None:
        check_choice("TEACHER.CROPS_IN_MEMORY", kind, ("raw", "jpeg"))
        self._pixels = torch.zeros(count, 3, *size, dtype=torch.uint8) if kind == "raw" else None
        self._files: list[bytes] = []
        self._filled = 0

    def append(self, crops: Tensor) -> None:
        """Appends crops (n, 3, h, w) uint8."""
        if self._pixels is None:
            for crop in crops:
                image = np.ascontiguousarray(crop.permute(1, 2, 0).numpy())
                self._files.append(cv2.imencode(".jpg", image, _JPEG)[1].tobytes())
        else:
            self._pixels[self._filled : self._filled + len(crops)] = crops
        self._filled += len(crops)

    def __len__(self) -> int:
        return self._filled

    def __getitem__(self, row: int) -> Tensor:
        if self._pixels is not None:
            return self._pixels[row]
        image = cv2.imdecode(np.frombuffer(self._files[row], np.uint8), cv2.IMREAD_COLOR)
        return torch.from_numpy(image).permute(2, 0, 1).contiguous()


def read_crops(records: Sequence[dict], cfg: CfgNode) -> tuple[CropStore, Tensor]:
    """Reads the crops of all boxes of all records, in order.

    Args:
        records: Records of the training set.
        cfg: Config with ``MODEL.PSDIFF.TEACHER``.

    Returns:
        M crops and their person ids (M,) int64, without those of skipped images.
    """
    teacher = cfg.MODEL.PSDIFF.TEACHER
    size = tuple(teacher.CROP_SIZE)
    count = sum(len(record["annotations"]) for record in records)
    store, pids = CropStore(count, size, teacher.CROPS_IN_MEMORY), []
    loader = SceneCrops(records, size, cfg).loader(cfg.DATALOADER.NUM_WORKERS)
    scenes = tqdm(loader, desc="cropping persons", unit="scene")
    for record, crops in zip(records, scenes, strict=True):
        if crops is not None:
            store.append(crops)
            pids += [annotation["person_id"] for annotation in record["annotations"]]
    return store, torch.tensor(pids, dtype=torch.int64)


def augmentations(cfg: CfgNode) -> v2.Compose:
    """Builds the augmentation of a crop (3, h, w) uint8.

    It consists of flip, random crop after padding, color jitter and random erasing. The padding
    repeats the edge and measures 10 pixels for crops 128 pixels wide.
    """
    teacher = cfg.MODEL.PSDIFF.TEACHER
    size = tuple(teacher.CROP_SIZE)
    pad = max(2, round(size[1] * 10 / 128))
    brightness, contrast = teacher.COLOR_JITTER
    chance, smallest, largest = teacher.RANDOM_ERASING
    return v2.Compose(
        [
            v2.RandomHorizontalFlip(),
            v2.Pad(pad, padding_mode="edge"),
            v2.RandomCrop(size),
            v2.ColorJitter(brightness=brightness, contrast=contrast),
            v2.RandomErasing(p=chance, scale=(smallest, largest)),
        ]
    )


class TrainingCrops(Dataset):
    """Augmented crops as (crop, pid, row); the augmentation depends on the sample number only.

    Args:
        crops: M crops.
        pids: Person ids (M,) int64.
        augment: Augmentation applied to each crop.
        seed: Seed of the run.
    """

    def __init__(
        self, crops: CropStore, pids: Tensor, augment: Callable[[Tensor], Tensor], seed: int
    ) -> None:
        self.crops, self.pids, self.augment, self.seed = crops, pids, augment, seed

    def __len__(self) -> int:
        return len(self.crops)

    def __getitem__(self, sample: tuple[int, int]) -> tuple[Tensor, Tensor, int]:
        row, number = sample
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(sample_seed(self.seed, number))
            return self.augment(self.crops[row]), self.pids[row], row
