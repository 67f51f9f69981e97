# SPDX-License-Identifier: Apache-2.0
"""Set-up of the tests of detectron2-lite: where the package and the shared inputs are found.

A Detectron2 that is already importable, real or lite, is what gets tested; a checkout without any
installation tests its own sources. The recordings in data/ come from the real one.
"""

import importlib.util
import sys
from pathlib import Path

import pytest
import torch

TESTS = Path(__file__).resolve().parent
# Recorder scripts and shared inputs are imported by name.
sys.path.insert(0, str(TESTS))
if importlib.util.find_spec("detectron2") is None:
    sys.path.insert(0, str(TESTS.parent / "src"))


@pytest.fixture(autouse=True)
def _few_threads():
    """The tensors are tiny: threads would cost more than they give."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
