# SPDX-License-Identifier: Apache-2.0
"""Fixtures of the search: a tiny model, a folder of images, and the programs as functions."""

from search_runs import images, run_tool, search_tool, tiny_run

__all__ = ["images", "run_tool", "search_tool", "tiny_run"]
