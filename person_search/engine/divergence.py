# SPDX-License-Identifier: Apache-2.0
"""What happens when a training diverges: all processes stop together, and say with which images.

The checks cost no wait for the GPU that is not there anyway: the loss is looked at where
Detectron2 reads it for its log, after the backward pass, and weights only when they are saved.
"""

import json
import math
import os
from typing import Any, NoReturn

import torch
from detectron2.utils import comm
from torch import Tensor, nn
from torch import distributed as dist

from person_search.engine.checkpoint import CheckpointWriteError, write_safely

_NUM_EXAMPLES = 5
_ADVICE = (
    "Usual remedies: a lower SOLVER.BASE_LR, a longer SOLVER.WARMUP_ITERS, "
    "SOLVER.CLIP_GRADIENTS.ENABLED True"
)
_AMP_ADVICE = ", SOLVER.AMP.ENABLED False"


class TrainingDivergedError(FloatingPointError):
    """Loss, gradients or weights have left the range of numbers. Raised in all processes alike."""

    in_all_processes = True


def true_in_all_processes(value: Tensor) -> bool:
    """Whether a boolean scalar is true in every process; must be called by all of them."""
    if comm.get_world_size() > 1:
        value = value.to(torch.uint8)
        if dist.get_backend() == dist.Backend.NCCL:
            value = value.cuda()
        dist.all_reduce(value, dist.ReduceOp.MIN)
    return bool(value)


def all_finite(tensors: list[Tensor]) -> Tensor:
    """Whether no entry of any tensor is NaN or infinite; boolean scalar, true for no tensor."""
    if not tensors:
        return torch.tensor(True)
    return torch.stack([tensor.isfinite().all() for tensor in tensors]).all()


def step_report(
    model: nn.Module, parts: list[tuple[list[dict[str, Any]], dict[str, Tensor]]], scale: float
) -> dict[str, Any]:
    """What this process knows about the present step, as plain values for a JSON file.

    Args:
        model: after the backward pass.
        parts: images and losses of each part of the batch.
        scale: by which the gradients are too large (AMP), else 1.

    Returns:
        ``parts``: losses and images (``file_name``, ``image_id``) of each; ``grad_norm`` over all
        weights; ``non_finite_gradients``: names, the first few, and ``num_non_finite_gradients``.
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
    """Which weights of this process are not finite: the first names, and their number."""
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
        reason: first words of the message, e.g. "The loss is not finite".
        output_dir: of the file; empty writes none.
        learning_rate: of the first parameter group.
        report: of :func:`step_report` or :func:`weights_report`, this process's.
        amp_scale: factor on the loss in mixed precision.

    Raises:
        TrainingDivergedError: always.
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
        failure = _write(path, record) if comm.is_main_process() else ""
        message.append(failure or f"Details, such as the images of the batch: {path}.")
        message.append(_describe_last_checkpoint(output_dir))
    message.append(_ADVICE + (_AMP_ADVICE if amp_scale else "") + ".")
    raise TrainingDivergedError(" ".join(message))


def _summary(record: dict[str, Any]) -> str:
    """Losses of the first part that is not finite, learning rate and gradient norm."""
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


def _describe_last_checkpoint(output_dir: str) -> str:
    try:
        with open(os.path.join(output_dir, "last_checkpoint")) as file:
            name = file.read().strip()
    except OSError:
        return "There is no checkpoint yet."
    return f"The last checkpoint, {name}, is intact: --resume goes on from it."


def _write(path: str, record: dict[str, Any]) -> str:
    """Returns what went wrong, or ""."""
    text = json.dumps(record, indent=2, allow_nan=False)
    try:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        write_safely(path, text.encode())
    except (CheckpointWriteError, OSError) as e:
        return str(e)
    return ""


def _json_number(value: float) -> float | str:
    """JSON knows neither nan nor inf: they become strings."""
    return value if math.isfinite(value) else str(value)


def _show(value: float | str) -> str:
    return value if isinstance(value, str) else f"{value:.4g}"
