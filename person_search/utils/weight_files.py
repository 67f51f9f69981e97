# SPDX-License-Identifier: Apache-2.0
"""The one reader and writer of weight files and their model cards, used by all programs.

Reads what ``torch.save`` and safetensors write. Only tensors, NumPy arrays and plain Python values
are restored; no code of the file runs. An unusable file gives one sentence with the remedy.
"""

import json
import os
import re
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from urllib.error import HTTPError
from urllib.parse import urlsplit

import numpy as np
import torch
from detectron2.utils.file_io import PathManager
from iopath.common.file_io import get_cache_dir
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import Tensor

from person_search.utils.files import write_atomically
from person_search.utils.model_card import CARD_KEY, ModelCard, ModelCardError

WRAPPERS = ("model", "state_dict", "model_state_dict", "model_state", "module", "net", "teacher")
"""Names under which checkpoints of different code bases keep their weights."""

_HUB_FILE = "model.safetensors"
"""Weight file of a repository on the hub whose address names none."""
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
        ``{"model": {name: tensor}}`` on the CPU, with the other entries of the file beside it, the
        model card among them. Objects of other classes, such as ``argparse.Namespace``, lose their
        content.

    Raises:
        FileNotFoundError: If there is no such file.
        WeightFileError: If the file is not a checkpoint, is damaged, or holds no weights.
    """
    path = os.fspath(path)
    rest: dict[str, Any] = {}
    weights: Any
    if _check_content(path) == "safetensors":
        weights, rest = load_file(path), _card_entry(path)
    else:
        weights = _torch_load(path)
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


def read_card(path: str | os.PathLike) -> ModelCard | None:
    """Returns the model card of a weight file, or None if it has none; reads no weights.

    Raises:
        FileNotFoundError: If there is no such file.
        WeightFileError: If the file is not a checkpoint or is damaged, or its card is unusable.
    """
    path = os.fspath(path)
    if path.endswith(".pkl"):  # Detectron2's model zoo, which has no cards
        return None
    safetensors = _check_content(path) == "safetensors"
    content = _card_entry(path) if safetensors else _torch_load(path, mmap=True)
    entries = content if isinstance(content, Mapping) else {}
    try:
        return ModelCard.from_json(entries[CARD_KEY]) if CARD_KEY in entries else None
    except ModelCardError as e:
        raise WeightFileError(f"The model card of {path!r} is unusable: {e}.") from e


def write_card(path: str | os.PathLike, card: ModelCard) -> None:
    """Replaces the model card of a weight file; the rest of the file keeps its values.

    Raises:
        FileNotFoundError: If there is no such file.
        WeightFileError: If the file is not a checkpoint, or is damaged.
        OSError: If the file cannot be written. It is as before.
    """
    path = os.fspath(path)
    if _check_content(path) == "safetensors":
        with safe_open(path, framework="pt") as file:
            metadata = dict(file.metadata() or {})
        save_weights(path, load_file(path), card, metadata)
        return
    content = _torch_load(path)
    content = content if isinstance(content, dict) else {"model": content}
    if all(isinstance(value, Tensor) for value in content.values()):  # a bare state dict
        content = {"model": content}
    content[CARD_KEY] = card.to_json()
    write_atomically(path, lambda file: torch.save(content, file), durable=True)


def save_weights(
    path: str | os.PathLike,
    weights: Mapping[str, Tensor],
    card: ModelCard | None,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Writes a safetensors file with a model card.

    Args:
        path: File to write; its folder is created if it does not exist.
        weights: Tensors by name.
        card: Card of the weights; None for weights of unknown origin.
        metadata: Further metadata.
    """
    texts = {"format": "pt", **(metadata or {})}
    if card is not None:
        texts[CARD_KEY] = json.dumps(card.to_json())
    content = save({name: x.contiguous() for name, x in weights.items()}, texts)
    write_atomically(path, content, durable=True)


def _card_entry(path: str) -> dict[str, Any]:
    """Returns the card of a safetensors file as ``{CARD_KEY: text}``; {} without one."""
    with safe_open(path, framework="numpy") as file:
        metadata = file.metadata() or {}
    return {CARD_KEY: metadata[CARD_KEY]} if CARD_KEY in metadata else {}


def fetch_weights(name: str) -> str:
    """Returns the local path of a weight file, downloading it if necessary.

    Args:
        name: Local path, ``hf://owner/name[/file][@revision]``, or an address of Detectron2's
            ``PathManager``: ``https://...``, ``detectron2://...``. Downloads are kept.

    Raises:
        OSError: If there is no such file, repository or revision, or no connection.
        WeightFileError: If the address is malformed, the content is not a weight file, or
            huggingface_hub is not installed.
    """
    if name.startswith("hf://"):
        return _fetch_from_hub(name)
    if "://" not in name:
        return name
    if "?" in name:
        raise WeightFileError(
            f"The address {name!r} has the query {name[name.index('?') :]!r}; only "
            "?matching_heuristics=True in MODEL.WEIGHTS is supported. Use the address without it."
        )
    address = urlsplit(name)
    # by default, files of different servers with the same path would share their place
    place = {}
    if address.scheme in ("http", "https"):
        place["cache_dir"] = os.path.join(get_cache_dir(), address.netloc.replace(":", "_"))
    try:
        path = PathManager.get_local_path(name, **place)
    except HTTPError as e:
        raise OSError(
            f"The weights {name!r} could not be downloaded: {e}. Check the address."
        ) from e
    except OSError as e:
        reason = getattr(e, "reason", e)
        raise OSError(
            f"The weights {name!r} could not be downloaded: {reason}. Without a network, give the "
            "path of a local file."
        ) from e
    try:
        if not path.endswith(".pkl"):
            _check_content(path)
    except WeightFileError:
        os.remove(path)  # the next attempt downloads it again
        raise
    return path


def _fetch_from_hub(name: str) -> str:
    """Returns the local path of ``hf://owner/name[/file][@revision]``."""
    address, _, revision = name.removeprefix("hf://").partition("@")
    owner, _, rest = address.partition("/")
    repository, _, file = rest.partition("/")
    if not owner or not repository or (name.endswith("@")):
        raise WeightFileError(
            f"The address {name!r} is malformed; expected is hf://owner/name, "
            "hf://owner/name/file or hf://owner/name/file@revision."
        )
    try:
        from huggingface_hub import HfApi, errors, hf_hub_download
    except ImportError as e:
        raise WeightFileError(
            f"The weights {name!r} require huggingface_hub: pip install 'person-search[hub]'."
        ) from e
    repo: dict[str, Any] = {"repo_id": f"{owner}/{repository}", "revision": revision or None}
    try:
        try:
            return hf_hub_download(filename=file or _HUB_FILE, **repo)
        except errors.EntryNotFoundError as e:
            if isinstance(e, errors.LocalEntryNotFoundError):  # offline
                raise
            names = HfApi().list_repo_files(**repo)
        weights = [other for other in names if other.endswith((".safetensors", ".pth"))]
        if file or len(weights) != 1:
            what = f"has no file {file!r}" if file else f"has no {_HUB_FILE!r}"
            listed = ", ".join(weights[:10]) or "none"
            raise FileNotFoundError(
                f"The weights {name!r}: the repository {what}. Its weight files: {listed}."
            )
        return hf_hub_download(filename=weights[0], **repo)
    except errors.GatedRepoError as e:
        reason = "access is restricted; accept its terms in a browser, then run 'hf auth login'"
        raise OSError(f"The weights {name!r} could not be downloaded: {reason}.") from e
    except errors.RepositoryNotFoundError as e:
        raise FileNotFoundError(
            f"The weights {name!r}: there is no repository {repo['repo_id']!r} on the hub, or it "
            "is private ('hf auth login')."
        ) from e
    except errors.RevisionNotFoundError as e:
        raise FileNotFoundError(
            f"The weights {name!r}: {repo['repo_id']!r} has no revision {revision!r}."
        ) from e
    except errors.HFValidationError as e:
        raise WeightFileError(f"The address {name!r} is malformed: {e}") from e
    except FileNotFoundError as e:
        if not isinstance(e, errors.LocalEntryNotFoundError):
            raise
        raise OSError(_unreachable(name)) from e
    except (errors.HfHubHTTPError, OSError) as e:
        raise OSError(_unreachable(name)) from e


def _unreachable(name: str) -> str:
    return (
        f"The weights {name!r} are not in the local cache, and the hub cannot be reached (no "
        "network, or HF_HUB_OFFLINE is set). Give the path of a local file."
    )


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


def _torch_load(path: str, mmap: bool = False) -> Any:
    """Reads a file of ``torch.save``, with :class:`_Ignored` in place of unknown classes.

    Args:
        path: Local file.
        mmap: Whether to leave the tensors on the disk, if the format of the file allows it.
    """
    unknown: dict[str, Any] = {}
    # a path is required, by which torch.load chooses the format of some names
    mmap = mmap and not path.endswith(".safetensors") and zipfile.is_zipfile(path)
    while True:
        known = [(replacement, name) for name, replacement in unknown.items()]
        try:
            with open(path, "rb") as file, torch.serialization.safe_globals([*_NUMPY, *known]):
                source = path if mmap else file
                return torch.load(source, map_location="cpu", weights_only=True, mmap=mmap)
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
