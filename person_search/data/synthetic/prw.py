# SPDX-License-Identifier: Apache-2.0
"""Writes a data set in the on-disk format of PRW: six cameras that see the same persons."""

from functools import partial
from pathlib import Path

import numpy as np

from person_search.synthetic_config import SyntheticConfig, random_stream

from . import matlab
from .plan import ImagePlan, make_casts, plan_split, write_attributes
from .scene import DrawnPerson, SceneSpec
from .store import draw_images, write_data_set

STREAM = 2
CAMERAS = 6
UNLABELED_RAW = -2
"""Id of a person without identity in the files of PRW."""

_VARIABLES = ("box_new", "anno_file", "anno_previous")
_TRAIN_ID_IN_TEST = 0.25
"""Share of the test frames with a training identity; 94 frames of the real set have one."""


def raw_ids(train_ids: int, test_ids: int) -> tuple[list[int], list[int]]:
    """Returns the raw ids of the training and test identities, with gaps as in the real set.

    The real training ids are 1..478, 480..483 and 932, the test ids the rest of 479..933. Here, one
    id near the end of the training ids is a test id, and vice versa.
    """
    if train_ids < 3 or test_ids < 3:
        first = train_ids + 1
        return list(range(1, first)), list(range(first, first + test_ids))
    last = train_ids + test_ids
    train = [*range(1, train_ids - 1), train_ids, last - 1]
    test = [number for number in range(1, last + 1) if number not in set(train)]
    return train, test


def write_prw(
    root: str | Path, cfg: SyntheticConfig, workers: int = 1, progress: bool = True
) -> bool:
    """Writes a data set to ``root``, the folder of ``frames`` and ``annotations``.

    Arguments, return value and errors are those of :func:`.cuhk_sysu.write_cuhk_sysu`. The options
    ``gallery_sizes`` and ``cameras`` are not used. Images of camera 6 have another size, as in the
    real set.
    """
    fill = partial(_write, cfg=cfg, workers=workers, progress=progress)
    return write_data_set(root, cfg, "PRW", fill)


def frame_size(cfg: SyntheticConfig, camera: int) -> tuple[int, int]:
    """Returns (width, height) of the images of a camera (1 to 6); the sixth is smaller, 5:4."""
    if camera < CAMERAS:
        return cfg.width, cfg.height
    return round(1.125 * cfg.height), round(0.9 * cfg.height)


def _write(folder: Path, cfg: SyntheticConfig, workers: int, progress: bool) -> dict:
    casts = make_casts(cfg, STREAM)
    raw = raw_ids(cfg.train_ids, cfg.test_ids)
    specs: list[SceneSpec] = []
    counts = (cfg.train_images, cfg.test_images)
    for part, (cast, count) in enumerate(zip(casts, counts, strict=True)):
        rng = random_stream(cfg.seed, STREAM, 3_000_000 + part)
        cameras = [1 + (i + part) % CAMERAS for i in range(count)]
        plans = plan_split(cfg, rng, cast, cameras, 1 if cfg.quirks and part == 0 else 0)
        for plan in plans:
            plan.people = [(raw[part][pid] if pid >= 0 else -1, look) for pid, look in plan.people]
        if part == 1 and cfg.quirks:
            _add_train_ids(rng, plans, casts[0].looks, raw[0])
        specs += _specs(cfg, part, plans, len(specs))
    drawn = draw_images(specs, folder / "frames", cfg, workers, progress, "PRW")
    boxes = [_boxes(spec, people) for spec, people in zip(specs, drawn, strict=True)]
    names = [spec.file_name.removesuffix(".jpg") for spec in specs]
    for index, (name, rows) in enumerate(zip(names, boxes, strict=True)):
        # box_new mostly, but all three names in every set
        variable = _VARIABLES[index % 3] if index < 3 or index % 7 == 0 else _VARIABLES[0]
        matlab.save(folder / "annotations" / f"{name}.jpg.mat", variable, rows)
    _write_split(folder, names[: cfg.train_images], names[cfg.train_images :], raw)
    queries = _write_queries(
        folder, cfg, raw[1], names[cfg.train_images :], boxes[cfg.train_images :]
    )
    write_attributes(folder, casts, [[str(pid) for pid in pids] for pids in raw])
    total = sum(len(rows) for rows in boxes)
    return {"images": len(names), "boxes": total, "train_ids": len(raw[0]), "queries": queries}


def _add_train_ids(
    rng: np.random.Generator, plans: list[ImagePlan], looks: list, raw: list[int]
) -> None:
    """Replaces a passer-by in some test frames by a training identity."""
    for plan in plans:
        strangers = [i for i, (pid, _) in enumerate(plan.people) if pid < 0]
        if len(strangers) > 1 and rng.random() < _TRAIN_ID_IN_TEST:
            who = int(rng.integers(len(raw)))
            plan.people[strangers[0]] = (raw[who], looks[who])


def _specs(cfg: SyntheticConfig, part: int, plans: list[ImagePlan], start: int) -> list[SceneSpec]:
    """Returns frames in recording order; with quirks, one has a person at the left border."""
    cut = next(i for i, plan in enumerate(plans) if plan.people[0][0] >= 0) if cfg.quirks else -1
    specs = []
    for i, plan in enumerate(plans):
        frame = 1 + 25 * (i // CAMERAS) + 7 * (i % 3)
        specs.append(
            SceneSpec(
                file_name=f"c{plan.camera}s{1 + part}_{frame:06d}.jpg",
                seed=cfg.seed,
                stream=STREAM,
                index=start + i,
                camera=plan.camera,
                size=frame_size(cfg, plan.camera),
                difficulty=cfg.difficulty,
                people=tuple(plan.people),
                at_left_border=i == cut,
            )
        )
    return specs


def _boxes(spec: SceneSpec, people: list[DrawnPerson]) -> np.ndarray:
    """Returns (K, 5) float64: raw id, x, y, w, h with fractions of a pixel, as in tracked boxes.

    A box at the left border of a marked frame starts at a negative x, like 25 of the real ones.
    """
    rows = np.zeros((len(people), 5))
    for index, person in enumerate(people):
        x1, y1, x2, y2 = person.box
        part = ((x1 * 31 + y1 * 17 + x2 * 7 + y2) % 10) / 40.0  # below a quarter pixel
        pid = person.person_id if person.person_id >= 0 else UNLABELED_RAW
        left, top = x1 + part, y1 + part / 2
        if spec.at_left_border and x1 == 0:
            left = -1.703
        rows[index] = (pid, round(left, 4), round(top, 4), round(x2 - left, 4), round(y2 - top, 4))
    return rows


def _write_split(
    folder: Path, train: list[str], test: list[str], raw: tuple[list[int], list[int]]
) -> None:
    matlab.save(folder / "frame_train.mat", "img_index_train", matlab.cell_column(train))
    matlab.save(folder / "frame_test.mat", "img_index_test", matlab.cell_column(test))
    for name, variable, numbers in (("train", "ID_train", raw[0]), ("test", "ID_test2", raw[1])):
        row = np.array([numbers], dtype=np.uint16)
        matlab.save(folder / f"ID_{name}.mat", variable, row)


def _write_queries(
    folder: Path, cfg: SyntheticConfig, ids: list[int], names: list[str], boxes: list[np.ndarray]
) -> int:
    """Writes one query per test identity and camera; returns their number."""
    rng = random_stream(cfg.seed, STREAM, 3_000_010)
    lines = []
    for pid in ids:
        by_camera: dict[str, list[tuple[str, np.ndarray]]] = {}
        for name, rows in zip(names, boxes, strict=True):
            for row in rows[rows[:, 0] == pid]:
                by_camera.setdefault(name[:2], []).append((name, row))
        for camera in sorted(by_camera):
            options = by_camera[camera]
            negative = [option for option in options if option[1][1] < 0]
            name, row = (negative or options)[int(rng.integers(len(negative or options)))]
            numbers = " ".join(f"{value:.4f}" for value in row[1:])
            lines.append(f"{pid:d} {numbers} {name}\r\n")
    (folder / "query_info.txt").write_bytes("".join(lines).encode())
    return len(lines)
