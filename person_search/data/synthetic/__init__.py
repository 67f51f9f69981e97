# SPDX-License-Identifier: Apache-2.0
"""Procedurally drawn person search data in the on-disk formats of CUHK-SYSU and PRW.

Command line: ``python -m person_search.data.synthetic --help``. Nothing in the core imports this
package.
"""

from person_search.synthetic_config import SyntheticConfig

from .cuhk_sysu import write_cuhk_sysu
from .prw import write_prw

__all__ = ["SyntheticConfig", "write_cuhk_sysu", "write_prw"]
