# SPDX-License-Identifier: Apache-2.0
"""Reading and restoring random number generators."""

import random
from pathlib import Path

import numpy as np
import pytest
import torch

from person_search.engine.rng import (
    get_rng_state,
    isolated_cpu_rng,
    isolated_rng,
    seed_rng,
    set_rng_state,
)


def draw() -> tuple[float, ...]:
    # normal variates too: their generators keep every second value for later
    return (
        random.random(),
        random.gauss(0, 1),
        np.random.rand(),
        np.random.randn(),
        float(torch.rand(())),
        float(torch.randn(())),
    )


def test_state_survives_a_checkpoint_file(tmp_path: Path) -> None:
    draw()
    torch.save(get_rng_state(), tmp_path / "state.pth")
    expected = [draw() for _ in range(3)]
    seed_rng(99)
    draw()
    set_rng_state(torch.load(tmp_path / "state.pth", weights_only=True))
    assert [draw() for _ in range(3)] == expected


@pytest.mark.parametrize("isolated", [isolated_rng, isolated_cpu_rng])
def test_isolated_rng_is_repeatable_and_restores_the_state(isolated) -> None:
    state = get_rng_state()
    expected = draw()
    set_rng_state(state)
    with isolated(7):
        first = draw()
    assert draw() == expected
    with isolated(7):
        assert draw() == first != expected
    with isolated(8):
        assert draw() != first


def test_isolated_rng_restores_the_state_after_an_error() -> None:
    state = get_rng_state()
    expected = draw()
    set_rng_state(state)
    with pytest.raises(KeyError), isolated_rng(1):
        draw()
        raise KeyError
    assert draw() == expected
