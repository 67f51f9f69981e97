# SPDX-License-Identifier: Apache-2.0
"""Person crops of a data set: cut out of scenes, held in memory, augmented for training.

Shape shorthand in this file: M crops of all scenes, (h, w) size of a crop.
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

from person_search.data.image_io import read_image_file
from person_search.data.samplers import sample_seed

_JPEG = [cv2.IMWRITE_JPEG_QUALITY, 95, cv2.IMWRITE_JPEG_SAMPLING_FACTOR, 0x111111]
"""Full resolution of colors as well: they tell people apart."""

Boxes = list[list[float]]
BoxesOf = Callable[[dict], Boxes]


def training_boxes(record: dict) -> Boxes:
    """XYXY boxes of all annotations of a record."""
    return [annotation["bbox"] for annotation in record["annotations"]]


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
        right = max(min(int(x2 + 0.5), width), left + 1)
        bottom = max(min(int(y2 + 0.5), height), top + 1)
        crop = image[None, :, top:bottom, left:right].float()
        crop = F.interpolate(crop, size, mode="bilinear", align_corners=False, antialias=True)
        crops[index] = crop[0].round().clamp(0, 255).to(torch.uint8)
    return crops


class SceneCrops(Dataset):
    """All crops of one scene per item, so that every image is read once.

    Args:
        records: of the data set. size: (h, w) of a crop. image_format: ``cfg.INPUT.FORMAT``.
        boxes_of: which boxes of a record are cut out.
    """

    def __init__(
        self,
        records: Sequence[dict],
        size: tuple[int, int],
        image_format: str,
        boxes_of: BoxesOf = training_boxes,
    ) -> None:
        self.records, self.size, self.image_format = records, size, image_format
        self.boxes_of = boxes_of

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> Tensor:
        record = self.records[index]
        picture = read_image_file(record["file_name"], self.image_format)
        image = torch.as_tensor(np.ascontiguousarray(picture.transpose(2, 0, 1)))
        return crop_image(image, self.boxes_of(record), self.size)

    def loader(self, num_workers: int) -> DataLoader:
        """Scene by scene, in order."""
        return DataLoader(self, batch_size=None, num_workers=num_workers)


class RawCrops:
    """M crops of (h, w) pixels as they are: 3 h w bytes each."""

    def __init__(self, count: int, size: tuple[int, int]) -> None:
        self._crops = torch.zeros(count, 3, *size, dtype=torch.uint8)
        self._filled = 0

    def append(self, crops: Tensor) -> None:
        """Takes over the next crops (n, 3, h, w) uint8."""
        self._crops[self._filled : self._filled + len(crops)] = crops
        self._filled += len(crops)

    def __len__(self) -> int:
        return self._filled

    def __getitem__(self, row: int) -> Tensor:
        """(3, h, w) uint8."""
        return self._crops[row]


class JpegCrops:
    """M crops compressed with quality 95, decoded one by one when they are taken."""

    def __init__(self) -> None:
        self._files: list[bytes] = []

    def append(self, crops: Tensor) -> None:
        """Takes over the next crops (n, 3, h, w) uint8."""
        for crop in crops:
            picture = np.ascontiguousarray(crop.permute(1, 2, 0).numpy())
            self._files.append(cv2.imencode(".jpg", picture, _JPEG)[1].tobytes())

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, row: int) -> Tensor:
        """(3, h, w) uint8."""
        picture = cv2.imdecode(np.frombuffer(self._files[row], np.uint8), cv2.IMREAD_COLOR)
        return torch.from_numpy(picture).permute(2, 0, 1).contiguous()


CropStore = RawCrops | JpegCrops


def read_crops(records: Sequence[dict], cfg: CfgNode) -> CropStore:
    """Crops of all boxes of all records, in their order.

    In memory: 55,000 crops of 256 x 128 pixels take 5.4 GB as they are
    (``TEACHER.CROPS_IN_MEMORY: raw``), about a fifth of it as ``jpeg``.
    """
    teacher = cfg.MODEL.PSDIFF.TEACHER
    size = tuple(teacher.CROP_SIZE)
    count = sum(len(record["annotations"]) for record in records)
    if teacher.CROPS_IN_MEMORY not in ("raw", "jpeg"):
        raise ValueError(
            f"MODEL.PSDIFF.TEACHER.CROPS_IN_MEMORY is '{teacher.CROPS_IN_MEMORY}'; allowed: 'raw', "
            "'jpeg'."
        )
    store = RawCrops(count, size) if teacher.CROPS_IN_MEMORY == "raw" else JpegCrops()
    scenes = SceneCrops(records, size, cfg.INPUT.FORMAT)
    for crops in tqdm(
        scenes.loader(cfg.DATALOADER.NUM_WORKERS), desc="cutting out persons", unit="scene"
    ):
        store.append(crops)
    return store


def augmentations(cfg: CfgNode) -> v2.Compose:
    """Flip, pad and crop, change of light, random erasing: of one crop (3, h, w) uint8.

    The border that is added repeats the edge and measures 10 pixels for crops 128 pixels wide.
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
    """(crop, pid, row) of augmented crops; what is random depends on the sample number alone.

    Args:
        crops: M crops. pids: (M,) int64.
        augment: applied to each crop. seed: of the run.
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
