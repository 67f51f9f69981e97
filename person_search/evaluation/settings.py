# SPDX-License-Identifier: Apache-2.0
"""All numbers and choices of an evaluation, checked once."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from detectron2.config import CfgNode

from person_search.evaluation.options import (
    CONFIG_PREFIX,
    OPTION_VALUES,
    CbgmSettings,
    SearchOptions,
    Section,
    search_sections,
)

DEFAULT_CBGM = (10, 3)
"""k1 and k2 where neither config nor data set gives them: those that SeqNet has for CUHK-SYSU."""


@dataclass(frozen=True)
class EvaluationSettings:
    """What the figures of an evaluation depend on.

    Args:
        score_thresh: detections below it take no part in anything.
        det_iou_thresh: IoU from which a detection can match (detection figures only).
        topk: the k of the top-k accuracies.
        search: options of the sections ``search`` and ``search_<protocol>``.
        variants: further options, see :mod:`person_search.evaluation.options`.
        det_iou_threshs, det_score_threshs: further thresholds for detection; every pair of them
            other than the headline's gives a section of its own.
        coco_ap: whether to give AP over ten IoU thresholds and by size too.
    """

    score_thresh: float = 0.5
    det_iou_thresh: float = 0.5
    topk: tuple[int, ...] = (1, 5, 10)
    search: SearchOptions = field(default_factory=SearchOptions)
    variants: tuple[str, ...] = ()
    det_iou_threshs: tuple[float, ...] = ()
    det_score_threshs: tuple[float, ...] = ()
    coco_ap: bool = False

    def __post_init__(self) -> None:
        thresholds = [("score_thresh", self.score_thresh), ("det_iou_thresh", self.det_iou_thresh)]
        thresholds += [("det_iou_threshs", value) for value in self.det_iou_threshs]
        thresholds += [("det_score_threshs", value) for value in self.det_score_threshs]
        for name, value in thresholds:
            if not 0.0 <= value <= 1.0:
                raise ValueError(
                    f"{name} is {value}, must lie in [0, 1] ({CONFIG_PREFIX}.{name.upper()})"
                )
        low = [value for value in self.det_score_threshs if value < self.score_thresh]
        if low:
            raise ValueError(
                f"det_score_threshs holds {low}, below score_thresh {self.score_thresh}, under "
                f"which nothing is kept: lower {CONFIG_PREFIX}.SCORE_THRESH"
            )
        if not self.topk or any(k != int(k) or k < 1 for k in self.topk):
            raise ValueError(
                f"topk is {list(self.topk)}, must be whole numbers from 1 ({CONFIG_PREFIX}.TOPK)"
            )
        self.sections(["any"])  # refuses wrong variants

    def sections(self, protocols: Sequence[str]) -> list[Section]:
        """The search sections of the results, in order."""
        return search_sections(protocols, self.search, self.variants)

    @property
    def needs_gt_boxes(self) -> bool:
        """Whether the true boxes must be embedded too."""
        return any(s.options.gallery_boxes == "gt" for s in self.sections(["any"]))

    def detection_sections(self) -> dict[str, tuple[float, float]]:
        """``task -> (IoU threshold, score threshold)``; ``detection`` is the headline.

        Further ones are called e.g. ``detection_iou75``, ``detection_score80`` or
        ``detection_iou75_score80``, the thresholds in percent.
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
        """Plain values for the results file and the log."""
        options = {name: getattr(self.search, name) for name in OPTION_VALUES}
        cbgm = self.search.cbgm
        if any(s.options.matching == "cbgm" for s in self.sections(["any"])):
            options["cbgm"] = {"k1": cbgm.k1, "k2": cbgm.k2, "mode": cbgm.mode}
        return {
            "score_thresh": self.score_thresh,
            "det_iou_thresh": self.det_iou_thresh,
            "search_iou_thresh": self.search.iou_thresh,
            "topk": list(self.topk),
            **options,
            "variants": list(self.variants),
            "det_iou_threshs": list(self.det_iou_threshs),
            "det_score_threshs": list(self.det_score_threshs),
            "coco_ap": self.coco_ap,
        }

    @classmethod
    def from_arguments(
        cls, arguments: Mapping[str, Any], cbgm_of_dataset: Sequence[int] | None
    ) -> "EvaluationSettings":
        """Sorts the evaluator's keyword arguments into settings, options and CBGM parameters.

        Args:
            arguments: fields of this class but ``search``, those of :class:`SearchOptions` that
                have names as values, ``search_iou_thresh``, and ``cbgm_k1``, ``cbgm_k2`` (0: the
                data set's own), ``cbgm_mode``.
            cbgm_of_dataset: (k1, k2), or None.
        """
        arguments = dict(arguments)
        own = cbgm_of_dataset or DEFAULT_CBGM
        given = (arguments.pop("cbgm_k1", 0), arguments.pop("cbgm_k2", 0))
        k1, k2 = (value or default for value, default in zip(given, own, strict=True))
        cbgm = CbgmSettings(k1, k2, arguments.pop("cbgm_mode", "max"))
        options: dict[str, Any] = {
            name: arguments.pop(name) for name in OPTION_VALUES if name in arguments
        }
        if "search_iou_thresh" in arguments:
            options["iou_thresh"] = arguments.pop("search_iou_thresh")
        sequences = ("topk", "variants", "det_iou_threshs", "det_score_threshs")
        arguments |= {name: tuple(arguments[name]) for name in sequences if name in arguments}
        return cls(**arguments, search=SearchOptions(**options, cbgm=cbgm))


def settings_from_config(keys: CfgNode) -> dict[str, Any]:
    """Reads ``cfg.TEST.PERSON_SEARCH`` as the evaluator's keyword arguments."""
    names = [name.upper() for name in OPTION_VALUES]
    names += ["SCORE_THRESH", "DET_IOU_THRESH", "TOPK", "VARIANTS", "COCO_AP"]
    names += ["SEARCH_IOU_THRESH", "DET_IOU_THRESHS", "DET_SCORE_THRESHS"]
    arguments = {name.lower(): keys[name] for name in names}
    return arguments | {f"cbgm_{name.lower()}": keys.CBGM[name] for name in ("K1", "K2", "MODE")}
