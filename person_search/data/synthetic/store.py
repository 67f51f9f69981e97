# SPDX-License-Identifier: Apache-2.0
"""Writes a data set as a whole or not at all, and recognizes an existing one.

A data set is written to a hidden folder beside its final place and moved there in one step, so
that an interrupted run leaves nothing that looks complete. The manifest holds the options, and the
number and size of all files.
"""

import dataclasses
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
from person_search.synthetic_config import SyntheticConfig

from .scene import DrawnPerson, SceneSpec, render_scene

MANIFEST = "synthetic.json"
"""Written last; a folder without it is incomplete or not from this generator."""


def _measure_tree(root: Path) -> dict[str, int]:
    """Returns number and bytes of all files, without the manifest and the cache of the readers."""
    files = [p for p in root.rglob("*") if p.is_file() and p.name != MANIFEST]
    files = [p for p in files if p.relative_to(root).parts[0] != CACHE_FOLDER]
    return {"files": len(files), "bytes": sum(p.stat().st_size for p in files)}


def write_data_set(
    root: str | Path, cfg: SyntheticConfig, layout: str, fill: Callable[[Path], dict]
) -> bool:
    """Writes a data set unless it exists.

    Args:
        root: Folder of the data set.
        cfg: Options of the data set.
        layout: Name of the on-disk layout.
        fill: Writes all files into a given folder and returns counts for the manifest.

    Returns:
        Whether the data set was written.

    Raises:
        FileExistsError: If ``root`` holds files but no manifest, because they may be user data.
    """
    root, fingerprint = Path(root), cfg.fingerprint(layout)
    try:
        known = json.loads((root / MANIFEST).read_text("utf-8"))
    except (FileNotFoundError, NotADirectoryError, ValueError):
        known = None
    if isinstance(known, dict):
        wanted = {"fingerprint": fingerprint, **_measure_tree(root)}
        if all(known.get(key) == value for key, value in wanted.items()):
            return False
    elif root.exists() and any(root.iterdir()):
        raise FileExistsError(
            f"{root} is not empty and has no {MANIFEST}: it was not written by this generator. "
            "Choose another folder, or empty this one."
        )
    partial = root.parent / f".{root.name}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    counts = fill(partial)
    manifest = {"fingerprint": fingerprint, **_measure_tree(partial)}
    manifest |= {"counts": counts, "options": dataclasses.asdict(cfg)}
    with (partial / MANIFEST).open("w", encoding="utf-8") as file:
        json.dump(manifest, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    if root.exists():
        shutil.rmtree(root)
    partial.rename(root)
    return True


def _draw_to_file(spec: SceneSpec, folder: str, quality: int) -> list[DrawnPerson]:
    image, people = render_scene(spec)
    good, encoded = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, quality])
    if not good:
        raise RuntimeError(f"OpenCV failed to encode {spec.file_name} as JPEG")
    # cv2.imwrite would not report a full disk
    Path(folder, spec.file_name).write_bytes(encoded.tobytes())
    return people


class _Bar(tqdm):
    """Progress bar that starts no thread."""

    monitor_interval = 0


def draw_images(
    specs: list[SceneSpec],
    folder: Path,
    cfg: SyntheticConfig,
    workers: int,
    progress: bool,
    title: str,
) -> list[list[DrawnPerson]]:
    """Draws images into a folder.

    Args:
        specs: Content of each image.
        folder: Output folder.
        cfg: Options, for the JPEG quality.
        workers: Number of processes; the result does not depend on it.
        progress: Shows a progress bar.
        title: Title of the progress bar.

    Returns:
        The persons with a box in each image, in the order of ``specs``.
    """
    folder.mkdir(parents=True, exist_ok=True)
    draw = functools.partial(_draw_to_file, folder=str(folder), quality=cfg.jpeg_quality)
    bar = functools.partial(
        _Bar, total=len(specs), desc=title, unit="image", disable=not progress, mininterval=1.0
    )
    if workers <= 1:
        threads = cv2.getNumThreads()
        cv2.setNumThreads(1)
        try:
            return list(bar(map(draw, specs)))
        finally:
            cv2.setNumThreads(threads)
    # a fork starts at once, but a fork of a process with threads can deadlock
    alone = sys.platform == "linux" and threading.active_count() == 1
    context = multiprocessing.get_context("fork" if alone else "spawn")
    with ProcessPoolExecutor(workers, context, cv2.setNumThreads, (1,)) as pool:
        return list(bar(pool.map(draw, specs, chunksize=8)))
