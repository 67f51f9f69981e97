# SPDX-License-Identifier: Apache-2.0
"""Tiny Stable Diffusion folders, written once per session."""

import pytest

from diffps.tiny import write_tiny_diffusion


@pytest.fixture(scope="session")
def tiny_sd(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder with the topology of SD 2.1. Tests must not write into it."""
    return write_tiny_diffusion(tmp_path_factory.mktemp("diffusion") / "sd21")


@pytest.fixture(scope="session")
def tiny_sd15(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_tiny_diffusion(tmp_path_factory.mktemp("diffusion") / "sd15", family="sd15")


@pytest.fixture(scope="session")
def tiny_sdxl(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_tiny_diffusion(tmp_path_factory.mktemp("diffusion") / "sdxl", family="sdxl")
