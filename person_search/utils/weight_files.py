# SPDX-License-Identifier: Apache-2.0
"""The one reader of weight files, used by all programs.

Reads what ``torch.save`` and safetensors write. Only tensors, NumPy arrays and plain Python values
are restored; no code of the file runs. An unusable file gives one sentence with the remedy.
"""

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

WRAPPERS = ("model", "state_dict", "model_state_dict", "model_state", "module", "net", "teacher")
"""Names under which checkpoints of different code bases keep their weights."""

_DAMAGED = "is truncated or damaged ({}); download or copy it again"
_SAVE_WEIGHTS = "save the weights alone with torch.save({'model': model.state_dict()}, path)"


class WeightFileError(ValueError):
    """A file holds no usable weights. The message names the file, the reason and the remedy."""


def read_checkpoint(path: str | os.PathLike) -> dict[str, Any]:
    """Reads a checkpoint into Detectron2's form.

    The content decides the format, not the suffix. Weights nested under one of :data:`WRAPPERS` are
    unwrapped, and a prefix ``module.`` shared by all names is removed.

    Args:
        path: Local file.

    Returns:
        ``{"model": {name: tensor}}`` on the CPU, with the other entries of the file beside it.
        Objects of other classes, such as ``argparse.Namespace``, lose their content.

    Raises:
        FileNotFoundError: If there is no such file.
        WeightFileError: If the file is not a checkpoint, is damaged, or holds no weights.
    """
    path = os.fspath(path)
    content = load_file(path) if _check_content(path) == "safetensors" else _torch_load(path)
    weights = content
    rest: dict[str, Any] = {}
    while isinstance(weights, Mapping):
        wrapper = next((k for k in WRAPPERS if isinstance(weights.get(k), Mapping)), None)
        if wrapper is None:
            break
        rest |= {key: value for key, value in weights.items() if key != wrapper}
        weights = weights[wrapper]
    found = _tensors(weights) if isinstance(weights, Mapping) else {}
    if not found and weights != {}:
        kind = f"a {type(weights).__name__}"
        if isinstance(weights, Mapping):
            kind = f"a dict with the keys {', '.join(map(repr, list(weights)[:5]))}"
        elif isinstance(weights, _Ignored):
            kind = "a pickled object (a whole model?)"
        raise WeightFileError(
            f"The weight file {path!r} holds {kind} instead of a state dict; {_SAVE_WEIGHTS}."
        )
    if found and all(name.startswith("module.") for name in found):
        found = {name.removeprefix("module."): value for name, value in found.items()}
    return {**rest, "model": found}


def read_weights(path: str | os.PathLike) -> dict[str, Tensor]:
    """Returns the weights of a checkpoint by name; see :func:`read_checkpoint`."""
    return read_checkpoint(path)["model"]


@contextmanager
def open_safetensors(path: str | os.PathLike, framework: str = "pt") -> Iterator[Any]:
    """Opens a safetensors file like ``safetensors.safe_open``.

    Args:
        path: Local file.
        framework: "pt" for tensors, "numpy" for arrays.

    Raises:
        FileNotFoundError: If there is no such file.
        WeightFileError: If it is not a safetensors file, or is damaged.
    """
    path = os.fspath(path)
    if _check_content(path) != "safetensors":
        raise WeightFileError(f"The file {path!r} is not a safetensors file.")
    with safe_open(path, framework=framework) as file:
        yield file


def check_weight_file(path: str) -> None:
    """Raises :class:`WeightFileError` if a file is a web page, a Git LFS pointer or empty."""
    with open(path, "rb") as file:
        start = file.read(512).lstrip().lower()
    reason = ""
    if not start:
        reason = "is empty; download or copy it again"
    elif start.startswith(b"version https://git-lfs"):
        reason = (
            "is a Git LFS pointer, not the weights; run 'git lfs pull' in the repository it is from"
        )
    elif start.startswith((b"<!doctype", b"<html", b"<?xml")):
        reason = (
            "is a web page, not the weights; the link probably needs a login or a confirmation, so "
            "download the file with a browser"
        )
    if reason:
        raise WeightFileError(f"The weight file {path!r} {reason}.")


def _check_content(path: str) -> str:
    """Returns "torch" or "safetensors" by the first bytes of a file and its header."""
    check_weight_file(path)
    with open(path, "rb") as file:
        start = file.read(9)
    if start[8:] != b"{" and start.startswith((b"PK", b"\x80")):  # zip, or pickle (old)
        return "torch"
    if start[8:] != b"{":
        raise WeightFileError(
            f"The weight file {path!r} is not a checkpoint: it was written neither by torch.save "
            "nor by safetensors. Check the path."
        )
    try:
        with safe_open(path, framework="numpy"):
            return "safetensors"
    except SafetensorError as e:
        raise WeightFileError(f"The weight file {path!r} {_DAMAGED.format(e)}.") from e


class _Ignored:
    """Takes the place of an object that is not a weight. It keeps nothing and runs nothing."""

    def __new__(cls, *args: Any, **kwargs: Any) -> "_Ignored":
        return super().__new__(cls)

    def __init__(self, *args: Any, **kwargs: Any):
        pass

    def __setstate__(self, state: Any) -> None:
        pass


def _torch_load(path: str) -> Any:
    """Reads a file of ``torch.save``, with :class:`_Ignored` in place of unknown classes."""
    unknown: dict[str, Any] = {}
    while True:
        known = [(replacement, name) for name, replacement in unknown.items()]
        try:
            # opened here, since torch.load chooses the format of some names by their suffix
            with open(path, "rb") as file, torch.serialization.safe_globals([*_NUMPY, *known]):
                return torch.load(file, map_location="cpu", weights_only=True)
        except OSError:
            raise
        except Exception as e:  # noqa: BLE001 - a damaged pickle can raise anything
            text = str(e)
            found = re.search(r"Unsupported global: GLOBAL (\S+) was not an allowed", text)
            name = found[1] if found else ""
            name = name if "." in name or not name else f"builtins.{name}"
            if name and name not in unknown:
                unknown[name] = _numpy_global(name) or _Ignored
                continue
            if "TorchScript" in text:
                reason = "is a TorchScript archive"
            elif "Weights only load failed" in text and "Unsupported operand" not in text:
                classes = f" ({', '.join(unknown)})" if unknown else ""
                reason = f"holds more than tensors and plain values{classes}"
            else:
                reason = _DAMAGED.format(re.split(r"[.\n]", text.strip())[0] or "it ends early")
                raise WeightFileError(f"The weight file {path!r} {reason}.") from e
            raise WeightFileError(f"The weight file {path!r} {reason}; {_SAVE_WEIGHTS}.") from e


_NUMPY = [type(np.dtype(kind)) for kind in "?bBhHiIlLqQefd"]


def _numpy_global(name: str) -> Any:
    """Returns the function or class of NumPy that arrays and scalars are restored with."""
    module, _, attribute = name.rpartition(".")
    if module in ("numpy.core.multiarray", "numpy._core.multiarray"):
        return {"_reconstruct": np._core.multiarray._reconstruct,  # type: ignore[attr-defined]
                "scalar": np._core.multiarray.scalar}.get(attribute)  # type: ignore[attr-defined]  # fmt: skip
    return {"numpy.ndarray": np.ndarray, "numpy.dtype": np.dtype}.get(name)


def _tensors(content: Mapping[Any, Any]) -> dict[str, Tensor]:
    """Returns the entries of a dict that are tensors or arrays, as tensors."""
    return {
        name: torch.as_tensor(value)
        for name, value in content.items()
        if isinstance(value, Tensor | np.ndarray)
    }
