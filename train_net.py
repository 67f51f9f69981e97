#!/usr/bin/env python
# SPDX-License-Identifier: Apache-2.0
"""Trains or evaluates a person search model; the same as ``person-search-train``."""

import sys

from person_search.train import evaluate, launch, main, parse_args, run, setup

__all__ = ["evaluate", "launch", "main", "parse_args", "run", "setup"]

if __name__ == "__main__":
    sys.exit(main())
