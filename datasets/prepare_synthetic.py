#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Writes the synthetic data set; the same as ``python -m person_search.data.synthetic``."""

import sys

from person_search.cli import quiet_libraries

if __name__ == "__main__":
    quiet_libraries()
    from person_search.data.synthetic.__main__ import main

    sys.exit(main())
