# SPDX-License-Identifier: Apache-2.0
"""Writes a synthetic set in PRW's on-disk format: six cameras that the same people pass."""

import dataclasses
import json
from pathlib import Path

import numpy as np

from . import matlab
from .config import SyntheticConfig
from .cuhk_sysu import attributes
from .plan import ImagePlan, generator, make_casts, plan_split
from .scene import DrawnPerson, SceneSpec
from .store import draw_images, write_data_set

STREAM = 2
CAMERAS = 6
UNLABELED_RAW = -2
"""What PRW's files call a person without identity."""

_VARIABLES = ("box_new", "anno_file", "anno_previous")
_TRAIN_ID_IN_TEST = 0.25
"""Share of the test frames in which a training identity passes, as 94 do in the real set."""


def raw_ids(train_ids: int, test_ids: int) -> tuple[list[int], list[int]]:
    """Raw numbers of the identities, with the gaps of the real set.

    There, training holds 1..478, 480..483 and 932, test the rest of 479..933. Here, training
    misses one number near its end, which is a test id, and owns one near the end of test's.
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
    """Writes the set to ``root`` (the folder that holds ``frames`` and ``annotations``).

    Args, return value and errors are those of ``write_cuhk_sysu``; ``gallery_sizes`` and
    ``cameras`` are not used. Camera 6 has images of another size, as in the real set.
    """

    def fill(folder: Path) -> dict:
        return _write(folder, cfg, workers, progress)

    return write_data_set(Path(root), cfg.fingerprint("PRW"), dataclasses.asdict(cfg), fill)


def frame_size(cfg: SyntheticConfig, camera: int) -> tuple[int, int]:
    """(width, height) of the images of a camera (1..6); the sixth is 5:4 and smaller."""
    if camera < CAMERAS:
        return cfg.width, cfg.height
    return round(1.125 * cfg.height), round(0.9 * cfg.height)


def _write(folder: Path, cfg: SyntheticConfig, workers: int, progress: bool) -> dict:
    casts = make_casts(cfg, STREAM)
    raw = raw_ids(cfg.train_ids, cfg.test_ids)
    specs: list[SceneSpec] = []
    counts = (cfg.train_images, cfg.test_images)
    for part, (cast, count) in enumerate(zip(casts, counts, strict=True)):
        rng = generator(cfg, STREAM, 3_000_000 + part)
        cameras = [1 + (i + part) % CAMERAS for i in range(count)]
        plans = plan_split(cfg, rng, cast, cameras, 1 if cfg.quirks and part == 0 else 0)
        number = [_with_raw_ids(plan, raw[part]) for plan in plans]
        if part == 1 and cfg.quirks:
            _add_train_ids(rng, number, casts[0].looks, raw[0])
        specs += _specs(cfg, part, number, len(specs))
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
    content = {
        split: {
            str(raw[part][i]): attributes(cast, i)
            | {"look_alike_of": None if alike is None else str(raw[part][alike])}
            for i, alike in enumerate(cast.alike)
        }
        for part, (split, cast) in enumerate(zip(("train", "test"), casts, strict=True))
    }
    (folder / "attributes.json").write_text(json.dumps(content, indent=1) + "\n")
    total = sum(len(rows) for rows in boxes)
    return {"images": len(names), "boxes": total, "train_ids": len(raw[0]), "queries": queries}


def _with_raw_ids(plan: ImagePlan, raw: list[int]) -> ImagePlan:
    people = [(raw[pid] if pid >= 0 else -1, look) for pid, look in plan.people]
    return ImagePlan(plan.camera, people)


def _add_train_ids(
    rng: np.random.Generator, plans: list[ImagePlan], looks: list, raw: list[int]
) -> None:
    """Lets training identities take the place of passers-by in some test frames."""
    for plan in plans:
        strangers = [i for i, (pid, _) in enumerate(plan.people) if pid < 0]
        if len(strangers) > 1 and rng.random() < _TRAIN_ID_IN_TEST:
            who = int(rng.integers(len(raw)))
            plan.people[strangers[0]] = (raw[who], looks[who])


def _specs(cfg: SyntheticConfig, part: int, plans: list[ImagePlan], start: int) -> list[SceneSpec]:
    """Frames in recording order; with quirks the first sends somebody over the left border."""
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
                at_left_border=cfg.quirks and i == _first_with_id(plans),
            )
        )
    return specs


def _first_with_id(plans: list[ImagePlan]) -> int:
    return next(i for i, plan in enumerate(plans) if plan.people[0][0] >= 0)


def _boxes(spec: SceneSpec, people: list[DrawnPerson]) -> np.ndarray:
    """(K, 5) float64: raw id, x, y, w, h with parts of a pixel, as tracked boxes have.

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
    """One query per test identity and camera that saw it; returns their number."""
    rng = generator(cfg, STREAM, 3_000_010)
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
