# SPDX-License-Identifier: Apache-2.0
"""MATLAB values in the types of the original annotation files."""

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from scipy.io import savemat

_HEADER = b"MATLAB 5.0 MAT-file, synthetic person search data".ljust(116)
"""Text at the start of a file, in place of SciPy's, which holds the date."""


def struct_array(fields: Sequence[str], rows: Sequence[tuple]) -> np.ndarray:
    """Returns a MATLAB struct array (1, n) with the fields in this order."""
    array = np.empty((1, len(rows)), dtype=[(name, "O") for name in fields])
    for index, row in enumerate(rows):
        array[0, index] = tuple(row)
    return array


def cell_column(values: Sequence) -> np.ndarray:
    """Returns a MATLAB cell array (n, 1)."""
    cells = np.empty((len(values), 1), dtype=object)
    for index, value in enumerate(values):
        cells[index, 0] = value
    return cells


def box_array(box: Sequence[int]) -> np.ndarray:
    """Returns a box (1, 4) in the narrowest unsigned type, as in the original files.

    Readers must widen it, because x + w of a uint8 box can overflow.
    """
    narrow = np.uint8 if max(box) < 256 else np.uint16
    return np.array([list(box)], dtype=narrow)


def flag(value: bool) -> np.ndarray:
    """Returns a flag as (1, 1) uint8."""
    return np.array([[int(value)]], dtype=np.uint8)


def empty() -> np.ndarray:
    """Returns the marker of "not in this image": float64 (1, 0)."""
    return np.zeros((1, 0), dtype=np.float64)


def save(path: Path, name: str, value: np.ndarray) -> None:
    """Writes one variable in MATLAB's format 5, without a date in the header."""
    path.parent.mkdir(parents=True, exist_ok=True)
    buffer = io.BytesIO()
    savemat(buffer, {name: value}, do_compression=True)
    content = bytearray(buffer.getvalue())
    content[: len(_HEADER)] = _HEADER
    path.write_bytes(content)
