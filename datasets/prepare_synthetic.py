#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Writes the synthetic data set; the same as ``tools/draw_synthetic.py``."""

import sys

from person_search.programs import main

if __name__ == "__main__":
    sys.exit(main(["draw_synthetic", *sys.argv[1:]]))
