# SPDX-License-Identifier: Apache-2.0
"""detectron2-lite: the part of Detectron2's public interface that person search needs.

It is a stand-in under the same import name, for machines where the real package cannot be
compiled. ``__version__`` is the version of Detectron2 whose interface is kept; ``__lite__`` exists
only here, and is the version of the stand-in itself.
"""

from ._lite import absent
from .utils.env import setup_environment

__version__ = "0.6"
__lite__ = "0.1.0"

# The real one does this at import, too: library settings and $DETECTRON2_ENV_MODULE.
setup_environment()

__getattr__ = absent(__name__, "export", "projects", "tracking")
