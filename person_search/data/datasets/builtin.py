# SPDX-License-Identifier: Apache-2.0
"""Registers the data sets under their names. Nothing is read before a data set is asked for.

The folder is looked up each time a data set is read: ``$DETECTRON2_DATASETS``, or ``datasets``.
"""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog

from person_search.data.datasets.common import DatasetLayout
from person_search.data.datasets.cuhk_sysu import load_cuhk_sysu, load_cuhk_sysu_protocol
from person_search.data.datasets.cuhk_sysu_files import (
    CUHK_SYSU_LAYOUT,
    GALLERY_SIZES,
    SUBSETS,
)
from person_search.data.datasets.cuhk_sysu_files import count_train_pids as count_cuhk_sysu_pids
from person_search.data.datasets.json_columns import describe
from person_search.data.datasets.json_protocols import FirstProtocol, LazyProtocols
from person_search.data.datasets.json_records import count_json_pids, load_person_search_json
from person_search.data.datasets.prw import PRW_PROTOCOLS, load_prw, load_prw_protocol
from person_search.data.datasets.prw_files import PRW_LAYOUT
from person_search.data.datasets.prw_files import count_train_pids as count_prw_pids

Root = str | Path | Callable[[], str | Path]
"""Folder of a data set, or a function that gives it at the time of reading."""


CBGM_CUHK_SYSU, CBGM_PRW = (10, 3), (30, 4)
"""k1 and k2 of context bipartite graph matching, as SeqNet has them for each data set."""


def _folder(root: Root) -> Path:
    return Path(root()) if callable(root) else Path(root)


def _load(loader: Callable, root: Root, split: str) -> list[dict]:
    return loader(_folder(root), split)


def _load_protocol(loader: Callable, root: Root, name: str):
    return loader(_folder(root), name)


def _count_pids(counter: Callable, root: Root) -> int:
    return counter(_folder(root))


def _register(
    name: str,
    root: Root | tuple[Root, Root | None],
    load: Callable[[], list[dict]],
    **metadata: object,
) -> None:
    """Registers one data set; doing so again with the same root changes nothing."""
    if name in DatasetCatalog:
        known = MetadataCatalog.get(name).get("root")
        if known != root:
            raise ValueError(
                f"the data set {name!r} is registered already, with the root {known}, and cannot "
                f"be registered again with {root}: choose another name_prefix"
            )
        return
    DatasetCatalog.register(name, load)
    MetadataCatalog.get(name).set(
        root=root, evaluator_type="person_search", thing_classes=["person"], **metadata
    )


def _register_splits(
    name_prefix: str,
    root: Root,
    load: Callable,
    count_pids: Callable,
    protocols: Mapping[str, Callable],
    default_protocol: str,
    cbgm: tuple[int, int],
) -> None:
    for split in ("train", "test"):
        searching = {
            "search_protocols": protocols,
            "default_search_protocols": (default_protocol,),
            "cbgm": cbgm,
        }
        training = {"count_pids": partial(_count_pids, count_pids, root)}
        _register(
            f"{name_prefix}_{split}",
            root,
            partial(_load, load, root, split),
            **(training if split == "train" else searching),
        )


def register_cuhk_sysu(
    name_prefix: str, root: Root, gallery_sizes: tuple[int, ...] = GALLERY_SIZES
) -> None:
    """Registers ``<name_prefix>_train`` and ``<name_prefix>_test`` in the CUHK-SYSU format.

    Args:
        name_prefix: e.g. ``cuhk_sysu``.
        root: folder that holds ``Image`` and ``annotation``; read when the data set is.
        gallery_sizes: the protocols to offer; the default protocol is 100 if it is among them,
            else the first.
    """
    protocols = {
        name: partial(_load_protocol, load_cuhk_sysu_protocol, root, name)
        for name in (*(f"g{size}" for size in gallery_sizes), *SUBSETS)
    }
    default = "g100" if "g100" in protocols else next(iter(protocols))
    _register_splits(
        name_prefix, root, load_cuhk_sysu, count_cuhk_sysu_pids, protocols, default, CBGM_CUHK_SYSU
    )


def register_prw(name_prefix: str, root: Root) -> None:
    """Registers ``<name_prefix>_train`` and ``<name_prefix>_test`` in the PRW format.

    Args:
        name_prefix: e.g. ``prw``.
        root: folder that holds ``frames`` and ``annotations``; read when the data set is.
    """
    protocols = {
        name: partial(_load_protocol, load_prw_protocol, root, name) for name in PRW_PROTOCOLS
    }
    _register_splits(name_prefix, root, load_prw, count_prw_pids, protocols, "all", CBGM_PRW)


def register_person_search_json(name: str, json_file: Root, image_root: Root | None = None) -> None:
    """Registers one data set that is described by a COCO-style JSON file, for training or testing.

    Args:
        name: e.g. ``mine_train``.
        json_file: see ``docs/adding_a_dataset.md``; read when the data set is.
        image_root: folder that the file names in it start from; None: the folder of the JSON.
    """

    def find_file() -> Path:
        return _folder(json_file).expanduser()

    def load() -> list[dict]:
        root = None if image_root is None else _folder(image_root).expanduser()
        return load_person_search_json(find_file(), root)

    protocols = LazyProtocols(find_file)
    _register(
        name,
        (json_file, image_root),
        load,
        count_pids=lambda: count_json_pids(find_file()),
        search_protocols=protocols,
        default_search_protocols=FirstProtocol(protocols),
    )


@dataclass(frozen=True)
class _DatasetsPath:
    """A path of a config: below ``$DETECTRON2_DATASETS`` unless it is absolute."""

    path: str

    def __call__(self) -> Path:
        return _datasets_folder() / Path(self.path).expanduser()

    def __str__(self) -> str:
        return self.path


def register_config_datasets(cfg: CfgNode) -> None:
    """Registers the data sets of ``cfg.DATASETS.PERSON_SEARCH_JSON``; may be called repeatedly.

    Raises:
        ValueError: an entry is not ``[name, JSON file]`` or ``[name, JSON file, image root]``, or
            its name is taken by another data set.
    """
    for entry in cfg.DATASETS.PERSON_SEARCH_JSON:
        texts = isinstance(entry, list | tuple) and all(isinstance(x, str) and x for x in entry)
        if not texts or len(entry) not in (2, 3):
            raise ValueError(
                f"DATASETS.PERSON_SEARCH_JSON holds {describe(entry)}; each entry is [name, JSON "
                "file] or [name, JSON file, image root], e.g. ['mine_train', 'mine/train.json']"
            )
        name, *paths = entry
        register_person_search_json(name, *map(_DatasetsPath, paths))


def get_num_pids(dataset_name: str) -> int:
    """Returns the number of training identities of a registered data set.

    The metadata's ``num_pids`` is used where it is set, then its ``count_pids``; a data set that
    has neither is read, and must number its identities 0, 1, ... without gaps.

    Raises:
        ValueError: if the identities leave gaps, or there are none.
    """
    metadata = MetadataCatalog.get(dataset_name)
    if metadata.get("num_pids") is not None:
        return int(metadata.num_pids)
    if metadata.get("count_pids") is not None:
        return metadata.count_pids()
    pids = {
        annotation["person_id"]
        for record in DatasetCatalog.get(dataset_name)
        for annotation in record["annotations"]
        if annotation["person_id"] >= 0
    }
    if not pids or pids != set(range(len(pids))):
        gap = next((pid for pid in range(len(pids)) if pid not in pids), 0)
        raise ValueError(
            f"the identities of {dataset_name!r} must be 0..{max(len(pids) - 1, 0)} without gaps, "
            f"but {gap} is absent; set num_pids in its metadata if that is intended"
        )
    return len(pids)


def _datasets_folder() -> Path:
    return Path(os.environ.get("DETECTRON2_DATASETS") or "datasets")


def _builtin_root(layout: DatasetLayout, *below: str) -> Path:
    """Returns the folder of a data set below ``$DETECTRON2_DATASETS``, by any of its names."""
    return layout.find(_datasets_folder().joinpath(*below))


cuhk_sysu_root = partial(_builtin_root, CUHK_SYSU_LAYOUT)
prw_root = partial(_builtin_root, PRW_LAYOUT)
synthetic_cuhk_sysu_root = partial(_builtin_root, CUHK_SYSU_LAYOUT, "synthetic")
synthetic_prw_root = partial(_builtin_root, PRW_LAYOUT, "synthetic")


def register_builtin_datasets() -> None:
    """Registers CUHK-SYSU, PRW and their synthetic counterparts; may be called repeatedly."""
    register_cuhk_sysu("cuhk_sysu", cuhk_sysu_root)
    register_prw("prw", prw_root)
    register_cuhk_sysu("synthetic_cuhk_sysu", synthetic_cuhk_sysu_root)
    register_prw("synthetic_prw", synthetic_prw_root)
