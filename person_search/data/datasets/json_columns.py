# SPDX-License-Identifier: Apache-2.0
"""Reading JSON and checking the types of its entries, so that all faults come out at once.

A *finding* is one sentence about one fault. Functions collect findings and go on with a harmless
value in place of the wrong one; whoever reads the result must look at the findings first.
"""

import json
import reprlib
from collections.abc import Iterable, Sequence
from itertools import chain
from pathlib import Path
from types import NoneType
from typing import Any

import numpy as np

MAX_ID = 2**31 - 1
"""Ids of images and queries fill int32 arrays."""

_SHOWN = 10


class AnnotationFileError(ValueError):
    """An annotation file with faults.

    Args:
        path: the file.
        findings: all faults.
    """

    def __init__(self, path: Path, findings: Sequence[str]):
        self.path, self.findings = path, list(findings)
        lines = [f"{path} has {len(findings)} fault{'s' * (len(findings) > 1)}:"]
        lines += [f"  {finding}" for finding in findings[:_SHOWN]]
        if len(findings) > _SHOWN:
            lines.append(
                f"  ... and {len(findings) - _SHOWN} more; tools/check_dataset.py {path} lists all"
            )
        super().__init__("\n".join(lines))


class Section:
    """The entries of one list of a document, read column by column.

    Args:
        name: key of the list, for the findings.
        entries: its value in the document.
        findings: gets one sentence per fault.
    """

    def __init__(self, name: str, entries: Any, findings: list[str]):
        self.name, self.findings = name, findings
        if not isinstance(entries, list):
            findings.append(f"{name} is {describe(entries)}; a list of objects is expected")
            entries = []
        if not set(map(type, entries)) <= {dict}:
            for row, entry in enumerate(entries):
                if type(entry) is not dict:
                    self.add(row, f"is {describe(entry)}; an object is expected")
            entries = [entry if type(entry) is dict else {} for entry in entries]
        self.entries: list[dict] = entries

    def __len__(self) -> int:
        return len(self.entries)

    def add(self, row: int, text: str) -> None:
        """Adds a finding about one entry."""
        self.findings.append(f"{self.name}[{row}]: {text}")

    def column(self, key: str, kinds: set[type], expected: str, default: Any) -> list:
        """Returns the values of ``key``; None stands for an absent one.

        Args:
            key: of the entries.
            kinds: the types allowed (``bool`` is no ``int``); ``NoneType`` lets it be absent.
            expected: the same in words.
            default: stands in for a value of another type.
        """
        values = [entry.get(key) for entry in self.entries]
        if not set(map(type, values)) <= kinds:
            for row, value in enumerate(values):
                if type(value) not in kinds:
                    state = "is absent" if value is None else f"is {describe(value)}"
                    self.add(row, f"{key} {state}; {expected} is expected")
                    values[row] = default
        return values

    def ids(self, key: str = "id", optional: bool = False, unique: bool = True) -> np.ndarray:
        """Returns (N,) int64 whole numbers 0..2^31 - 1; -1 where one is absent or wrong."""
        kinds: set[type] = {int, NoneType} if optional else {int}
        values = self.column(key, kinds, "a whole number from 0", None)
        present = [value for value in values if value is not None]
        if present and (min(present) < 0 or max(present) > MAX_ID):
            for row, value in enumerate(values):
                if value is not None and not 0 <= value <= MAX_ID:
                    self.add(row, f"{key} is {value}; allowed: 0 to {MAX_ID}")
                    values[row] = None
        array = np.array([-1 if value is None else value for value in values], np.int64)
        if unique:
            self.duplicates(key, array[array >= 0].tolist(), np.flatnonzero(array >= 0).tolist())
        return array

    def duplicates(self, key: str, values: list, rows: list[int] | None = None) -> None:
        """Adds a finding for each value that stands there before."""
        if len(set(values)) == len(values):
            return
        first: dict[Any, int] = {}
        for row, value in zip(rows or range(len(values)), values, strict=True):
            if value in first:
                self.add(row, f"{key} {value!r} is that of {self.name}[{first[value]}] already")
            first.setdefault(value, row)

    def boxes(self, key: str = "bbox", optional: bool = False) -> np.ndarray:
        """Returns (N, 4) float64 of four finite numbers each; nan where they are absent or wrong.

        Args:
            key: of the entries.
            optional: whether an entry may lack it.
        """
        values: list[Any] = [entry.get(key) for entry in self.entries]
        plain = set(map(type, values)) <= {list} and set(map(len, values)) <= {4}
        if plain and set(map(type, chain.from_iterable(values))) <= {int, float}:
            try:
                array = _to_float(values)
            except OverflowError:  # a whole number beyond all floats; found again below
                array = np.full((1, 4), np.nan)
            if np.isfinite(array).all():
                return array
        missing = [np.nan] * 4
        rows: list[list[float]] = []
        for row, value in enumerate(values):
            if value is None and optional:
                rows.append(missing)
                continue
            fault = _box_fault(value)
            if fault:
                self.add(row, f"{key} {fault}; four numbers [x, y, width, height] are expected")
            rows.append(missing if fault else value)
        return _to_float(rows)


def _to_float(rows: list[list]) -> np.ndarray:
    return np.array(rows, np.float64).reshape(-1, 4)


def _box_fault(value: Any) -> str | None:
    """What is wrong with the value of a ``bbox``, as the predicate of a sentence."""
    if value is None:
        return "is absent"
    if type(value) is not list or len(value) != 4:
        return f"is {describe(value)}"
    if not set(map(type, value)) <= {int, float} or max(map(abs, value)) > 1e15:
        return f"is {describe(value)}"
    # nan gets past the comparison above
    return None if all(np.isfinite(value)) else f"is {describe(value)}, which is not finite"


def describe(value: Any) -> str:
    """Returns a value for a message: JSON's own spelling where it is short."""
    if value is None:
        return "null"
    if isinstance(value, dict | list) and len(value) > 8:
        return f"{'an object' if isinstance(value, dict) else 'a list'} of {len(value)} entries"
    return reprlib.repr(value)


def unknown(values: Iterable, known: set) -> list[int]:
    """Returns the positions of the values that are not known."""
    return [row for row, value in enumerate(values) if value not in known]


def read_json(path: Path) -> dict:
    """Returns the object that a JSON file holds.

    Raises:
        FileNotFoundError: there is no such file. AnnotationFileError: it is empty, no UTF-8, no
            JSON (with line and column), or no object.
    """
    if not path.exists():
        raise FileNotFoundError(f"the annotation file {path} does not exist")
    if not path.is_file():
        raise AnnotationFileError(path, ["is a folder; the name of a JSON file is expected"])
    content = path.read_bytes()
    if not content.strip():
        raise AnnotationFileError(path, [f"the file is empty ({len(content)} bytes)"])
    try:
        document = json.loads(content.decode("utf-8-sig"))
    except UnicodeDecodeError as e:
        raise AnnotationFileError(path, [f"the file is no UTF-8 text ({e})"]) from e
    except json.JSONDecodeError as e:
        cut = e.pos >= len(content.rstrip()) - 1
        hint = "; the file ends in the middle: copy it again" if cut else ""
        place = f"line {e.lineno}, column {e.colno}"
        raise AnnotationFileError(path, [f"the file is no JSON: {e.msg}, {place}{hint}"]) from e
    except RecursionError as e:
        raise AnnotationFileError(path, ["lists or objects are nested too deeply"]) from e
    except ValueError as e:  # a whole number of thousands of digits
        raise AnnotationFileError(path, [str(e)]) from e
    if not isinstance(document, dict):
        raise AnnotationFileError(
            path, [f"the file holds {describe(document)}; an object with images is expected"]
        )
    return document
