# SPDX-License-Identifier: Apache-2.0
"""What a search figure depends on besides the protocol, and the names of the result sections.

The headline section is ``search``: the first protocol with the options of the config. Every
further protocol is ``search_<protocol>``, and every variant of the options adds
``search_<protocol>_<variant>`` for each protocol. A variant is written as values of options joined
by ``+``; each value belongs to exactly one option, so ``cws+cbgm`` needs no keys, and gives
``search_g100_cws_cbgm``.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from person_search.evaluation.box_metrics import DEFAULT_IOU_THRESH

OPTION_VALUES: dict[str, tuple[str, ...]] = {
    "similarity": ("cosine", "cws"),
    "matching": ("plain", "cbgm"),
    "query_source": ("gt_box", "best_det"),
    "duplicates": ("seqnet", "strict"),
    "gallery_boxes": ("det", "gt"),
    "iou_rule": ("adaptive", "fixed"),
}
"""The options and their allowed values, the default first; no value occurs in two of them."""

CBGM_MODES = ("max", "mean")
CONFIG_PREFIX = "cfg.TEST.PERSON_SEARCH"


@dataclass(frozen=True)
class CbgmSettings:
    """Parameters of context bipartite graph matching, see :mod:`person_search.evaluation.cbgm`.

    Args:
        k1: the images of so many best detections are matched again.
        k2: people of the query image that take part, the query included.
        mode: the new similarity is the ``max`` of the matched pairs, or the ``mean`` of that and
            the old one.
    """

    k1: int = 10
    k2: int = 3
    mode: str = "max"

    def __post_init__(self) -> None:
        for name in ("k1", "k2"):
            value = getattr(self, name)
            if value != int(value) or value < 1:
                raise ValueError(
                    f"CBGM: {name} is {value}, must be a whole number from 1 "
                    f"({CONFIG_PREFIX}.CBGM.{name.upper()}; 0 there takes the data set's own)"
                )
        if self.mode not in CBGM_MODES:
            raise ValueError(
                f"CBGM: mode is {self.mode!r}, allowed: {CBGM_MODES} ({CONFIG_PREFIX}.CBGM.MODE)"
            )


@dataclass(frozen=True)
class SearchOptions:
    """How galleries are ranked and counted.

    Args:
        similarity: ``cosine``, or ``cws``: cosine times the score of the gallery detection.
        matching: ``plain``: the similarity alone; ``cbgm``: re-scored with the other people of the
            query image.
        query_source: ``gt_box``: the embedding computed for the query box; ``best_det``: that of
            the detection in the query image with the highest IoU, whatever that IoU is.
        duplicates: see :func:`~person_search.evaluation.protocol_index.index_protocol`.
        gallery_boxes: ``det``: the model's detections; ``gt``: the true boxes with score 1, the
            upper bound that a perfect detector would give.
        iou_rule: how well a box must overlap the person: ``adaptive``: ``iou_thresh``, but less for
            small people, see :func:`~person_search.evaluation.box_metrics.adaptive_iou_threshold`;
            ``fixed``: ``iou_thresh`` for everybody.
        iou_thresh: in (0, 1].
        cbgm: read where ``matching`` is ``cbgm``.
    """

    similarity: str = "cosine"
    matching: str = "plain"
    query_source: str = "gt_box"
    duplicates: str = "seqnet"
    gallery_boxes: str = "det"
    iou_rule: str = "adaptive"
    iou_thresh: float = DEFAULT_IOU_THRESH
    cbgm: CbgmSettings = field(default_factory=CbgmSettings)

    def __post_init__(self) -> None:
        for name, allowed in OPTION_VALUES.items():
            value = getattr(self, name)
            if value not in allowed:
                raise ValueError(
                    f"{name} is {value!r}, allowed: {allowed} ({CONFIG_PREFIX}.{name.upper()})"
                )
        if not 0.0 < self.iou_thresh <= 1.0:
            raise ValueError(
                f"the IoU threshold of the search is {self.iou_thresh}, must lie in (0, 1] "
                f"({CONFIG_PREFIX}.SEARCH_IOU_THRESH)"
            )

    def changed(self, variant: str) -> "SearchOptions":
        """These options with the values of a variant such as ``cws+cbgm`` in place of its own.

        Raises:
            ValueError: an unknown value, or two values of one option.
        """
        option_of = {value: name for name, values in OPTION_VALUES.items() for value in values}
        changes: dict[str, Any] = {}
        for value in variant.split("+"):
            if value not in option_of:
                raise ValueError(
                    f"variant {variant!r}: {value!r} is not known, allowed are values joined by "
                    f"'+', of {sorted(option_of)} ({CONFIG_PREFIX}.VARIANTS)"
                )
            if option_of[value] in changes:
                raise ValueError(
                    f"variant {variant!r}: {changes[option_of[value]]!r} and {value!r} are both "
                    f"values of {option_of[value]} ({CONFIG_PREFIX}.VARIANTS)"
                )
            changes[option_of[value]] = value
        return replace(self, **changes)


@dataclass(frozen=True)
class Section:
    """One search section of the results.

    Args:
        task: its name there.
        protocol: what is searched.
        options: how.
        variant: as the user wrote it; empty for the options of the config.
    """

    task: str
    protocol: str
    options: SearchOptions
    variant: str = ""


def search_sections(
    protocols: Sequence[str], options: SearchOptions, variants: Sequence[str] = ()
) -> list[Section]:
    """Lists the search sections of an evaluation in the order of the results.

    Args:
        protocols: names, the headline's first.
        options: of the sections without a suffix.
        variants: see the module; each is scored under every protocol.

    Raises:
        ValueError: a variant is wrong, or something is named twice.
    """
    for what, names in (("protocol", protocols), ("variant", variants)):
        twice = sorted({name for name in names if list(names).count(name) > 1})
        if twice:
            raise ValueError(f"{what} {twice} is named twice ({CONFIG_PREFIX}.{what.upper()}S)")
    sections = []
    for number, protocol in enumerate(protocols):
        task = f"search_{protocol}"
        sections.append(Section(task if number else "search", protocol, options))
        for variant in variants:
            name = f"{task}_{variant.replace('+', '_')}"
            sections.append(Section(name, protocol, options.changed(variant), variant))
    return sections
