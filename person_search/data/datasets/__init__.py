# SPDX-License-Identifier: Apache-2.0
"""Readers of the person search data sets and their registration, see ``person_search.data``."""
