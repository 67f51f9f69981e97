# SPDX-License-Identifier: Apache-2.0
"""Whose teacher lies in a folder: nobody's is overwritten by that of another data set or method.

``teacher.safetensors`` says it in its metadata, ``teacher_checkpoints/source.json`` where the
training has not come to its end yet.
"""

import json
import os

from detectron2.config import CfgNode
from safetensors import SafetensorError, safe_open

from person_search.utils.files import write_atomically
from psdiff.teachers.advice import WEIGHTS_FILE, teacher_folder

CHECKPOINTS = "teacher_checkpoints"
IDENTITY = ("boxes_hash", "teacher")
"""Entries of a source that must agree; further ones are for the reader."""


def check_folder(cfg: CfgNode, source: dict[str, str]) -> None:
    """Refuses to train a teacher in ``cfg.OUTPUT_DIR`` if that holds another one.

    Args:
        source: of :func:`psdiff.teachers.embeddings.describe_teacher`.

    Raises:
        FileExistsError: the teacher there is of another data set or method, or does not say what it
            was trained on.
    """
    stamp = _stamp(cfg)
    for path, found in (
        (weights := os.path.join(cfg.OUTPUT_DIR, WEIGHTS_FILE), read_source(weights)),
        (stamp, _read_stamp(stamp)),
    ):
        if found is None or all(found.get(key) == source[key] for key in IDENTITY):
            continue
        raise FileExistsError(
            f"'{path}' is of {_described(found)}; a training of {_described(source)} would "
            "overwrite it. Give each teacher a folder of its own, such as "
            f"OUTPUT_DIR {teacher_folder(cfg)}, or remove the old one."
        )


def mark_folder(cfg: CfgNode, source: dict[str, str]) -> None:
    """Notes in ``cfg.OUTPUT_DIR`` whose teacher is being trained there."""
    write_atomically(_stamp(cfg), json.dumps(source, indent=2).encode())


def read_source(path: str) -> dict[str, str] | None:
    """Metadata of a teacher's weights, {} if it has none; None if there is no such file."""
    if not os.path.isfile(path):
        return None
    try:
        with safe_open(path, framework="numpy") as file:
            return file.metadata() or {}
    except (OSError, SafetensorError):
        return {}


def _stamp(cfg: CfgNode) -> str:
    return os.path.join(cfg.OUTPUT_DIR, CHECKPOINTS, "source.json")


def _read_stamp(path: str) -> dict[str, str] | None:
    try:
        with open(path) as file:
            return json.load(file)
    except FileNotFoundError:
        return None
    except ValueError:
        return {}


def _described(source: dict[str, str]) -> str:
    if not all(key in source for key in IDENTITY):
        return "a teacher that does not say what it was trained on"
    return (
        f"teacher '{source['teacher']}' of data set '{source.get('dataset', '')}' "
        f"(hash of the boxes {source['boxes_hash']})"
    )
