# SPDX-License-Identifier: Apache-2.0
"""Data sets of a config: their names, and what a test at the end of a training will need."""

from collections.abc import Callable

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm

from person_search.config import did_you_mean


class DatasetError(ValueError):
    """A data set of the config is not known, or cannot be used. Raised in all processes alike."""

    in_all_processes = True


def check_dataset_names(cfg: CfgNode) -> None:
    """Checks that DATASETS.TRAIN and TEST name registered data sets.

    Raises:
        DatasetError: one of them is none, with the nearest name and those for person search.
    """
    known = DatasetCatalog.list()
    kinds = {name: MetadataCatalog.get(name).get("evaluator_type") for name in known}
    ours = [name for name, kind in kinds.items() if kind == "person_search"]
    for split in ("TRAIN", "TEST"):
        for name in cfg.DATASETS[split]:
            if name not in known:
                raise DatasetError(
                    f"DATASETS.{split} names {name!r}, and no data set has that name."
                    f"{did_you_mean(name, ours)} There are {', '.join(sorted(ours))}. "
                    "DATASETS.PERSON_SEARCH_JSON adds your own (docs/adding_a_dataset.md)."
                )


def check_test_sets(cfg: CfgNode, build_evaluator: Callable[[str], DatasetEvaluator]) -> None:
    """Reads the records and protocols that an evaluation will need, some time before it.

    Only the main process does, and keeps nothing; call it in every process.

    Args:
        cfg: reads DATASETS.TEST.
        build_evaluator: returns the evaluator of a data set, whose ``reset`` reads both.

    Raises:
        DatasetError: one of them cannot be evaluated.
    """
    # errors travel as text, so that all processes see them instead of waiting for each other
    text, cause = "", None
    if comm.is_main_process():
        for name in cfg.DATASETS.TEST:
            try:
                build_evaluator(name).reset()
            except (ValueError, KeyError, OSError) as e:
                reason = e.args[0] if isinstance(e, KeyError) and e.args else e
                text, cause = f"DATASETS.TEST: {name!r} cannot be evaluated: {reason}", e
                break
    text = comm.all_gather(text)[0]
    if text:
        raise DatasetError(text) from cause
