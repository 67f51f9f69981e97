# SPDX-License-Identifier: Apache-2.0
"""Registers the data sets by name. No file is read until a data set is used.

The folder is looked up each time a data set is read: ``$DETECTRON2_DATASETS``, or ``datasets``.
"""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog

from person_search.data.datasets.common import DatasetLayout
from person_search.data.datasets.cuhk_sysu import load_cuhk_sysu, load_cuhk_sysu_protocol
from person_search.data.datasets.cuhk_sysu_files import CUHK_SYSU_LAYOUT, GALLERY_SIZES, SUBSETS
from person_search.data.datasets.cuhk_sysu_files import count_train_pids as count_cuhk_sysu_pids
from person_search.data.datasets.json_dataset import (
    count_json_pids,
    load_json_protocol,
    load_person_search_json,
    read_table,
)
from person_search.data.datasets.json_document import describe, read_json
from person_search.data.datasets.protocols import protocol_names
from person_search.data.datasets.prw import (
    PRW_LAYOUT,
    PRW_PROTOCOLS,
    count_prw_pids,
    load_prw,
    load_prw_protocol,
)
from person_search.schema import SearchProtocol
from person_search.utils.model_card import DRAWN, PHOTOGRAPHS

Root = str | Path | Callable[[], str | Path]
"""Folder of a data set, or a function that returns it when the data set is read."""

CBGM_CUHK_SYSU, CBGM_PRW = (10, 3), (30, 4)
"""k1 and k2 of context bipartite graph matching for each data set, as in SeqNet."""


def _call(function: Callable, root: Root, *args: object) -> Any:
    """Calls a function with the folder of a data set."""
    return function(Path(root()) if callable(root) else Path(root), *args)


def _register(
    name: str,
    root: Root | tuple[Root, Root | None],
    load: Callable[[], list[dict]],
    **metadata: object,
) -> None:
    """Registers a data set; registering it again with the same root changes nothing."""
    if name in DatasetCatalog:
        known = MetadataCatalog.get(name).get("root")
        if known != root:
            raise ValueError(
                f"the data set {name!r} is already registered with the root {known} and cannot be "
                f"registered again with {root}: choose another name or name_prefix"
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
    load_protocol: Callable,
    protocols: Sequence[str],
    kind: str,
    **metadata: object,
) -> None:
    """Registers the training and the test split of a data set, the latter with ``metadata``."""
    _register(
        f"{name_prefix}_train",
        root,
        partial(_call, load, root, "train"),
        count_pids=partial(_call, count_pids, root),
        image_kind=kind,
    )
    _register(
        f"{name_prefix}_test",
        root,
        partial(_call, load, root, "test"),
        search_protocols={name: partial(_call, load_protocol, root, name) for name in protocols},
        image_kind=kind,
        **metadata,
    )


def register_cuhk_sysu(
    name_prefix: str,
    root: Root,
    gallery_sizes: tuple[int, ...] = GALLERY_SIZES,
    kind: str = PHOTOGRAPHS,
) -> None:
    """Registers ``<name_prefix>_train`` and ``<name_prefix>_test`` in the CUHK-SYSU format.

    Args:
        name_prefix: Prefix of the names, for example ``cuhk_sysu``.
        root: Folder with ``Image`` and ``annotation``.
        gallery_sizes: Gallery sizes of the protocols. The default protocol is 100 if it is among
            them, else the first.
        kind: What the images are, one of ``person_search.utils.model_card.KINDS``.
    """
    names = [f"g{size}" for size in gallery_sizes]
    _register_splits(
        name_prefix,
        root,
        load_cuhk_sysu,
        count_cuhk_sysu_pids,
        load_cuhk_sysu_protocol,
        (*names, *SUBSETS),
        kind,
        default_search_protocols=("g100" if "g100" in names else names[0],),
        cbgm=CBGM_CUHK_SYSU,
    )


def register_prw(name_prefix: str, root: Root, kind: str = PHOTOGRAPHS) -> None:
    """Registers ``<name_prefix>_train`` and ``<name_prefix>_test`` in the PRW format.

    Args:
        name_prefix: Prefix of the names, for example ``prw``.
        root: Folder with ``frames`` and ``annotations``.
        kind: See :func:`register_cuhk_sysu`.
    """
    _register_splits(
        name_prefix,
        root,
        load_prw,
        count_prw_pids,
        load_prw_protocol,
        PRW_PROTOCOLS,
        kind,
        default_search_protocols=("all",),
        cbgm=CBGM_PRW,
    )


def register_person_search_json(name: str, json_file: Root, image_root: Root | None = None) -> None:
    """Registers a data set described by an annotation file, for training or testing.

    Args:
        name: Name of the data set, for example ``mine_train``.
        json_file: COCO-style JSON file, see ``docs/adding_a_dataset.md``.
        image_root: Folder to which file names are relative. Default: the folder of ``json_file``.
    """

    def find_file() -> Path:
        return _call(Path.expanduser, json_file)

    def load() -> list[dict]:
        root = None if image_root is None else _call(Path.expanduser, image_root)
        return load_person_search_json(find_file(), root)

    protocols = _LazyProtocols(find_file)
    _register(
        name,
        (json_file, image_root),
        load,
        count_pids=lambda: count_json_pids(find_file()),
        image_kind=lambda: read_json(find_file()).get("kind"),
        search_protocols=protocols,
        default_search_protocols=_FirstProtocol(protocols),
    )


class _LazyProtocols(Mapping):
    """``search_protocols`` of an annotation file, which is read on first use."""

    def __init__(self, find_file: Callable[[], Path]):
        self._find_file = find_file

    # Detectron2's metadata compares a value with itself, which would read the file
    __eq__ = object.__eq__
    __hash__ = object.__hash__

    def _names(self) -> tuple[str, ...]:
        return protocol_names(read_table(self._find_file()))

    def __getitem__(self, name: str) -> Callable[[], SearchProtocol]:
        if name not in self._names():
            raise KeyError(name)
        return lambda: load_json_protocol(self._find_file(), name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names())

    def __len__(self) -> int:
        return len(self._names())


class _FirstProtocol(Sequence):
    """``default_search_protocols`` of an annotation file: its first protocol."""

    def __init__(self, protocols: _LazyProtocols):
        self._protocols = protocols

    def __getitem__(self, index: int | slice) -> str | tuple[str, ...]:
        return (next(iter(self._protocols)),)[index]

    def __len__(self) -> int:
        return 1


@dataclass(frozen=True)
class _DatasetsPath:
    """A path of a config, relative to ``$DETECTRON2_DATASETS`` unless it is absolute."""

    path: str

    def __call__(self) -> Path:
        return data_folder() / Path(self.path).expanduser()

    def __str__(self) -> str:
        return self.path


def register_config_datasets(cfg: CfgNode) -> None:
    """Registers the data sets of ``cfg.DATASETS.PERSON_SEARCH_JSON``; may be called repeatedly.

    Raises:
        ValueError: If an entry is not ``[name, JSON file]`` or ``[name, JSON file, image root]``,
            or its name belongs to another data set.
    """
    for entry in cfg.DATASETS.PERSON_SEARCH_JSON:
        texts = isinstance(entry, list | tuple) and all(isinstance(x, str) and x for x in entry)
        if not texts or len(entry) not in (2, 3):
            raise ValueError(
                f"DATASETS.PERSON_SEARCH_JSON has the entry {describe(entry)}; expected is "
                "[name, JSON file] or [name, JSON file, image root], for example "
                "['mine_train', 'mine/train.json']"
            )
        name, *paths = entry
        register_person_search_json(name, *map(_DatasetsPath, paths))


def get_num_pids(dataset_name: str) -> int:
    """Returns the number of training identities of a registered data set.

    Uses ``num_pids`` of the metadata if set, then ``count_pids``. Any other data set is read, and
    its identities must be numbered 0, 1, ... without gaps.

    Raises:
        ValueError: If the identities have gaps, there are none, or the data set is not a person
            search data set.
    """
    metadata = MetadataCatalog.get(dataset_name)
    if metadata.get("num_pids") is not None:
        return int(metadata.num_pids)
    if metadata.get("count_pids") is not None:
        return metadata.count_pids()
    labels = [
        annotation.get("person_id")
        for record in DatasetCatalog.get(dataset_name)
        for annotation in record.get("annotations", ())
    ]
    if None in labels or not labels:
        raise not_person_search(dataset_name, "its annotations have no person_id")
    pids = {label for label in labels if label >= 0}
    if not pids or pids != set(range(len(pids))):
        gap = next((pid for pid in range(len(pids)) if pid not in pids), 0)
        raise ValueError(
            f"the identities of {dataset_name!r} must be 0..{max(len(pids) - 1, 0)} without gaps, "
            f"but {gap} is absent; set num_pids in its metadata if that is intended"
        )
    return len(pids)


def not_person_search(dataset_name: str, reason: str) -> ValueError:
    """Returns the error for a data set that was not registered for person search.

    Args:
        dataset_name: Registered name of the data set.
        reason: What it lacks.
    """
    metadata = MetadataCatalog.get(dataset_name)
    file = metadata.get("json_file") or "train.json"
    folder = metadata.get("image_root")
    entry = ", ".join(repr(str(part)) for part in (dataset_name, file, folder) if part)
    how = "register_coco_instances" if metadata.get("evaluator_type") == "coco" else "its program"
    return ValueError(
        f"the data set {dataset_name!r}, as registered by {how}, is not for person search: "
        f"{reason}. If its JSON file has a person_id in each annotation, list it in the config "
        f"under a new name, DATASETS.PERSON_SEARCH_JSON [[{entry}]], or register it with "
        f"person_search.data.register_person_search_json({entry}); see docs/adding_a_dataset.md"
    )


def data_folder() -> Path:
    """Returns ``$DETECTRON2_DATASETS``, or ``datasets``."""
    return Path(os.environ.get("DETECTRON2_DATASETS") or "datasets")


def _builtin_root(layout: DatasetLayout, *below: str) -> Path:
    """Returns the folder of a data set below ``$DETECTRON2_DATASETS``, by any of its names."""
    return layout.find(data_folder().joinpath(*below))


cuhk_sysu_root = partial(_builtin_root, CUHK_SYSU_LAYOUT)
prw_root = partial(_builtin_root, PRW_LAYOUT)
synthetic_cuhk_sysu_root = partial(_builtin_root, CUHK_SYSU_LAYOUT, "synthetic")
synthetic_prw_root = partial(_builtin_root, PRW_LAYOUT, "synthetic")


def register_builtin_datasets() -> None:
    """Registers CUHK-SYSU, PRW and their synthetic counterparts; may be called repeatedly."""
    register_cuhk_sysu("cuhk_sysu", cuhk_sysu_root)
    register_prw("prw", prw_root)
    register_cuhk_sysu("synthetic_cuhk_sysu", synthetic_cuhk_sysu_root, kind=DRAWN)
    register_prw("synthetic_prw", synthetic_prw_root, kind=DRAWN)
