# SPDX-License-Identifier: Apache-2.0
"""The file of teacher embeddings: one for every training box and for its mirror image.

Shape shorthand in this file:
    M: boxes of all training images. D: length of an embedding.

The safetensors file holds ``embeddings`` (M, 2, D) float16 (plain, mirrored), ``image_id`` (M,)
int64 in the order of the boxes in the records, and metadata: ``format``, ``dataset``,
``boxes_hash``, ``teacher_hash``, ``teacher`` (method) and ``backbone``.
"""

import hashlib
import os
from collections.abc import Sequence

import numpy as np
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog
from safetensors.numpy import save

from person_search.utils.files import write_atomically
from person_search.utils.weight_files import open_safetensors

FORMAT = "person_search.teacher_embeddings.v1"
TEACHER_FORMAT = "person_search.teacher.v1"
KEY = "MODEL.PSDIFF.TEACHER.EMBEDDINGS"
_HOW_TO = "Write it with projects/PSDiff/tools/compute_embeddings.py."


def boxes_hash(records: Sequence[dict]) -> str:
    """Short hash of all boxes and their images: two data sets with the same one are the same."""
    digest = hashlib.sha256()
    for record in records:
        digest.update(f"{record['image_id']}|{os.path.basename(record['file_name'])}|".encode())
        boxes = [annotation["bbox"] for annotation in record["annotations"]]
        digest.update(np.asarray(boxes, dtype=np.float32).round(2).tobytes())
    return digest.hexdigest()[:16]


class TeacherEmbeddings:
    """Teacher embeddings by image.

    Args:
        feats: (M, 2, D) of unit length: plain and mirrored.
        image_ids: (M,) image of each row, rows of an image in the order of its annotations.
    """

    def __init__(self, feats: np.ndarray, image_ids: np.ndarray) -> None:
        self.feats = feats
        order = np.argsort(image_ids, kind="stable")
        ids, starts = np.unique(image_ids[order], return_index=True)
        self._rows = dict(zip(ids.tolist(), np.split(order, starts[1:]), strict=True))

    @classmethod
    def load(
        cls, path: str, datasets: Sequence[str], embed_dim: int, how_to: str = _HOW_TO
    ) -> "TeacherEmbeddings":
        """Reads a file and refuses it unless it belongs to the data set and the config.

        Args:
            path: ``cfg.MODEL.PSDIFF.TEACHER.EMBEDDINGS``. datasets: ``cfg.DATASETS.TRAIN``.
            embed_dim: ``cfg.MODEL.REID.EMBED_DIM``.
            how_to: what a message says about making such a file.

        Raises:
            FileNotFoundError: no such file. ValueError: it is of another data set or another size.
        """
        meta, feats, image_ids = read_file(path, datasets, embed_dim, how_to)
        records = DatasetCatalog.get(datasets[0])
        expected = boxes_hash(records)
        if meta["boxes_hash"] != expected:
            raise ValueError(
                f"{KEY}: '{path}' was written for data set '{meta['dataset']}' (hash of the boxes "
                f"{meta['boxes_hash']}), but DATASETS.TRAIN is '{datasets[0]}' ({expected}). "
                f"Set the key to another file, or replace this one. {how_to}"
            )
        count = sum(len(record["annotations"]) for record in records)
        if feats.shape[:2] != (count, 2) or image_ids.shape != (count,):
            raise ValueError(
                f"{KEY}: '{path}' has embeddings of shape {feats.shape} for the {count} boxes of "
                f"'{datasets[0]}'. {how_to}"
            )
        return cls(feats, image_ids)

    @staticmethod
    def save(path: str, records: Sequence[dict], feats: np.ndarray, meta: dict[str, str]) -> None:
        """Writes the file as a whole or not at all.

        Args:
            feats: (M, 2, D) in the order of ``records`` and of their annotations.
            meta: of :func:`describe_source`.
        """
        counts = [len(record["annotations"]) for record in records]
        image_ids = np.repeat([record["image_id"] for record in records], counts)
        tensors: dict[str, np.ndarray] = {
            "embeddings": feats.astype(np.float16),
            "image_id": image_ids.astype(np.int64),
        }
        write_atomically(path, save(tensors, metadata=meta))

    def of_image(self, record: dict, flipped: bool) -> np.ndarray:
        """Embeddings (K, D) float32 of a record's boxes, of their mirror images if ``flipped``."""
        rows = self._rows.get(record["image_id"], np.zeros(0, np.int64))
        return self.feats[rows, int(flipped)].astype(np.float32)


def describe_source(
    dataset: str, records: Sequence[dict], teacher_hash: str, teacher: str, backbone: str
) -> dict[str, str]:
    """What a file of embeddings says about where it comes from.

    Args:
        dataset: name. records: of it. teacher_hash: tells which teacher makes the embeddings.
        teacher, backbone: names of method and backbone, for the reader.
    """
    return {
        "format": FORMAT,
        "dataset": dataset,
        "boxes_hash": boxes_hash(records),
        "teacher_hash": teacher_hash,
        "teacher": teacher,
        "backbone": backbone,
    }


def describe_teacher(cfg: CfgNode, dataset: str, records: Sequence[dict]) -> dict[str, str]:
    """What the weights of a teacher say about what they were trained on; its hash comes later."""
    teacher = cfg.MODEL.PSDIFF.TEACHER
    source = describe_source(dataset, records, "", teacher.NAME, teacher.BACKBONE)
    del source["teacher_hash"]
    return {**source, "format": TEACHER_FORMAT}


def unfinished_folder(path: str) -> str:
    """Where compute_embeddings.py keeps what is done of the file ``path``."""
    return path + ".unfinished"


def read_file(
    path: str, datasets: Sequence[str], embed_dim: int, how_to: str = _HOW_TO
) -> tuple[dict[str, str], np.ndarray, np.ndarray]:
    """Metadata, embeddings and image ids of a file, after all checks that need no records.

    Arguments and errors are those of :meth:`TeacherEmbeddings.load`.
    """
    if len(datasets) != 1:
        raise ValueError(
            f"PSDiff takes embeddings for one training set, but DATASETS.TRAIN is {datasets}."
        )
    if not path or not os.path.isfile(path):
        begun = os.path.isdir(unfinished_folder(path)) if path else False
        raise FileNotFoundError(
            f"PSDiff is trained with a teacher's embeddings, but {KEY} is '{path}', which is "
            + (
                "not finished yet: run compute_embeddings.py again, it goes on where it was. "
                if begun
                else "no file. "
            )
            + how_to
        )
    meta, feats, image_ids = _read(path, how_to)
    if feats.shape[-1] != embed_dim:
        raise ValueError(
            f"{KEY}: '{path}' has embeddings of length {feats.shape[-1]}, but "
            f"MODEL.REID.EMBED_DIM is {embed_dim}. {how_to}"
        )
    return meta, feats, image_ids


def _read(path: str, how_to: str) -> tuple[dict[str, str], np.ndarray, np.ndarray]:
    """Metadata, embeddings and image ids of a file, if it is one of embeddings."""
    try:
        with open_safetensors(path, framework="numpy") as file:
            meta = file.metadata() or {}
            if meta.get("format") == FORMAT:
                return meta, file.get_tensor("embeddings"), file.get_tensor("image_id")
    except Exception as error:  # safetensors has one error for all, the system has its own
        raise ValueError(
            f"{KEY}: '{path}' is not a whole file of embeddings ({error}). {how_to}"
        ) from error
    raise ValueError(
        f"{KEY}: '{path}' has format '{meta.get('format')}', expected '{FORMAT}'. {how_to}"
    )
