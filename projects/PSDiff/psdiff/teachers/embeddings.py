# SPDX-License-Identifier: Apache-2.0
"""The file of teacher embeddings: one for each training box and one for its mirror image.

Shape shorthand in this file:
    M: boxes of all training images. K: boxes of an image. D: embedding dimension.

The safetensors file holds ``embeddings`` (M, 2, D) float16 (plain, mirrored), ``image_id`` (M,)
int64 in the order of the boxes in the records, and metadata: ``format``, ``dataset``,
``boxes_hash``, ``teacher_hash``, ``teacher`` (method) and ``backbone``. Boxes of unreadable images
have embeddings of NaN.
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
_HINT = "Write it with projects/PSDiff/tools/compute_embeddings.py."


def boxes_hash(records: Sequence[dict]) -> str:
    """Returns a short hash of all boxes and their images, which identifies a data set."""
    digest = hashlib.sha256()
    for record in records:
        digest.update(f"{record['image_id']}|{os.path.basename(record['file_name'])}|".encode())
        boxes = [annotation["bbox"] for annotation in record["annotations"]]
        digest.update(np.asarray(boxes, dtype=np.float32).round(2).tobytes())
    return digest.hexdigest()[:16]


class TeacherEmbeddings:
    """Teacher embeddings by image.

    Args:
        feats: Plain and mirrored embeddings (M, 2, D) of unit norm.
        image_ids: Image id (M,) of each row, in the order of the annotations of an image.
    """

    def __init__(self, feats: np.ndarray, image_ids: np.ndarray) -> None:
        self.feats = feats
        order = np.argsort(image_ids, kind="stable")
        ids, starts = np.unique(image_ids[order], return_index=True)
        self._rows = dict(zip(ids.tolist(), np.split(order, starts[1:]), strict=True))

    @classmethod
    def load(
        cls, path: str, datasets: Sequence[str], embed_dim: int, hint: str = _HINT
    ) -> "TeacherEmbeddings":
        """Reads a file and checks that it belongs to the data set and the config.

        Args:
            path: File, ``cfg.MODEL.PSDIFF.TEACHER.EMBEDDINGS``.
            datasets: Training sets, ``cfg.DATASETS.TRAIN``.
            embed_dim: Embedding dimension, ``cfg.MODEL.REID.EMBED_DIM``.
            hint: Sentence on how to write such a file, for messages.

        Raises:
            FileNotFoundError: If the file does not exist.
            ValueError: If the file is damaged, or belongs to another data set or dimension.
        """
        meta, feats, image_ids = read_file(path, datasets, embed_dim, hint)
        records = DatasetCatalog.get(datasets[0])
        expected = boxes_hash(records)
        if meta.get("boxes_hash") != expected:
            raise ValueError(
                f"{KEY}: '{path}' was written for data set '{meta.get('dataset')}' (hash of the "
                f"boxes {meta.get('boxes_hash')}), but DATASETS.TRAIN is '{datasets[0]}' "
                f"({expected}). Set the key to another file, or replace this one. {hint}"
            )
        counts = [len(record["annotations"]) for record in records]
        ids = np.repeat([record["image_id"] for record in records], counts)
        if feats.shape[:2] != (len(ids), 2) or not np.array_equal(image_ids, ids):
            raise ValueError(
                f"{KEY}: '{path}' has embeddings of shape {feats.shape}, which do not belong to "
                f"the {len(ids)} boxes of '{datasets[0]}'. {hint}"
            )
        return cls(feats, image_ids)

    @staticmethod
    def save(path: str, records: Sequence[dict], feats: np.ndarray, meta: dict[str, str]) -> None:
        """Writes a file atomically.

        Args:
            path: File to write.
            records: Records of the data set.
            feats: Embeddings (M, 2, D) in the order of the records and their annotations.
            meta: Metadata, see :func:`describe_source`.
        """
        counts = [len(record["annotations"]) for record in records]
        image_ids = np.repeat([record["image_id"] for record in records], counts)
        tensors: dict[str, np.ndarray] = {
            "embeddings": feats.astype(np.float16),
            "image_id": image_ids.astype(np.int64),
        }
        write_atomically(path, save(tensors, metadata=meta))

    def of_image(self, record: dict, flipped: bool) -> np.ndarray:
        """Returns the embeddings (K, D) float32 of the boxes of a record.

        Args:
            record: Record of the data set.
            flipped: Returns the embeddings of the mirror images.

        Raises:
            ValueError: If the teacher was unable to read the image.
        """
        rows = self._rows.get(record["image_id"], np.zeros(0, np.int64))
        feats = self.feats[rows, int(flipped)].astype(np.float32)
        if np.isnan(feats).any():
            raise ValueError(
                f"{KEY} has no embeddings for the image {record['file_name']}, which was "
                f"unreadable when the file was written. Write the file again. {_HINT}"
            )
        return feats


def describe_source(
    dataset: str, records: Sequence[dict], teacher_hash: str, teacher: str, backbone: str
) -> dict[str, str]:
    """Returns the metadata of a file of embeddings.

    Args:
        dataset: Name of the data set.
        records: Records of the data set.
        teacher_hash: Hash that identifies the teacher.
        teacher: Method of the teacher.
        backbone: Backbone of the teacher.
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
    """Returns the metadata of teacher weights, without the hash of the weights."""
    teacher = cfg.MODEL.PSDIFF.TEACHER
    source = describe_source(dataset, records, "", teacher.NAME, teacher.BACKBONE)
    del source["teacher_hash"]
    return {**source, "format": TEACHER_FORMAT}


def unfinished_folder(path: str) -> str:
    """Returns the folder in which compute_embeddings.py keeps completed parts of a file."""
    return path + ".unfinished"


def read_file(
    path: str, datasets: Sequence[str], embed_dim: int, hint: str = _HINT
) -> tuple[dict[str, str], np.ndarray, np.ndarray]:
    """Reads a file and runs all checks that need no records.

    Args:
        path: See :meth:`TeacherEmbeddings.load`, also for the errors.
        datasets: See there.
        embed_dim: See there.
        hint: See there.

    Returns:
        Metadata, embeddings (M, 2, D) and image ids (M,).
    """
    if len(datasets) != 1:
        raise ValueError(
            f"PSDiff takes embeddings for one training set, but DATASETS.TRAIN is {datasets}."
        )
    if not path or not os.path.isfile(path):
        begun = path and os.path.isdir(unfinished_folder(path))
        state = (
            "not complete yet: run compute_embeddings.py again to continue"
            if begun
            else "not a file"
        )
        raise FileNotFoundError(
            f"PSDiff is trained with teacher embeddings, but {KEY} is '{path}', which is {state}. "
            f"{hint}"
        )
    try:
        with open_safetensors(path, framework="numpy") as file:
            meta = file.metadata() or {}
            found = meta.get("format")
            if found == FORMAT:
                feats, image_ids = file.get_tensor("embeddings"), file.get_tensor("image_id")
    except Exception as error:  # safetensors and the system raise various exceptions
        raise ValueError(
            f"{KEY}: '{path}' is damaged or not a file of embeddings ({error}). {hint}"
        ) from error
    if found != FORMAT:
        raise ValueError(f"{KEY}: '{path}' has format '{found}', expected '{FORMAT}'. {hint}")
    if feats.ndim != 3 or feats.shape[-1] != embed_dim:
        raise ValueError(
            f"{KEY}: '{path}' has embeddings of shape {feats.shape}, but MODEL.REID.EMBED_DIM is "
            f"{embed_dim}. {hint}"
        )
    return meta, feats, image_ids
