# SPDX-License-Identifier: Apache-2.0
"""The Detectron2 in use, the state of the installation, and reading and writing files."""

from person_search.utils.backend import BackendError, backend_name, check_backend

__all__ = ["BackendError", "backend_name", "check_backend"]
