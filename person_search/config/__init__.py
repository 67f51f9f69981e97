# SPDX-License-Identifier: Apache-2.0
"""Configuration keys of the shared core."""

from person_search.config.defaults import add_person_search_config

__all__ = ["add_person_search_config"]
