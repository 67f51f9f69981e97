# SPDX-License-Identifier: Apache-2.0
"""Paths of the tests of detectron2-lite.

The tests run on an installed Detectron2, real or lite, or else on the sources of this folder.
"""

import importlib.util
import sys
from pathlib import Path

import pytest
import torch

TESTS = Path(__file__).resolve().parent
# recorders and inputs are imported by name
sys.path.insert(0, str(TESTS))
if importlib.util.find_spec("detectron2") is None:
    sys.path.insert(0, str(TESTS.parent / "src"))


@pytest.fixture(autouse=True)
def _few_threads():
    """Uses one thread, which is faster for tiny tensors."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
