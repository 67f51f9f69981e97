# SPDX-License-Identifier: Apache-2.0
"""Writes a data set all or nothing, and recognizes one that is already there.

A set grows in a hidden folder beside its place and moves there in one step, so that an
interrupted run leaves nothing that looks complete. The manifest knows the options and the size
of all files.
"""

import functools
import json
import multiprocessing
import os
import shutil
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import cv2
from tqdm import tqdm

from person_search.data.datasets.cache import CACHE_FOLDER

from .config import SyntheticConfig
from .scene import DrawnPerson, SceneSpec, render_scene

MANIFEST = "synthetic.json"
"""Written last; a folder without it is not ours, or not whole."""


def _measure_tree(root: Path) -> dict[str, int]:
    """Number and bytes of all files below ``root``, without the manifest and the readers' cache."""
    files = [p for p in root.rglob("*") if p.is_file() and p.name != MANIFEST]
    files = [p for p in files if p.relative_to(root).parts[0] != CACHE_FOLDER]
    return {"files": len(files), "bytes": sum(p.stat().st_size for p in files)}


def read_manifest(root: Path) -> dict | None:
    """The manifest of the set at ``root``; None where it is missing or no JSON object."""
    try:
        manifest = json.loads((root / MANIFEST).read_text())
    except (FileNotFoundError, NotADirectoryError, json.JSONDecodeError):
        return None
    return manifest if isinstance(manifest, dict) else None


def is_complete(root: Path, fingerprint: str) -> bool:
    """Whether ``root`` holds the whole set of exactly these options."""
    manifest = read_manifest(root)
    if manifest is None or manifest.get("fingerprint") != fingerprint:
        return False
    measured = _measure_tree(root)
    return all(manifest.get(key) == value for key, value in measured.items())


def write_data_set(
    root: Path, fingerprint: str, options: dict, fill: Callable[[Path], dict]
) -> bool:
    """Has ``fill`` write the set, unless it is there.

    Args:
        root: where the set shall lie.
        fingerprint: hash of the options.
        options: the options, for people who read the manifest.
        fill: writes all files into the folder it is given; returns counts for the manifest.

    Returns:
        Whether anything was written.

    Raises:
        FileExistsError: ``root`` holds files but no manifest, so they may be somebody's data.
    """
    if is_complete(root, fingerprint):
        return False
    if root.exists() and read_manifest(root) is None and any(root.iterdir()):
        raise FileExistsError(
            f"{root} is not empty and has no {MANIFEST}: it was not written by this generator. "
            "Choose another folder, or empty this one."
        )
    partial = root.parent / f".{root.name}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    counts = fill(partial)
    manifest = {"fingerprint": fingerprint, **_measure_tree(partial)}
    manifest |= {"counts": counts, "options": options}
    with (partial / MANIFEST).open("w") as file:
        json.dump(manifest, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    if root.exists():
        shutil.rmtree(root)
    partial.rename(root)
    return True


def _draw_to_file(spec: SceneSpec, folder: str, quality: int) -> list[DrawnPerson]:
    picture, people = render_scene(spec)
    good, encoded = cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, quality])
    if not good:
        raise RuntimeError(f"OpenCV could not encode {spec.file_name} as JPEG")
    # not cv2.imwrite: only Python's own writing reports a full disk
    Path(folder, spec.file_name).write_bytes(encoded.tobytes())
    return people


class _Bar(tqdm):
    """A progress bar that starts no thread."""

    monitor_interval = 0


def _single_thread() -> None:
    cv2.setNumThreads(1)


def draw_images(
    specs: list[SceneSpec],
    folder: Path,
    cfg: SyntheticConfig,
    workers: int,
    progress: bool,
    title: str,
) -> list[list[DrawnPerson]]:
    """Draws all images into ``folder``; the result does not depend on ``workers``.

    Returns:
        The boxed people of each image, in the order of ``specs``.
    """
    folder.mkdir(parents=True, exist_ok=True)
    draw = functools.partial(_draw_to_file, folder=str(folder), quality=cfg.jpeg_quality)
    bar = functools.partial(
        _Bar, total=len(specs), desc=title, unit="picture", disable=not progress, mininterval=1.0
    )
    if workers <= 1:
        threads = cv2.getNumThreads()
        _single_thread()
        try:
            return list(bar(map(draw, specs)))
        finally:
            cv2.setNumThreads(threads)
    # a fork starts at once, but one of a process with threads can hang
    alone = sys.platform == "linux" and threading.active_count() == 1
    context = multiprocessing.get_context("fork" if alone else "spawn")
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_single_thread) as pool:
        return list(bar(pool.map(draw, specs, chunksize=8)))
