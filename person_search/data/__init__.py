# SPDX-License-Identifier: Apache-2.0
"""Data sets and the mapper from their records to model input.

Importing this package registers the built-in data sets by name; it reads no file.
"""

from person_search.data.dataset_mapper import (
    MAPPER_REGISTRY,
    PersonSearchMapper,
    build_mapper,
    check_training_files,
)
from person_search.data.datasets.builtin import (
    get_num_pids,
    not_person_search,
    register_builtin_datasets,
    register_config_datasets,
    register_cuhk_sysu,
    register_person_search_json,
    register_prw,
)
from person_search.data.datasets.common import IncompleteDatasetError, IrregularityLog
from person_search.data.datasets.cuhk_sysu import load_cuhk_sysu, load_cuhk_sysu_protocol
from person_search.data.datasets.json_dataset import load_json_protocol, load_person_search_json
from person_search.data.datasets.json_document import AnnotationFileError
from person_search.data.datasets.prw import load_prw, load_prw_protocol
from person_search.data.image_io import BadImageError, RecordImageReader
from person_search.data.model_cards import color_detail, kind_of_images, training_card

register_builtin_datasets()

__all__ = [
    "MAPPER_REGISTRY",
    "AnnotationFileError",
    "BadImageError",
    "IncompleteDatasetError",
    "IrregularityLog",
    "PersonSearchMapper",
    "RecordImageReader",
    "build_mapper",
    "check_training_files",
    "color_detail",
    "get_num_pids",
    "kind_of_images",
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
    "training_card",
]
