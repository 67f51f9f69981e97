# SPDX-License-Identifier: Apache-2.0
"""Importing this module calls :func:`person_search.utils.quiet.quiet_libraries`.

For a program that imports Detectron2 at its top, whose first import this must be.
"""

from person_search.utils.quiet import quiet_libraries

quiet_libraries()
