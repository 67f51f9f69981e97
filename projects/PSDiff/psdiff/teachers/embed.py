# SPDX-License-Identifier: Apache-2.0
"""A teacher's embeddings of all boxes of a data set; the work can be interrupted at any moment.

Shape shorthand in this file:
    n: boxes of a scene. M: boxes of all scenes. D: length of an embedding.

While a file is being made, the folder ``<file>.unfinished`` holds ``source.json``, which tells
data set and teacher apart, and one ``<first scene>.safetensors`` per chunk of scenes. Scenes go
through the network one by one, so an embedding does not depend on where the work was interrupted.
"""

import json
import logging
import os
import shutil
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from detectron2.config import CfgNode
from safetensors import SafetensorError
from safetensors.numpy import load_file, save
from torch import Tensor
from tqdm import tqdm

from person_search.utils.files import write_atomically
from psdiff.teachers.crops import BoxesOf, SceneCrops, training_boxes
from psdiff.teachers.embeddings import (
    TeacherEmbeddings,
    describe_source,
    unfinished_folder,
)
from psdiff.teachers.reid_net import TeacherNet

logger = logging.getLogger(__name__)

SCENES_PER_CHUNK = 200


@torch.no_grad()
def embed_scenes(
    net: TeacherNet,
    records: Sequence[dict],
    cfg: CfgNode,
    boxes_of: BoxesOf = training_boxes,
    mirrored: bool = True,
) -> Iterator[Tensor]:
    """Embeds boxes scene by scene.

    Args:
        net: in eval mode. boxes_of: which boxes of a record. mirrored: also their mirror images.

    Yields:
        For each record (n, 2, D), plain and mirrored, or (n, D); float32 on the CPU.
    """
    device = net.pixel_mean.device
    scenes = SceneCrops(records, net.crop_size, cfg.INPUT.FORMAT, boxes_of)
    for crops in scenes.loader(cfg.DATALOADER.NUM_WORKERS):
        crops = crops.to(device)
        if mirrored:
            yield torch.stack([net(crops).cpu(), net(crops.flip(3)).cpu()], dim=1)
        else:
            yield net(crops).cpu()


def compute_embeddings(
    net: TeacherNet,
    dataset: str,
    records: Sequence[dict],
    cfg: CfgNode,
    chunk: int = SCENES_PER_CHUNK,
) -> int:
    """Writes ``cfg.MODEL.PSDIFF.TEACHER.EMBEDDINGS``, going on where an earlier call ended.

    What was begun with another teacher or data set is thrown away, with a line in the log.

    Args:
        net: in eval mode. dataset: name of the data set. records: of it.
        chunk: scenes that are lost at most when the work is interrupted.

    Returns:
        M.
    """
    teacher = cfg.MODEL.PSDIFF.TEACHER
    path = teacher.EMBEDDINGS
    source = describe_source(dataset, records, net.weights_hash(), teacher.NAME, teacher.BACKBONE)
    parts = _Parts(unfinished_folder(path), {**source, "chunk": str(chunk)})
    starts = range(0, len(records), chunk)
    done = [start for start in starts if parts.has(start)]
    if done:
        logger.info("Going on: %d of %d chunks of scenes are there.", len(done), len(starts))
    with tqdm(total=len(records), desc="teacher embeddings", unit="scene") as bar:
        bar.update(sum(len(records[start : start + chunk]) for start in done))
        for start in (start for start in starts if start not in done):
            feats = []
            for scene in embed_scenes(net, records[start : start + chunk], cfg):
                feats.append(scene.numpy())
                bar.update()
            parts.write(start, np.concatenate(feats))
    feats = [parts.read(start) for start in starts]
    none = np.zeros((0, 2, cfg.MODEL.REID.EMBED_DIM), np.float16)
    joined = np.concatenate(feats) if feats else none
    TeacherEmbeddings.save(path, records, joined, source)
    parts.remove()
    return len(joined)


class _Parts:
    """What is done of a file, in a folder beside it.

    Args:
        folder: made if it is not there. source: what all parts must come from.
    """

    def __init__(self, folder: str, source: dict[str, str]) -> None:
        self.folder = folder
        stamp = os.path.join(folder, "source.json")
        if os.path.isdir(folder) and self._read_stamp(stamp) != source:
            logger.warning("%s is of another teacher or data set: starting anew.", folder)
            self.remove()
        os.makedirs(folder, exist_ok=True)
        write_atomically(stamp, json.dumps(source, indent=2).encode())

    @staticmethod
    def _read_stamp(path: str) -> dict[str, str] | None:
        try:
            with open(path) as file:
                return json.load(file)
        except (OSError, ValueError):
            return None

    def _path(self, start: int) -> str:
        return os.path.join(self.folder, f"{start:07d}.safetensors")

    def has(self, start: int) -> bool:
        """Whether the chunk that begins with this scene is there, undamaged."""
        try:
            self.read(start)
        except (OSError, SafetensorError, KeyError):
            return False
        return True

    def read(self, start: int) -> np.ndarray:
        """(n of the chunk, 2, D) float16."""
        return load_file(self._path(start))["embeddings"]

    def write(self, start: int, feats: np.ndarray) -> None:
        write_atomically(self._path(start), save({"embeddings": feats.astype(np.float16)}))

    def remove(self) -> None:
        shutil.rmtree(self.folder)
