# SPDX-License-Identifier: Apache-2.0
"""Readers of the person search data sets and their registration."""

from person_search.data.datasets.builtin import (
    get_num_pids,
    not_person_search,
    register_builtin_datasets,
    register_config_datasets,
    register_cuhk_sysu,
    register_person_search_json,
    register_prw,
)
from person_search.data.datasets.common import (
    IncompleteDatasetError,
    Irregularity,
    IrregularityLog,
)
from person_search.data.datasets.cuhk_sysu import load_cuhk_sysu, load_cuhk_sysu_protocol
from person_search.data.datasets.json_dataset import load_json_protocol, load_person_search_json
from person_search.data.datasets.json_document import AnnotationFileError
from person_search.data.datasets.prw import load_prw, load_prw_protocol

__all__ = [
    "AnnotationFileError",
    "IncompleteDatasetError",
    "Irregularity",
    "IrregularityLog",
    "get_num_pids",
    "load_cuhk_sysu",
    "load_cuhk_sysu_protocol",
    "load_json_protocol",
    "load_person_search_json",
    "load_prw",
    "load_prw_protocol",
    "not_person_search",
    "register_builtin_datasets",
    "register_config_datasets",
    "register_cuhk_sysu",
    "register_person_search_json",
    "register_prw",
]
