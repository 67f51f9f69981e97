# SPDX-License-Identifier: Apache-2.0
"""Galleries with random embeddings, written without a model, and small videos.

Shape shorthand: N persons, D length of an embedding.
"""

from pathlib import Path

import cv2
import numpy as np

from person_search.search.entries import Entry
from person_search.search.folder_store import FolderStore
from person_search.search.identity import ModelIdentity

FPS = 10
IDENTITY = ModelIdentity("Drawn", "0" * 64)


def unit_vectors(rng: np.random.Generator, count: int, dim: int) -> np.ndarray:
    vectors = rng.normal(size=(count, dim)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def entry(path: str, run: int = 1, **fields) -> Entry:
    return Entry(run=run, root=0, path=path, size=1, mtime_ns=1, **fields)


def write_gallery(
    folder: Path, counts: list[int], dim: int = 8, *, segments: int = 1, seed: int = 0, **fields
) -> tuple[FolderStore, np.ndarray]:
    """Image i has ``counts[i]`` persons and lies in segment i % ``segments``.

    Returns:
        the store, and all embeddings (N, D) in the order of the images.
    """
    store = FolderStore.create(folder, dim, IDENTITY)
    rng = np.random.default_rng(seed)
    images = folder.parent / "images"
    images.mkdir(exist_ok=True)
    everything = []
    with store.writing() as run:
        store.add_root(images)
        names = store.ensure_writers(segments)
        writers = [store.writer(name, durable=False) for name in names]
        for i, count in enumerate(counts):
            feats = unit_vectors(rng, count, dim)
            boxes = np.sort(rng.uniform(0, 90, (count, 2, 2)), axis=1).reshape(count, 4)
            columns = {key: values[i] for key, values in fields.items()}
            writers[i % segments].append(
                entry(f"p{i}.png", run, **columns), boxes, rng.uniform(0, 1, count), feats
            )
            everything.append(feats)
        for writer in writers:
            writer.close()
    return store, np.concatenate(everything) if everything else np.zeros((0, dim), np.float32)


def write_video(path: Path, frames: int = 30) -> Path:
    """Each frame is gray, 8 levels brighter than the one before."""
    code = cv2.VideoWriter_fourcc(*("MJPG" if path.suffix == ".avi" else "mp4v"))
    writer = cv2.VideoWriter(str(path), code, FPS, (64, 48))
    for i in range(frames):
        writer.write(np.full((48, 64, 3), 8 * i % 256, np.uint8))
    writer.release()
    return path
