# SPDX-License-Identifier: Apache-2.0
"""Stops a training that diverges, in all processes together, with a report of its images.

The checks add no synchronization with the GPU: the loss is checked where Detectron2 reads it for
its log, after the backward pass, and the weights are checked when they are saved.
"""

import json
import math
import os
from typing import Any, NoReturn

import torch
from detectron2.utils import comm
from torch import Tensor, nn
from torch import distributed as dist

from person_search.engine.checkpoint import write_safely

_NUM_EXAMPLES = 5
_ADVICE = (
    "Usual remedies: a lower SOLVER.BASE_LR, a longer SOLVER.WARMUP_ITERS, "
    "SOLVER.CLIP_GRADIENTS.ENABLED True"
)
_AMP_ADVICE = ", SOLVER.AMP.ENABLED False"


class TrainingDivergedError(FloatingPointError):
    """Loss, gradients or weights are not finite. Raised in all processes alike."""

    in_all_processes = True


def true_in_all_processes(value: Tensor) -> bool:
    """Returns whether a boolean scalar is true in every process; all of them must call it."""
    if comm.get_world_size() > 1:
        value = value.to(torch.uint8)
        if dist.get_backend() == dist.Backend.NCCL:
            value = value.cuda()
        dist.all_reduce(value, dist.ReduceOp.MIN)
    return bool(value)


def all_finite(tensors: list[Tensor]) -> Tensor:
    """Returns a boolean scalar: whether all entries are finite. True without tensors."""
    if not tensors:
        return torch.tensor(True)
    return torch.stack([tensor.isfinite().all() for tensor in tensors]).all()


def step_report(
    model: nn.Module, parts: list[tuple[list[dict[str, Any]], dict[str, Tensor]]], scale: float
) -> dict[str, Any]:
    """Describes the current step of this process, as plain values for a JSON file.

    Args:
        model: Model after the backward pass.
        parts: Images and losses of each part of the batch.
        scale: Factor by which the gradients are too large (AMP), else 1.

    Returns:
        ``parts``: losses and images (``file_name``, ``image_id``) of each part; ``grad_norm`` over
        all weights; ``non_finite_gradients``: the first few names; ``num_non_finite_gradients``.
    """
    grads = {k: p.grad for k, p in model.named_parameters() if p.grad is not None}
    bad = [name for name, grad in grads.items() if not grad.isfinite().all()]
    norm = float(nn.utils.get_total_norm(grads.values())) / scale if grads else 0.0
    return {
        "process": comm.get_rank(),
        "grad_norm": _json_number(norm),
        "num_non_finite_gradients": len(bad),
        "non_finite_gradients": bad[:_NUM_EXAMPLES],
        "parts": [
            {
                "losses": {k: _json_number(float(v)) for k, v in losses.items()},
                "images": [{k: x.get(k) for k in ("file_name", "image_id")} for x in images],
            }
            for images, losses in parts
        ],
    }


def weights_report(model: nn.Module) -> dict[str, Any]:
    """Describes which weights of this process are not finite: the first names, their number."""
    bad = [name for name, p in model.named_parameters() if not p.isfinite().all()]
    return {
        "process": comm.get_rank(),
        "num_non_finite_weights": len(bad),
        "non_finite_weights": bad[:_NUM_EXAMPLES],
        "parts": [],
    }


def stop_training(
    reason: str,
    *,
    iteration: int,
    output_dir: str,
    learning_rate: float,
    report: dict[str, Any],
    amp_scale: float | None = None,
) -> NoReturn:
    """Writes ``diverged_<iteration>.json`` and ends the training, in all processes together.

    Args:
        reason: First words of the message, for example "The loss is not finite".
        iteration: Current iteration.
        output_dir: Folder of the file. If empty, none is written.
        learning_rate: Learning rate of the first parameter group.
        report: Result of :func:`step_report` or :func:`weights_report` in this process.
        amp_scale: Factor of the loss in mixed precision.

    Raises:
        TrainingDivergedError: Always.
    """
    reports = comm.all_gather(report)
    record = {
        "reason": reason,
        "iteration": iteration,
        "learning_rate": learning_rate,
        "amp_scale": amp_scale,
        "processes": reports,
    }
    message = [f"{reason} at iteration {iteration} ({_summary(record)})."]
    if output_dir:
        path = os.path.join(output_dir, f"diverged_{iteration:07d}.json")
        failure = ""
        if comm.is_main_process():
            try:
                os.makedirs(output_dir, exist_ok=True)
                write_safely(path, json.dumps(record, indent=2, allow_nan=False).encode())
            except OSError as e:
                failure = str(e)
        message.append(failure or f"Details, such as the images of the batch: {path}.")
        try:
            with open(os.path.join(output_dir, "last_checkpoint")) as file:
                name = file.read().strip()
            message.append(f"The last checkpoint, {name}, is intact; --resume continues from it.")
        except (OSError, UnicodeDecodeError):
            message.append("There is no checkpoint yet.")
    message.append(_ADVICE + (_AMP_ADVICE if amp_scale else "") + ".")
    raise TrainingDivergedError(" ".join(message))


def _summary(record: dict[str, Any]) -> str:
    """Returns the losses of the first non-finite part, learning rate and gradient norm."""
    parts = [(r["process"], part) for r in record["processes"] for part in r["parts"]]
    if not parts:
        return f"learning rate {record['learning_rate']:g}"
    wrong = [x for x in parts if any(isinstance(v, str) for v in x[1]["losses"].values())]
    process, part = (wrong or parts)[0]
    words = [f"{name} {_show(value)}" for name, value in part["losses"].items()]
    words += [
        f"learning rate {record['learning_rate']:g}",
        f"gradient norm {_show(record['processes'][process]['grad_norm'])}",
    ]
    if len(record["processes"]) > 1 and wrong:
        words.insert(0, f"process {process}")
    return ", ".join(words)


def _json_number(value: float) -> float | str:
    """Returns nan and inf, which JSON lacks, as strings."""
    return value if math.isfinite(value) else str(value)


def _show(value: float | str) -> str:
    return value if isinstance(value, str) else f"{value:.4g}"
