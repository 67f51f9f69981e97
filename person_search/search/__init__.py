# SPDX-License-Identifier: Apache-2.0
"""Person search in your own images and videos: index, query and serve a gallery.

The names below are imported on first use, so that ``person-search --help`` does not import torch.
"""

import importlib
from typing import Any

_MODULE_OF = {
    "ApproximateIndex": "approximate",
    "CompactReport": "store",
    "FolderGallery": "folder_gallery",
    "FolderStore": "folder_store",
    "Gallery": "gallery",
    "GalleryDamagedError": "errors",
    "GalleryError": "errors",
    "GalleryImage": "table",
    "GalleryLockedError": "errors",
    "GalleryStore": "store",
    "ImageChangedError": "errors",
    "ImageKey": "table",
    "IndexOptions": "indexing",
    "IndexReport": "indexing",
    "Match": "table",
    "ModelIdentity": "identity",
    "OriginRules": "sources",
    "OtherModelError": "errors",
    "PersonEmbedder": "embedder",
    "QueryPerson": "query",
    "SearchFilter": "table",
    "SearchResult": "results",
    "UnsafePathError": "errors",
    "build_index": "approximate",
    "clip_box": "images",
    "compact": "maintenance",
    "copy": "copying",
    "detected_person": "query",
    "find_sources": "sources",
    "format_time": "table",
    "fuse": "query",
    "index_images": "indexing",
    "json_lines": "results",
    "parse_time": "sources",
    "person_in_box": "query",
    "read_frame": "videos",
    "read_image": "images",
    "read_table": "sources",
    "verify": "maintenance",
    "write_results": "results",
}
__all__ = list(_MODULE_OF)  # noqa: PLE0605


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULE_OF[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_MODULE_OF})
