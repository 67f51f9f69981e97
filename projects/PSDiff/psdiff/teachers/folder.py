# SPDX-License-Identifier: Apache-2.0
"""Output folders of teachers: their names, the commands that fill them, protection of their files.

The metadata of ``teacher.safetensors`` states what the teacher was trained on, and so does
``teacher_checkpoints/source.json`` during the training.
"""

import json
import os
import shlex
from collections.abc import Sequence

from detectron2.config import CfgNode
from safetensors import SafetensorError, safe_open

from person_search.utils.files import write_atomically

WEIGHTS_FILE = "teacher.safetensors"
EMBEDDINGS_FILE = "embeddings.safetensors"
CHECKPOINTS = "teacher_checkpoints"
IDENTITY = ("boxes_hash", "teacher")
"""Entries of a source that must agree; the others are informative."""


def teacher_folder(cfg: CfgNode) -> str:
    """Returns the default output folder of a teacher, one for each method and training set."""
    return f"output/teacher/{cfg.MODEL.PSDIFF.TEACHER.NAME}_{'_'.join(cfg.DATASETS.TRAIN)}"


def embeddings_file(cfg: CfgNode) -> str:
    """Returns ``MODEL.PSDIFF.TEACHER.EMBEDDINGS``, or the recommended value if it is empty."""
    return cfg.MODEL.PSDIFF.TEACHER.EMBEDDINGS or f"{teacher_folder(cfg)}/{EMBEDDINGS_FILE}"


def teacher_commands(cfg: CfgNode, options: Sequence[str] = ()) -> list[str]:
    """Returns the shell commands that produce the embeddings of a config.

    The first of them trains the teacher, unless ``MODEL.PSDIFF.TEACHER.WEIGHTS`` is a file.

    Args:
        cfg: Config of PSDiff.
        options: Command-line options that make this config, for example
            ``--config-file x.yaml SEED 1``.
    """
    teacher = cfg.MODEL.PSDIFF.TEACHER
    file = [] if teacher.EMBEDDINGS else ["MODEL.PSDIFF.TEACHER.EMBEDDINGS", embeddings_file(cfg)]
    config = shlex.join(options) or "--config-file <config>"

    def command(program: str, *overrides: str) -> str:
        return (
            f"python projects/PSDiff/tools/{program}.py {config} {shlex.join(overrides)}".rstrip()
        )

    if os.path.isfile(teacher.WEIGHTS):
        return [command("compute_embeddings", *file)]
    place = ["OUTPUT_DIR", teacher_folder(cfg)]
    random = ["MODEL.PSDIFF.TEACHER.WEIGHTS", ""] if teacher.WEIGHTS else []
    weights = ["MODEL.PSDIFF.TEACHER.WEIGHTS", f"{teacher_folder(cfg)}/{WEIGHTS_FILE}"]
    return [
        command("train_teacher", *place, *random),
        command("compute_embeddings", *place, *weights, *file),
    ]


def embeddings_hint(cfg: CfgNode, options: Sequence[str] = ()) -> str:
    """Returns a sentence with the commands that write the embeddings, for error messages.

    A teacher that already lies in its folder is not trained again.

    Args:
        cfg: Config of PSDiff.
        options: See :func:`teacher_commands`.
    """
    commands = teacher_commands(cfg, options)
    if os.path.isfile(os.path.join(teacher_folder(cfg), WEIGHTS_FILE)):
        commands = commands[-1:]
    set_key = (
        ""
        if cfg.MODEL.PSDIFF.TEACHER.EMBEDDINGS
        else (f" and set the key to '{embeddings_file(cfg)}' here, too")
    )
    return f"Write it with{set_key}:" + "".join(f"\n  {line}" for line in commands)


def check_folder(cfg: CfgNode, source: dict[str, str]) -> None:
    """Refuses to train a teacher in ``cfg.OUTPUT_DIR`` if another one lies there.

    Args:
        cfg: Config of the training.
        source: Description by :func:`psdiff.teachers.embeddings.describe_teacher`.

    Raises:
        FileExistsError: If the teacher there belongs to another data set or method, or does not
            state what it was trained on.
    """
    weights, stamp = os.path.join(cfg.OUTPUT_DIR, WEIGHTS_FILE), _stamp(cfg)
    for path, found in ((weights, read_source(weights)), (stamp, read_stamp(stamp))):
        if found is None or all(found.get(key) == source[key] for key in IDENTITY):
            continue
        raise FileExistsError(
            f"'{path}' belongs to {_described(found)}; training {_described(source)} would "
            "overwrite it. Use a separate folder for each teacher, for example "
            f"OUTPUT_DIR {teacher_folder(cfg)}, or remove the old one."
        )


def mark_folder(cfg: CfgNode, source: dict[str, str]) -> None:
    """Records in ``cfg.OUTPUT_DIR`` which teacher is trained there."""
    write_atomically(_stamp(cfg), json.dumps(source, indent=2).encode())


def read_source(path: str) -> dict[str, str] | None:
    """Returns the metadata of teacher weights, {} if there are none, None without a file."""
    if not os.path.isfile(path):
        return None
    try:
        with safe_open(path, framework="numpy") as file:
            return file.metadata() or {}
    except (OSError, SafetensorError):
        return {}


def read_stamp(path: str) -> dict[str, str] | None:
    """Returns the content of a ``source.json``, {} if it is damaged, None without a file."""
    try:
        with open(path, encoding="utf-8") as file:
            source = json.load(file)
    except FileNotFoundError:
        return None
    except ValueError:
        return {}
    return source if isinstance(source, dict) else {}


def _stamp(cfg: CfgNode) -> str:
    return os.path.join(cfg.OUTPUT_DIR, CHECKPOINTS, "source.json")


def _described(source: dict[str, str]) -> str:
    if not all(key in source for key in IDENTITY):
        return "a teacher that does not state what it was trained on"
    return (
        f"teacher '{source['teacher']}' of data set '{source.get('dataset', '')}' "
        f"(hash of the boxes {source['boxes_hash']})"
    )
