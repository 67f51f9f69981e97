#!/usr/bin/env python
# SPDX-License-Identifier: Apache-2.0
"""Writes the synthetic data set; the same as ``python -m person_search.data.synthetic``."""

import sys

from person_search.data.synthetic.__main__ import main

if __name__ == "__main__":
    sys.exit(main())
