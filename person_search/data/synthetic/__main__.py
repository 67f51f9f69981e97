# SPDX-License-Identifier: Apache-2.0
"""``python -m person_search.data.synthetic``: the tool draw_synthetic under its older name."""

import sys
from collections.abc import Sequence

from person_search.programs import main as run_tool


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the tool and returns its exit status."""
    return run_tool(["draw_synthetic", *(sys.argv[1:] if argv is None else argv)])


if __name__ == "__main__":
    sys.exit(main())
