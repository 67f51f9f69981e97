# ruff: noqa: F401
# SPDX-License-Identifier: Apache-2.0
"""Data sets, data loaders, transforms and augmentations."""

from detectron2._lite import absent

# transforms before, and datasets after, the modules between them: the import order matters
from . import transforms  # isort: skip
from .build import (
    build_batch_data_loader,
    build_detection_test_loader,
    build_detection_train_loader,
    get_detection_dataset_dicts,
    print_instances_class_histogram,
)
from .catalog import DatasetCatalog, Metadata, MetadataCatalog
from .common import DatasetFromList, MapDataset, ToIterableDataset
from .dataset_mapper import DatasetMapper

from . import datasets, samplers  # isort: skip

__getattr__ = absent(__name__)
