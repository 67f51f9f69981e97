# SPDX-License-Identifier: Apache-2.0
"""Utilities for processes, events, logging and files."""
