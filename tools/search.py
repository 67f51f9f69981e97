#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The command ``person-search`` for those who have not installed the package's commands.

python tools/search.py index --help
python tools/search.py query --help
"""

import sys

from person_search.search.cli import main

if __name__ == "__main__":
    sys.exit(main())
