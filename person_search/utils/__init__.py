# SPDX-License-Identifier: Apache-2.0
"""What does not belong to any one part: the Detectron2 in use and the state of the installation."""

from person_search.utils.backend import BackendError, backend_name, check_backend

__all__ = ["BackendError", "backend_name", "check_backend"]
