# SPDX-License-Identifier: Apache-2.0
"""Reads an annotation file (COCO-style JSON) once, and from its cache from then on."""

import logging
from functools import lru_cache
from pathlib import Path

import numpy as np

from person_search.data.datasets.cache import cached_arrays, fingerprint
from person_search.data.datasets.json_columns import AnnotationFileError, read_json
from person_search.data.datasets.json_document import parse_document
from person_search.data.datasets.json_tables import AnnotationTables

logger = logging.getLogger(__name__)

_CACHE_VERSION = 1  # raise it when the meaning of any array of AnnotationTables changes
_LARGE_FILE = 20_000_000  # bytes


def read_tables(json_file: str | Path) -> AnnotationTables:
    """Returns the checked content of an annotation file; do not change the arrays.

    Raises:
        FileNotFoundError: there is no such file.
        AnnotationFileError: it has faults, all of which are in the message or counted there.
    """
    path = Path(json_file)
    if not path.exists():
        raise FileNotFoundError(
            f"the annotation file {path} does not exist (absolute path: {path.absolute()})"
        )
    return _read_tables(path, fingerprint([path]))


@lru_cache(maxsize=4)
def _read_tables(path: Path, key: str) -> AnnotationTables:
    """The second argument is for the in-memory cache only: a changed file is read again."""

    def build() -> dict[str, np.ndarray]:
        if path.is_file() and path.stat().st_size > _LARGE_FILE:
            logger.info(f"Reading {path} (once)")
        tables, findings = parse_document(read_json(path))
        if findings:
            raise AnnotationFileError(path, findings)
        return tables.pack()

    name = f"{path.name}.v{_CACHE_VERSION}"
    return AnnotationTables.unpack(cached_arrays(path.parent, name, [path], build))
