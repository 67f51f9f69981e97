# SPDX-License-Identifier: Apache-2.0
"""Fixtures of the tests of PSDiff."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from teacher_tiny import count_embeddings, paint_persons, registered


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Uses one thread: more only slow down matrices this small."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def persons(tmp_path: Path) -> Iterator[tuple]:
    """Registered records, and a config of PSDiff whose embeddings belong to them."""
    records = paint_persons(tmp_path, unlabeled=True)
    with registered(records):
        yield records, count_embeddings(records, tmp_path)
