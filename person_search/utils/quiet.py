# SPDX-License-Identifier: Apache-2.0
"""Keeps warnings meant for the developers of libraries away from users of the tools."""

import logging
import warnings


def quiet_libraries() -> None:
    """To be called before Detectron2 is imported; our own warnings and all errors still appear."""
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.")
    for name in ("torch.fx", "torch.fx._symbolic_trace"):
        logging.getLogger(name).setLevel(logging.ERROR)
