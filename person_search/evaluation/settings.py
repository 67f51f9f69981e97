# SPDX-License-Identifier: Apache-2.0
"""Settings of an evaluation and the result sections that they define.

Every field is a key of ``cfg.TEST.PERSON_SEARCH`` in lower case (``cbgm_k1`` is ``CBGM.K1``).

The section ``search`` is the first protocol with the options of the config. Every further protocol
adds ``search_<protocol>``, and every variant adds ``search_<protocol>_<variant>`` for each
protocol. A variant consists of option values joined by ``+``. A value belongs to exactly one
option, so ``cws+cbgm`` needs no keys; its section is named ``search_g100_cws_cbgm``.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from person_search.evaluation.box_metrics import DEFAULT_IOU_THRESH

CONFIG_PREFIX = "cfg.TEST.PERSON_SEARCH"
OPTION_VALUES: dict[str, tuple[str, ...]] = {
    "similarity": ("cosine", "cws"),
    "matching": ("plain", "cbgm"),
    "query_source": ("gt_box", "best_det"),
    "duplicates": ("seqnet", "strict"),
    "gallery_boxes": ("det", "gt"),
    "iou_rule": ("adaptive", "fixed"),
}
"""Options with their allowed values, the default first; no value occurs twice."""
CBGM_MODES = ("max", "mean")


def parse_variant(variant: str) -> dict[str, str]:
    """Returns the options that a variant such as ``cws+cbgm`` sets.

    Raises:
        ValueError: If a value is unknown or two values belong to one option.
    """
    option_of = {value: name for name, values in OPTION_VALUES.items() for value in values}
    options: dict[str, str] = {}
    for value in variant.split("+"):
        if value not in option_of:
            raise ValueError(
                f"variant {variant!r}: unknown value {value!r}; allowed are values joined by '+', "
                f"of {sorted(option_of)} ({CONFIG_PREFIX}.VARIANTS)"
            )
        name = option_of[value]
        if name in options:
            raise ValueError(
                f"variant {variant!r}: {options[name]!r} and {value!r} are both values of {name} "
                f"({CONFIG_PREFIX}.VARIANTS)"
            )
        options[name] = value
    return options


@dataclass(frozen=True)
class SearchOptions:
    """How galleries are ranked and matches are counted.

    Attributes:
        similarity: ``cosine``, or ``cws``: cosine times the score of the gallery detection.
        matching: ``plain``: the similarity alone; ``cbgm``: re-scored with the other persons of the
            query image.
        query_source: ``gt_box``: the embedding computed for the query box; ``best_det``: that of
            the detection in the query image with the highest IoU, whatever that IoU is.
        duplicates: See :func:`~person_search.evaluation.protocol_index.index_protocol`.
        gallery_boxes: ``det``: the model's detections; ``gt``: the ground truth boxes with score 1,
            the upper bound that a perfect detector would reach.
        iou_rule: Overlap that a match needs. ``adaptive``: ``search_iou_thresh``, less for small
            persons, see :func:`~person_search.evaluation.box_metrics.adaptive_iou_threshold`;
            ``fixed``: ``search_iou_thresh`` for every person.
        search_iou_thresh: IoU threshold in (0, 1].
        cbgm_k1: Number of best detections whose images are matched again, see
            :mod:`person_search.evaluation.cbgm`.
        cbgm_k2: Number of persons of the query image that take part, the query included.
        cbgm_mode: The new similarity is the ``max`` of the matched pairs, or the ``mean`` of that
            and the old similarity.
    """

    similarity: str = "cosine"
    matching: str = "plain"
    query_source: str = "gt_box"
    duplicates: str = "seqnet"
    gallery_boxes: str = "det"
    iou_rule: str = "adaptive"
    search_iou_thresh: float = DEFAULT_IOU_THRESH
    cbgm_k1: int = 10
    cbgm_k2: int = 3
    cbgm_mode: str = "max"

    def __post_init__(self) -> None:
        for name, allowed in (*OPTION_VALUES.items(), ("cbgm_mode", CBGM_MODES)):
            value = getattr(self, name)
            if value not in allowed:
                raise ValueError(f"{name} is {value!r}, allowed: {allowed} ({config_key(name)})")
        if not 0.0 < self.search_iou_thresh <= 1.0:
            raise ValueError(
                f"search_iou_thresh is {self.search_iou_thresh}, must lie in (0, 1] "
                f"({config_key('search_iou_thresh')})"
            )
        for name in ("cbgm_k1", "cbgm_k2"):
            value = getattr(self, name)
            if value != int(value) or value < 1:
                raise ValueError(
                    f"{name} is {value}, must be an integer of at least 1 ({config_key(name)}; "
                    "0 there selects the value of the data set)"
                )

    def with_variant(self, variant: str | None) -> "SearchOptions":
        """Returns these options with the values of a variant; None changes nothing."""
        options = {field.name: getattr(self, field.name) for field in fields(SearchOptions)}
        return SearchOptions(**options | (parse_variant(variant) if variant is not None else {}))


@dataclass(frozen=True)
class Section:
    """One search section of the results.

    Attributes:
        task: Name of the section.
        protocol: Name of the search protocol.
        options: Options of the search.
        variant: Variant as the user wrote it; empty for the options of the config.
    """

    task: str
    protocol: str
    options: SearchOptions
    variant: str = ""


@dataclass(frozen=True)
class EvaluationSettings(SearchOptions):
    """Everything that the metrics of an evaluation depend on; the search options included.

    Attributes:
        score_thresh: Detections below this score are ignored everywhere.
        det_iou_thresh: Minimum IoU of a match (detection metrics only).
        topk: The k of the top-k accuracies.
        variants: Further options to score, see the module.
        det_iou_threshs: Further IoU thresholds for detection. Each pair of an IoU and a score
            threshold gives a section of its own.
        det_score_threshs: Further score thresholds for detection, not below ``score_thresh``.
        coco_ap: Adds AP over ten IoU thresholds and by size of the person.
    """

    score_thresh: float = 0.5
    det_iou_thresh: float = 0.5
    topk: Sequence[int] = (1, 5, 10)
    variants: Sequence[str] = ()
    det_iou_threshs: Sequence[float] = ()
    det_score_threshs: Sequence[float] = ()
    coco_ap: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("score_thresh", "det_iou_thresh", "det_iou_threshs", "det_score_threshs"):
            given = getattr(self, name)
            for value in given if isinstance(given, Sequence) else [given]:
                if not 0.0 <= value <= 1.0:
                    raise ValueError(f"{name} is {value}, must lie in [0, 1] ({config_key(name)})")
        low = [value for value in self.det_score_threshs if value < self.score_thresh]
        if low:
            raise ValueError(
                f"det_score_threshs contains {low}, below score_thresh {self.score_thresh}, under "
                f"which detections are dropped: lower {config_key('score_thresh')}"
            )
        if not self.topk or any(k != int(k) or k < 1 for k in self.topk):
            raise ValueError(
                f"topk is {list(self.topk)}, must be integers of at least 1 ({config_key('topk')})"
            )
        self.sections(["any"])  # checks the variants

    def sections(self, protocols: Sequence[str]) -> list[Section]:
        """Lists the search sections in the order of the results.

        Args:
            protocols: Names of the protocols, the headline's first.

        Raises:
            ValueError: If a variant is wrong, or a protocol or variant is named twice.
        """
        for what, names in (("protocol", protocols), ("variant", self.variants)):
            twice = sorted({name for name in names if list(names).count(name) > 1})
            if twice:
                raise ValueError(f"{what} {twice} is named twice ({CONFIG_PREFIX}.{what.upper()}S)")
        sections = []
        for number, protocol in enumerate(protocols):
            task = f"search_{protocol}"
            headline = task if number else "search"
            sections.append(Section(headline, protocol, self.with_variant(None)))
            for variant in self.variants:
                name = f"{task}_{variant.replace('+', '_')}"
                sections.append(Section(name, protocol, self.with_variant(variant), variant))
        return sections

    def uses(self, option: str, value: str) -> bool:
        """Whether any search section has this value of an option."""
        return any(getattr(s.options, option) == value for s in self.sections(["any"]))

    @property
    def needs_gt_boxes(self) -> bool:
        """Whether the ground truth boxes must be embedded too."""
        return self.uses("gallery_boxes", "gt")

    def detection_sections(self) -> dict[str, tuple[float, float]]:
        """Returns ``{task: (IoU threshold, score threshold)}``; ``detection`` is the headline.

        Further sections are named for example ``detection_iou75``, ``detection_score80`` or
        ``detection_iou75_score80``, with thresholds in percent.
        """
        sections = {"detection": (self.det_iou_thresh, self.score_thresh)}
        for score in (self.score_thresh, *self.det_score_threshs):
            for iou in (self.det_iou_thresh, *self.det_iou_threshs):
                name = "detection"
                name += f"_iou{100 * iou:g}" if iou != self.det_iou_thresh else ""
                name += f"_score{100 * score:g}" if score != self.score_thresh else ""
                sections[name] = (iou, score)
        return sections

    def as_dict(self) -> dict[str, Any]:
        """Returns the settings as plain values for the results file; ``cbgm`` only where used."""
        values = {name: v for name, v in vars(self).items() if not name.startswith("cbgm_")}
        if self.uses("matching", "cbgm"):
            values["cbgm"] = {"k1": self.cbgm_k1, "k2": self.cbgm_k2, "mode": self.cbgm_mode}
        return values


def config_key(name: str) -> str:
    """Returns the config key of a field, for messages."""
    return f"{CONFIG_PREFIX}.{name.upper().replace('CBGM_', 'CBGM.')}"


def settings_from_config(keys: Mapping[str, Any]) -> dict[str, Any]:
    """Reads ``cfg.TEST.PERSON_SEARCH`` as keyword arguments of the evaluator.

    Returns:
        The fields of :class:`EvaluationSettings`. ``cbgm_k1`` and ``cbgm_k2`` may be 0, which the
        evaluator replaces by the values of the data set.
    """
    cbgm = {f"CBGM_{name}": value for name, value in keys["CBGM"].items()}
    values = {**keys, **cbgm}
    return {field.name: values[field.name.upper()] for field in fields(EvaluationSettings)}
