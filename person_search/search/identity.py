# SPDX-License-Identifier: Apache-2.0
"""Which model made an embedding: a hash of its weights, and the config keys that matter.

Embeddings of two models live in different spaces; a similarity between them is a number without a
meaning. A gallery therefore carries the identity of its model and takes no other.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from detectron2.config import CfgNode
from torch import nn

from person_search.search.errors import OtherModelError

IRRELEVANT_WORDS = ("WEIGHT", "DEVICE", "NUM_PIDS", "TEACHER", "LOSS", "CACHE", "FREEZE")
"""Keys with one of these words in their name say where files lie or how training goes; what the
weights themselves are is hashed."""


@dataclass(frozen=True)
class ModelIdentity:
    """Equal for two models exactly if their embeddings may be compared.

    Args:
        architecture: class of the model.
        weights: SHA-256 of all parameters and buffers, by name; the file they came from, its name
            and its format do not count.
        config: flat keys and plain values that change what the model computes.
        detection: settings that decide which persons enter a gallery. They must be the same for all
            images of a gallery, but not for a query.
    """

    architecture: str
    weights: str
    config: Mapping[str, Any] = field(default_factory=dict)
    detection: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(
        cls, model: nn.Module, config: Mapping[str, Any], detection: Mapping[str, Any]
    ) -> "ModelIdentity":
        """Hashes the weights of a model."""
        return cls(type(model).__name__, hash_weights(model), plain(config), plain(detection))

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> "ModelIdentity":
        """The inverse of :meth:`to_json`."""
        return cls(**{key: fields[key] for key in cls.__dataclass_fields__})

    def to_json(self) -> dict:
        """Plain types."""
        return {key: getattr(self, key) for key in self.__dataclass_fields__}

    def differences(self, other: "ModelIdentity", detection: bool = False) -> list[str]:
        """What differs, in words; [] if the embeddings of both may be compared.

        Args:
            other: called "here" in the words, ``self`` being the gallery's.
            detection: compare these settings as well.
        """
        found = []
        if self.architecture != other.architecture:
            found.append(f"the architecture ({self.architecture}, here {other.architecture})")
        if self.weights != other.weights:
            found.append(f"the weights (sha256 {self.weights[:12]}, here {other.weights[:12]})")
        for mine, theirs in ((self.config, other.config), (self.detection, other.detection)):
            if mine is self.detection and not detection:
                continue
            for key in sorted({*mine, *theirs}):
                if mine.get(key) != theirs.get(key):
                    found.append(f"{key} ({mine.get(key)}, here {theirs.get(key)})")
        return found

    def require(self, other: "ModelIdentity", folder: object, detection: bool = False) -> None:
        """Compares the gallery's identity (self) with that of a model.

        Raises:
            OtherModelError: they differ; the first differences are named.
        """
        found = self.differences(other, detection)
        if found:
            more = f" and {len(found) - 5} more" if len(found) > 5 else ""
            raise OtherModelError(
                f"the gallery '{folder}' was made by another model or with other settings. "
                f"Different: {', '.join(found[:5])}{more}. Use the model of the gallery, or index "
                "the images into a new gallery."
            )


def config_identity(cfg: CfgNode) -> dict[str, Any]:
    """The keys that change what is computed: of ``cfg.MODEL``, and how images get there."""
    keys = {
        key: value
        for key, value in _flatten(cfg.MODEL, "MODEL")
        if not any(word in key for word in IRRELEVANT_WORDS)
    }
    return {**keys, "DATALOADER.MAPPER": cfg.DATALOADER.MAPPER}


def hash_weights(model: nn.Module) -> str:
    """SHA-256 over name, type, shape and bytes of every tensor in the state of a model."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        if not isinstance(tensor, torch.Tensor):
            continue
        tensor = tensor.detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)};".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """As JSON gives it back, so that a tuple equals the list that is read later."""
    return json.loads(json.dumps(dict(values), sort_keys=True, default=str))


def _flatten(node: CfgNode, prefix: str) -> Iterator[tuple[str, Any]]:
    for key, value in node.items():
        if isinstance(value, CfgNode):
            yield from _flatten(value, f"{prefix}.{key}")
        else:
            yield f"{prefix}.{key}", value
