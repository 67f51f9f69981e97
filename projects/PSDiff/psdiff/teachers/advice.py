# SPDX-License-Identifier: Apache-2.0
"""The commands that make a teacher and its embeddings, ready to be pasted into a shell."""

import os
import shlex
from collections.abc import Sequence

from detectron2.config import CfgNode

WEIGHTS_FILE = "teacher.safetensors"
EMBEDDINGS_FILE = "embeddings.safetensors"


def teacher_folder(cfg: CfgNode) -> str:
    """Where the teacher of a config belongs: a folder for each method and training set."""
    return f"output/teacher/{cfg.MODEL.PSDIFF.TEACHER.NAME}_{'_'.join(cfg.DATASETS.TRAIN)}"


def embeddings_file(cfg: CfgNode) -> str:
    """``MODEL.PSDIFF.TEACHER.EMBEDDINGS``, or what to set it to where it is empty."""
    return cfg.MODEL.PSDIFF.TEACHER.EMBEDDINGS or f"{teacher_folder(cfg)}/{EMBEDDINGS_FILE}"


def teacher_commands(cfg: CfgNode, options: Sequence[str] = ()) -> list[str]:
    """The one or two commands after which the embeddings of a config are there.

    The teacher is trained first, unless ``MODEL.PSDIFF.TEACHER.WEIGHTS`` is a file.

    Args:
        options: of the commands, which make this config of its file and overrides, e.g.
            ``--config-file x.yaml SEED 1``.
    """
    teacher = cfg.MODEL.PSDIFF.TEACHER
    file = [] if teacher.EMBEDDINGS else ["MODEL.PSDIFF.TEACHER.EMBEDDINGS", embeddings_file(cfg)]
    if os.path.isfile(teacher.WEIGHTS):
        return [_command("compute_embeddings.py", options, file)]
    folder = teacher_folder(cfg)
    fresh = ["MODEL.PSDIFF.TEACHER.WEIGHTS", ""] if teacher.WEIGHTS else []
    weights = ["MODEL.PSDIFF.TEACHER.WEIGHTS", f"{folder}/{WEIGHTS_FILE}"]
    place = ["OUTPUT_DIR", folder]
    return [
        _command("train_teacher.py", options, [*place, *fresh]),
        _command("compute_embeddings.py", options, [*place, *weights, *file]),
    ]


def how_to_write(cfg: CfgNode, options: Sequence[str] = ()) -> str:
    """Says how the file of embeddings is made; ``options`` as for :func:`teacher_commands`.

    A teacher that lies in its folder already is not trained again.
    """
    commands = teacher_commands(cfg, options)
    if os.path.isfile(os.path.join(teacher_folder(cfg), WEIGHTS_FILE)):
        commands = commands[-1:]
    lines = "".join(f"\n  {line}" for line in commands)
    teacher = cfg.MODEL.PSDIFF.TEACHER
    hint = "" if teacher.EMBEDDINGS else f" and set the key to '{embeddings_file(cfg)}' here, too"
    return f"Write it with{hint}:{lines}"


def _command(script: str, options: Sequence[str], overrides: list[str]) -> str:
    made_by = shlex.join(options) or "--config-file <config>"
    return f"python projects/PSDiff/{script} {made_by} {shlex.join(overrides)}".rstrip()
