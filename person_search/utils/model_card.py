# SPDX-License-Identifier: Apache-2.0
"""Model cards: what a weights file says about itself. ``docs/model_card.md`` has the format.

A card is JSON, in the safetensors metadata or under a top-level key of a ``.pth`` file, both named
:data:`CARD_KEY`. Weights without a card are accepted; what they were trained on is unknown.
"""

import datetime
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

CARD_KEY = "model_card"
VERSION = 1
DRAWN, PHOTOGRAPHS, MIXED, UNKNOWN = "drawn", "photographs", "mixed", "unknown"
KINDS = (DRAWN, PHOTOGRAPHS, MIXED, UNKNOWN)
"""What the training images are."""
_KIND_TEXTS = {
    DRAWN: "drawn persons",
    PHOTOGRAPHS: "photographs",
    MIXED: "drawn persons and photographs",
    UNKNOWN: "images of unknown kind",
}
NO_CARD = "unknown (the weights have no model card)"
"""Displayed for weights without a card."""

Metrics = Mapping[str, Mapping[str, Mapping[str, float]]]


class ModelCardError(ValueError):
    """A model card is unusable. The message is one sentence without the name of the file."""


@dataclass(frozen=True)
class ModelCard:
    """Description of trained weights.

    Attributes:
        method: ``MODEL.META_ARCHITECTURE``, or the name of the program for parts of a model.
        config: SHA-256 of the config keys that change what the model computes; "" if unknown.
        data: Names of the training sets.
        kind: One of :data:`KINDS`.
        identities: Number of training identities.
        images: Number of training images.
        input_size: Shorter side and maximum longer side of the evaluated images in pixels.
        embed_dim: Embedding dimension; 0 if unknown.
        score_thresh: Detection score threshold of the metrics; None without metrics.
        metrics: ``{data set: {task: {metric: percent}}}`` of these weights.
        license: License of the weights; "" if not stated.
        date: ISO 8601 date of the training.
        versions: Versions of the libraries by name.

    Raises:
        ModelCardError: If a value has the wrong type or is not allowed.
    """

    method: str
    config: str = ""
    data: tuple[str, ...] = ()
    kind: str = UNKNOWN
    identities: int = 0
    images: int = 0
    input_size: tuple[int, ...] = ()
    embed_dim: int = 0
    score_thresh: float | None = None
    metrics: Metrics = field(default_factory=dict)
    license: str = ""
    date: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for key in fields(self):
            expected, check = _CHECKS[key.name]
            value = getattr(self, key.name)
            if not check(value):
                raise ModelCardError(f"its {key.name} is {_short(value)}; allowed: {expected}")

    @classmethod
    def from_json(cls, content: Any) -> "ModelCard":
        """Reads a card: JSON text or its parsed object. Unknown keys are ignored.

        Raises:
            ModelCardError: If it is not JSON, has a newer version, or a value is not allowed.
        """
        if isinstance(content, str):
            try:
                content = json.loads(content)
            except ValueError as e:
                raise ModelCardError(f"it is not JSON ({e})") from e
        if not isinstance(content, Mapping) or "method" not in content:
            raise ModelCardError("it is not an object with the key 'method'")
        if content.get("version") != VERSION:
            raise ModelCardError(
                f"its version is {_short(content.get('version'))}; this program reads {VERSION}"
            )
        known = {key.name: content[key.name] for key in fields(cls) if key.name in content}
        for key in ("data", "input_size"):
            if isinstance(known.get(key), list):
                known[key] = tuple(known[key])
        return cls(**known)

    def to_json(self) -> dict[str, Any]:
        """Returns the card as plain types."""
        return {"version": VERSION, **json.loads(json.dumps(asdict(self)))}

    def describe(self) -> str:
        """Returns the card in one line, without versions and config hash."""
        parts = [f"{self.method}, trained on {self.trained_on}"]
        if self.metrics:
            parts.append(self._evaluated())
        if self.license:
            parts.append(f"license {self.license}")
        return "; ".join([*parts, self.date] if self.date else parts)

    @property
    def trained_on(self) -> str:
        """The training data, for example "drawn persons (mine_train: 9 identities, 20 images)"."""
        counts = (f"{n} {what}" for n, what in
                  ((self.identities, "identities"), (self.images, "images")) if n)  # fmt: skip
        known = ": ".join(part for part in (", ".join(self.data), ", ".join(counts)) if part)
        return _KIND_TEXTS[self.kind] + (f" ({known})" if known else "")

    def _evaluated(self) -> str:
        shown = (("search", "mAP"), ("search", "top1"), ("detection", "AP50"))
        texts = [
            ", ".join(f"{k} {tasks[task][k]:.1f}" for task, k in shown if k in tasks.get(task, {}))
            + f" on {name}"
            for name, tasks in self.metrics.items()
        ]
        at = "" if self.score_thresh is None else f" (score threshold {self.score_thresh:g})"
        return ", ".join(texts) + at

    def facts(self) -> list[tuple[str, str]]:
        """Returns all values as (name, text), for a table."""
        facts = [
            ("method", self.method),
            ("training data", self.trained_on),
            ("input size", " to ".join(map(str, self.input_size))),
            ("embedding", f"dimension {self.embed_dim}" if self.embed_dim else ""),
            ("evaluated", self._evaluated() if self.metrics else ""),
            ("license", self.license or "not stated"),
            ("date", self.date),
            ("config", self.config[:12]),
            ("versions", ", ".join(f"{name} {text}" for name, text in self.versions.items())),
        ]
        return [(name, text) for name, text in facts if text]


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _is_date(value: Any) -> bool:
    try:
        return value == "" or bool(datetime.date.fromisoformat(value))
    except (TypeError, ValueError):
        return False


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _maps(is_value: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: (
        isinstance(value, Mapping)
        and all(_is_text(key) and is_value(item) for key, item in value.items())
    )


_TEXT = ("a text", _is_text)
_COUNT = ("an integer >= 0", _is_count)
_CHECKS: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "method": ("a name", lambda value: _is_text(value) and bool(value)),
    "config": _TEXT,
    "data": ("a list of names", lambda value: isinstance(value, tuple)
             and all(map(_is_text, value))),
    "kind": (", ".join(KINDS), lambda value: value in KINDS),
    "identities": _COUNT,
    "images": _COUNT,
    "input_size": ("[shorter side, maximum longer side]", lambda value: isinstance(value, tuple)
                   and len(value) in (0, 2) and all(map(_is_count, value))),
    "embed_dim": _COUNT,
    "score_thresh": ("null or a number from 0 to 1",
                     lambda value: value is None or (_is_number(value) and 0 <= value <= 1)),
    "metrics": ("{data set: {task: {metric: number}}}", _maps(_maps(_maps(_is_number)))),
    "license": _TEXT,
    "date": ("an ISO 8601 date, for example 2026-05-01", _is_date),
    "versions": ("{library: version}", _maps(_is_text)),
}  # fmt: skip
