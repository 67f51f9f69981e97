# SPDX-License-Identifier: Apache-2.0
"""Number of training identities: taken from the data, or checked against it."""

from detectron2.config import CfgNode

from person_search.data import get_num_pids, register_config_datasets
from person_search.engine.data_checks import check_dataset_names


def resolve_num_pids(cfg: CfgNode, *, need_data: bool = True) -> CfgNode:
    """Returns a config whose ``MODEL.REID.NUM_PIDS`` is the number of identities to train on.

    Registers the data sets that the config itself describes (``DATASETS.PERSON_SEARCH_JSON``).

    Args:
        cfg: not changed. A value of 0 is filled in; any other must equal the data's.
        need_data: False (evaluation) tolerates that the training data are not there, if the config
            gives the number.

    Raises:
        DatasetError: a data set, for training or test, that is not registered.
        ValueError: the config contradicts the data, or several training sets are given, whose
            identities have the same numbers.
        FileNotFoundError: the training data are not there.
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
            f"DATASETS.TRAIN names {len(counts)} data sets with identities ({counts}), and each "
            "counts its own from 0. Register one data set that joins them with distinct person_id."
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
