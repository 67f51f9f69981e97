# SPDX-License-Identifier: Apache-2.0
"""Procedurally drawn person search data in the on-disk formats of CUHK-SYSU and PRW.

``python -m person_search.data.synthetic --help`` writes it from the command line.
"""

from .config import SyntheticConfig
from .cuhk_sysu import write_cuhk_sysu
from .prw import write_prw

__all__ = ["SyntheticConfig", "write_cuhk_sysu", "write_prw"]
