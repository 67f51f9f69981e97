# SPDX-License-Identifier: Apache-2.0
"""detectron2-lite: a stand-in for the box detection part of Detectron2.

``__version__`` is the version of Detectron2 whose interface is kept. ``__lite__`` is the version
of the stand-in; the real package does not have it.
"""

import sys

from ._lite import AbsentModuleFinder, absent
from .utils.env import setup_environment

__version__ = "0.6"
__lite__ = "0.1.0"

# Detectron2 does this at import, too.
setup_environment()

sys.meta_path.append(AbsentModuleFinder)
__getattr__ = absent(__name__)
