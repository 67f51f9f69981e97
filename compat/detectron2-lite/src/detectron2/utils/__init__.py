# SPDX-License-Identifier: Apache-2.0
"""Helpers shared by the other packages: processes, events, logging, files, drawing."""
