# SPDX-License-Identifier: Apache-2.0
"""Comparison with the installed PyTorch version."""

import re

import torch


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version.split("+")[0])[:3])


def min_torch_version(min_version: str) -> bool:
    """Whether PyTorch is at least `min_version`, for example "2.1"."""
    return _numbers(torch.__version__) >= _numbers(min_version)
