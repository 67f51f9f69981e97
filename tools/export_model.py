#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Writes a trained model as an ONNX file; the same as ``person-search export``."""

import sys
from collections.abc import Sequence

from person_search.search import cli


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the program and returns its exit status."""
    return cli.main(["export", *(sys.argv[1:] if argv is None else argv)])


if __name__ == "__main__":
    sys.exit(main())
