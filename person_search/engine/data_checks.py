# SPDX-License-Identifier: Apache-2.0
"""Checks of a config against its data sets, made before a run starts."""

import logging
from collections.abc import Callable

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm

from person_search.config import did_you_mean
from person_search.data import get_num_pids, register_config_datasets


class DatasetError(ValueError):
    """A data set of the config is unknown or unusable. Raised in all processes alike."""

    in_all_processes = True


def resolve_num_pids(cfg: CfgNode, *, need_data: bool = True) -> CfgNode:
    """Returns a config whose ``MODEL.REID.NUM_PIDS`` is the number of identities to train on.

    Registers the data sets that the config itself describes (``DATASETS.PERSON_SEARCH_JSON``).

    Args:
        cfg: Config, which is not changed. A value of 0 is filled in; any other value must equal
            that of the data.
        need_data: Whether missing training data are an error. If False (evaluation), they are
            accepted if the config gives the number.

    Raises:
        DatasetError: If a data set for training or test is not registered.
        ValueError: If the config contradicts the data, or if several training sets have
            identities, which would get the same numbers.
        FileNotFoundError: If the training data are missing.
    """
    register_config_datasets(cfg)
    check_dataset_names(cfg)
    names = cfg.DATASETS.TRAIN
    if not names:
        return cfg
    stated = cfg.MODEL.REID.NUM_PIDS
    try:
        counts = {name: get_num_pids(name) for name in names}
    except FileNotFoundError as e:
        if need_data:
            raise
        if stated > 0:
            return cfg
        raise FileNotFoundError(
            f"{e}\nThe number of training identities is read from that data set because "
            "MODEL.REID.NUM_PIDS is 0. To evaluate without it, set MODEL.REID.NUM_PIDS to the "
            "value in the config.yaml beside the weights."
        ) from e
    if len(counts) > 1 and sum(count > 0 for count in counts.values()) > 1:
        raise ValueError(
            f"DATASETS.TRAIN names {len(counts)} data sets with identities ({counts}), each "
            "numbered from 0. Register one data set that joins them with distinct person_id."
        )
    found = sum(counts.values())
    if stated not in (0, found):
        raise ValueError(
            f"MODEL.REID.NUM_PIDS is {stated}, but {' + '.join(names)} has {found} identities. "
            f"Set it to {found}, or to 0 to take the number from the data."
        )
    if stated == found:
        return cfg
    frozen = cfg.is_frozen()
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.REID.NUM_PIDS = found
    if frozen:
        cfg.freeze()
    return cfg


def check_dataset_names(cfg: CfgNode) -> None:
    """Checks that DATASETS.TRAIN and TEST name registered data sets.

    Raises:
        DatasetError: If one is not registered. The message has the nearest name and all names.
    """
    known = DatasetCatalog.list()
    kinds = {name: MetadataCatalog.get(name).get("evaluator_type") for name in known}
    ours = [name for name, kind in kinds.items() if kind == "person_search"]
    for split in ("TRAIN", "TEST"):
        for name in cfg.DATASETS[split]:
            if name not in known:
                raise DatasetError(
                    f"DATASETS.{split}: unknown data set {name!r}.{did_you_mean(name, ours)} "
                    f"Available: {', '.join(sorted(ours))}. "
                    "DATASETS.PERSON_SEARCH_JSON adds your own (docs/adding_a_dataset.md)."
                )


def warn_of_shared_images(cfg: CfgNode) -> None:
    """Logs a warning if a training set is evaluated as well: its results say nothing."""
    both = [name for name in cfg.DATASETS.TRAIN if name in cfg.DATASETS.TEST]
    if both:
        logging.getLogger(__name__).warning(
            "DATASETS.TRAIN and DATASETS.TEST both name %s: the results are those of images that "
            "the model is trained on.",
            ", ".join(both),
        )


def check_test_sets(cfg: CfgNode, build_evaluator: Callable[[str], DatasetEvaluator]) -> None:
    """Reads the records and protocols of an evaluation ahead of it.

    Must be called in every process. The main process reads, and keeps nothing.

    Args:
        cfg: Config with DATASETS.TEST.
        build_evaluator: Returns the evaluator of a data set. Its ``reset`` reads the data.

    Raises:
        DatasetError: If one of the data sets cannot be evaluated.
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
