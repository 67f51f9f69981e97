# SPDX-License-Identifier: Apache-2.0
"""Saves, restores and isolates the global random number generators of a process."""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch


def get_rng_state() -> dict[str, Any]:
    """Returns the state of the generators of Python, NumPy, torch and, if in use, CUDA.

    The state consists of tensors, numbers and strings, so that
    ``torch.load(weights_only=True)`` reads it back.
    """
    version, words, gauss = random.getstate()
    name, keys, pos, has_gauss, cached = np.random.get_state()
    state = {
        "python": {"version": version, "words": torch.tensor(words), "gauss": gauss},
        "numpy": {
            "name": str(name),
            "keys": torch.from_numpy(np.array(keys, np.int64)),
            "pos": int(pos),
            "has_gauss": int(has_gauss),
            "cached": float(cached),
        },
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        state["cuda"] = torch.cuda.get_rng_state()  # of this process's own device
    return state


def set_rng_state(state: dict[str, Any]) -> None:
    """Restores what :func:`get_rng_state` returned."""
    python, numpy = state["python"], state["numpy"]
    random.setstate((python["version"], tuple(python["words"].tolist()), python["gauss"]))
    keys = numpy["keys"].numpy().astype(np.uint32)
    np.random.set_state((numpy["name"], keys, numpy["pos"], numpy["has_gauss"], numpy["cached"]))
    torch.set_rng_state(state["torch"].cpu())
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"].cpu())


def seed_rng(seed: int, *, cuda: bool = True) -> None:
    """Seeds the generators of Python, NumPy and torch.

    Args:
        seed: Seed, 0 <= seed < 2**63. NumPy takes the lower 32 bits.
        cuda: Whether to seed the GPU's generator. Must be False in the worker process of a data
            loader, which may not use CUDA.
    """
    random.seed(seed)
    np.random.seed(seed % 2**32)
    if cuda:
        torch.manual_seed(seed)
    else:
        torch.default_generator.manual_seed(seed)


@contextmanager
def isolated_rng(seed: int) -> Iterator[None]:
    """Runs its body with newly seeded generators and restores their states afterwards.

    The body, for example an evaluation, is then repeatable and does not change the random numbers
    drawn after it.
    """
    before = get_rng_state()
    try:
        seed_rng(seed)
        yield
    finally:
        set_rng_state(before)


@contextmanager
def isolated_cpu_rng(seed: int) -> Iterator[None]:
    """Does the same as :func:`isolated_rng` without the GPU; cheap enough for every sample."""
    python, numpy, cpu = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
        seed_rng(seed, cuda=False)
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
        torch.set_rng_state(cpu)
