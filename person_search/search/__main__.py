# SPDX-License-Identifier: Apache-2.0
"""``python -m person_search.search``: same as the command ``person-search``."""

import sys

from person_search.search.cli import main

if __name__ == "__main__":
    sys.exit(main())
