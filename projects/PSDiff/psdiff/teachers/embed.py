# SPDX-License-Identifier: Apache-2.0
"""Computes the teacher embeddings of all boxes of a data set; can be interrupted at any time.

Shape shorthand in this file:
    n: boxes of a scene. M: boxes of all scenes. D: embedding dimension.

In progress, the folder ``<file>.unfinished`` holds ``source.json``, which identifies data set and
teacher, and one ``<first scene>.safetensors`` per chunk of scenes. Scenes go through the network
one by one, so an embedding does not depend on where the work was interrupted.
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
from psdiff.teachers.folder import read_stamp
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
        net: Teacher in eval mode.
        records: Records of the data set.
        cfg: Config with image format and ``DATALOADER``.
        boxes_of: Returns the boxes of a record.
        mirrored: Also embeds the mirror images.

    Yields:
        Embeddings of each record (n, 2, D), plain and mirrored, or (n, D); float32 on the CPU. NaN
        for the boxes of an unreadable image that is skipped.
    """
    scenes = SceneCrops(records, net.crop_size, cfg, boxes_of)
    loader = scenes.loader(cfg.DATALOADER.NUM_WORKERS)
    for record, crops in zip(records, loader, strict=True):
        if crops is None:
            shape = (len(boxes_of(record)), *([2] if mirrored else []), net.neck.num_features)
            yield torch.full(shape, torch.nan)
            continue
        crops = crops.to(net.pixel_mean.device)
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
    """Writes ``cfg.MODEL.PSDIFF.TEACHER.EMBEDDINGS``; continues where an earlier call ended.

    Unfinished work of another teacher or data set is discarded with a warning.

    Args:
        net: Teacher in eval mode.
        dataset: Name of the data set.
        records: Records of the data set.
        cfg: Config with ``MODEL.PSDIFF.TEACHER``.
        chunk: Number of scenes that are lost at most when the work is interrupted.

    Returns:
        The number of boxes M.
    """
    teacher = cfg.MODEL.PSDIFF.TEACHER
    path = teacher.EMBEDDINGS
    source = describe_source(dataset, records, net.weights_hash(), teacher.NAME, teacher.BACKBONE)
    parts = _Parts(unfinished_folder(path), {**source, "chunk": str(chunk)})
    starts = range(0, len(records), chunk)
    done = [start for start in starts if parts.has(start)]
    if done:
        logger.info("Continuing: %d of %d chunks of scenes are complete.", len(done), len(starts))
    with tqdm(total=len(records), desc="teacher embeddings", unit="scene") as bar:
        bar.update(sum(len(records[start : start + chunk]) for start in done))
        for start in (start for start in starts if start not in done):
            feats = []
            for scene in embed_scenes(net, records[start : start + chunk], cfg):
                feats.append(scene.numpy())
                bar.update()
            parts.write(start, np.concatenate(feats))
    empty = np.zeros((0, 2, cfg.MODEL.REID.EMBED_DIM), np.float16)
    joined = np.concatenate([empty, *map(parts.read, starts)])
    TeacherEmbeddings.save(path, records, joined, source)
    shutil.rmtree(parts.folder)
    missing = int(np.isnan(joined[:, 0, 0]).sum())
    if missing:
        logger.warning(
            "%d of %d boxes have no embedding, because their images are unreadable.",
            missing, len(joined),
        )  # fmt: skip
    return len(joined)


class _Parts:
    """Completed chunks of a file, in a folder beside it.

    Args:
        folder: Folder, created if necessary.
        source: Data set and teacher that all chunks must come from.
    """

    def __init__(self, folder: str, source: dict[str, str]) -> None:
        self.folder = folder
        stamp = os.path.join(folder, "source.json")
        if os.path.isdir(folder) and read_stamp(stamp) != source:
            logger.warning("%s belongs to another teacher or data set: starting over.", folder)
            shutil.rmtree(folder)
        os.makedirs(folder, exist_ok=True)
        write_atomically(stamp, json.dumps(source, indent=2).encode())

    def _path(self, start: int) -> str:
        return os.path.join(self.folder, f"{start:07d}.safetensors")

    def has(self, start: int) -> bool:
        """Returns whether the chunk that begins with this scene exists and is undamaged."""
        try:
            self.read(start)
        except (OSError, SafetensorError, KeyError):
            return False
        return True

    def read(self, start: int) -> np.ndarray:
        """Returns the embeddings of a chunk, (n, 2, D) float16."""
        return load_file(self._path(start))["embeddings"]

    def write(self, start: int, feats: np.ndarray) -> None:
        """Writes the embeddings of a chunk, (n, 2, D)."""
        write_atomically(self._path(start), save({"embeddings": feats.astype(np.float16)}))
