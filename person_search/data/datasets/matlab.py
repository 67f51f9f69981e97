# SPDX-License-Identifier: Apache-2.0
"""Reading MATLAB files as ``scipy.io.loadmat`` gives them: nested object arrays of odd shapes."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from scipy.io import loadmat


def damaged_file(path: Path, error: Exception) -> ValueError:
    """Returns the error for a file that cannot be read; the caller raises it from ``error``."""
    return ValueError(
        f"{path} is not a readable MATLAB file ({type(error).__name__}: {error}); it may have "
        "been copied only in part: copy it again"
    )


def load_variable(path: Path, names: Sequence[str]) -> np.ndarray:
    """Returns the first variable of ``names`` that the file holds.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file is damaged, or holds none of them.
    """
    with open(path, "rb") as file:
        try:
            content = loadmat(file)
        except Exception as e:  # scipy raises many unrelated types on a file that was cut off
            raise damaged_file(path, e) from e
    for name in names:
        if name in content:
            return content[name]
    held = sorted(name for name in content if not name.startswith("__"))
    raise ValueError(f"{path} holds the variables {held}, but none of {list(names)}")


def text(value: np.ndarray) -> str:
    """Returns the string in a MATLAB char array, e.g. ``array(['s1.jpg'])``; empty gives ""."""
    value = np.asarray(value)
    return str(value.reshape(-1)[0]) if value.size else ""


def cell_strings(cells: np.ndarray) -> list[str]:
    """Returns the strings of a cell array, of either orientation."""
    return [text(cell) for cell in cells.reshape(-1)]


def box_or_none(value: np.ndarray, where: str) -> np.ndarray | None:
    """Returns (4,) float64 of an ``idlocate`` field, or None where it is empty, i.e. (1, 0).

    The numbers are uint8 wherever they fit; float64 keeps sums of them from wrapping.
    """
    value = np.asarray(value)
    if value.size == 0:
        return None
    if value.size != 4:
        raise ValueError(f"{where}: a box needs 4 numbers (x, y, w, h), got {value.tolist()}")
    return value.reshape(4).astype(np.float64)


def struct_rows(array: np.ndarray, fields: Sequence[str], where: str) -> Iterator[tuple]:
    """Iterates over a struct array of any shape, giving the named fields of each element.

    MATLAB stores an empty struct as a plain empty array without fields; it gives nothing.
    """
    if array.size == 0:
        return iter(())
    held = array.dtype.names or ()
    absent = [field for field in fields if field not in held]
    if absent:
        raise ValueError(f"{where}: the fields {absent} are absent; it holds {list(held)}")
    return zip(*(array[field].reshape(-1) for field in fields), strict=True)
