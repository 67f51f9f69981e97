# SPDX-License-Identifier: Apache-2.0
"""Fixtures of the search: a tiny model, a folder of images, and the programs as functions."""

from milvus_galleries import new_gallery, own_server, server
from search_runs import images, run_tool, search_tool, tiny_run

__all__ = ["images", "new_gallery", "own_server", "server", "run_tool", "search_tool", "tiny_run"]
