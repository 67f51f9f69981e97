# SPDX-License-Identifier: Apache-2.0
"""Configuration: keys of the shared core and of the projects, and reading config files."""

from person_search.config.build import (
    build_config,
    check_device,
    check_model,
    default_config,
    did_you_mean,
    merge_into,
    merge_run_config,
)
from person_search.config.defaults import add_person_search_config
from person_search.config.files import config_folder, find_config, list_configs, nearest_configs
from person_search.config.identity import config_hash, config_identity
from person_search.config.projects import ProjectError, add_all_project_configs, project_names

__all__ = [
    "ProjectError",
    "add_all_project_configs",
    "add_person_search_config",
    "build_config",
    "check_device",
    "check_model",
    "config_folder",
    "config_hash",
    "config_identity",
    "default_config",
    "did_you_mean",
    "find_config",
    "list_configs",
    "merge_into",
    "merge_run_config",
    "nearest_configs",
    "project_names",
]
