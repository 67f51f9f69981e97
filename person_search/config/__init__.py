# SPDX-License-Identifier: Apache-2.0
"""Configuration: the keys of the shared core, those of the projects, and reading files."""

from person_search.config.build import (
    build_config,
    check_device,
    check_model,
    default_config,
    did_you_mean,
    merge_into,
)
from person_search.config.defaults import add_person_search_config
from person_search.config.projects import ProjectError, add_all_project_configs, project_names

__all__ = [
    "ProjectError",
    "add_all_project_configs",
    "add_person_search_config",
    "build_config",
    "check_device",
    "check_model",
    "default_config",
    "did_you_mean",
    "merge_into",
    "project_names",
]
