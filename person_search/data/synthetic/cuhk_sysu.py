# SPDX-License-Identifier: Apache-2.0
"""Writes a data set in the on-disk format of CUHK-SYSU.

All known readers use the numbers in the files as they are and do not subtract MATLAB's 1. A box is
therefore written as (x, y, w, h) in continuous pixel coordinates, with x and y of at least 1.
"""

from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np

from person_search.synthetic_config import SyntheticConfig, random_stream

from . import matlab
from .plan import TWINS_PER_TEST_SET, make_casts, plan_split, write_attributes
from .scene import DrawnPerson, SceneSpec
from .store import draw_images, write_data_set

STREAM = 1
_SUBSET_GALLERY = 100


@dataclass
class _Appearance:
    """A person in one image; ``box`` is (x, y, w, h) as written."""

    image: str
    box: tuple[int, int, int, int]
    hard: bool
    hidden: float


@dataclass
class _Split:
    """Training or test split: image names, boxes of each image, appearances of each identity."""

    names: list[str]
    boxes: dict[str, list[tuple[tuple[int, int, int, int], bool]]] = field(default_factory=dict)
    seen: dict[int, list[_Appearance]] = field(default_factory=dict)


def write_cuhk_sysu(
    root: str | Path, cfg: SyntheticConfig, workers: int = 1, progress: bool = True
) -> bool:
    """Writes a data set to ``root``, the folder of ``Image`` and ``annotation``.

    Args:
        root: Folder of the data set; kept if it holds a data set of the same options.
        cfg: Options of the data set.
        workers: Number of drawing processes; the bytes do not depend on it.
        progress: Shows a progress bar.

    Returns:
        Whether the data set was written.

    Raises:
        FileExistsError: If ``root`` holds anything else.
        ValueError: If there are more identities than the images can show.
    """
    fill = partial(_write, cfg=cfg, workers=workers, progress=progress)
    return write_data_set(root, cfg, "CUHK-SYSU", fill)


def _write(folder: Path, cfg: SyntheticConfig, workers: int, progress: bool) -> dict:
    casts = make_casts(cfg, STREAM)
    plans = []
    for number, (cast, count) in enumerate(
        zip(casts, (cfg.train_images, cfg.test_images), strict=True)
    ):
        rng = random_stream(cfg.seed, STREAM, 3_000_000 + number)
        cameras = [int(c) for c in rng.integers(cfg.cameras, size=count)]
        twins = (1 if number == 0 else TWINS_PER_TEST_SET) if cfg.quirks else 0
        plans.append(plan_split(cfg, rng, cast, cameras, twins))
    order = random_stream(cfg.seed, STREAM, 3_000_009).permutation(
        cfg.train_images + cfg.test_images
    )
    names = [f"s{number + 1}.jpg" for number in order]
    specs = [
        SceneSpec(
            file_name=name,
            seed=cfg.seed,
            stream=STREAM,
            index=index,
            camera=plan.camera,
            size=(cfg.width, cfg.height),
            difficulty=cfg.difficulty,
            people=tuple(plan.people),
        )
        for index, (name, plan) in enumerate(zip(names, plans[0] + plans[1], strict=True))
    ]
    drawn = draw_images(specs, folder / "Image" / "SSM", cfg, workers, progress, "CUHK-SYSU")
    train = _collect(names[: cfg.train_images], drawn[: cfg.train_images])
    test = _collect(names[cfg.train_images :], drawn[cfg.train_images :])
    annotation = folder / "annotation"
    _write_images(annotation, cfg, train, test)
    _write_train(annotation, train)
    queries = _choose_queries(cfg, test)
    for size in cfg.usable_gallery_sizes():
        galleries = _galleries(cfg, test, queries, list(queries), size)
        path = annotation / "test" / "train_test" / f"TestG{size}.mat"
        _write_protocol(path, path.stem, queries, galleries, list(queries))
    _write_subsets(annotation, cfg, test, queries)
    ids = [[f"p{pid + 1}" for pid in range(len(cast.looks))] for cast in casts]
    write_attributes(folder, casts, ids)
    return {
        "images": len(names),
        "boxes": sum(len(boxes) for split in (train, test) for boxes in split.boxes.values()),
        "train_ids": len(train.seen),
        "queries": len(queries),
    }


def _collect(names: list[str], drawn: list[list[DrawnPerson]]) -> _Split:
    split = _Split(names)
    for name, people in zip(names, drawn, strict=True):
        split.boxes[name] = []
        for person in people:
            x1, y1, x2, y2 = person.box
            x1, y1 = max(x1, 1), max(y1, 1)
            box = (x1, y1, x2 - x1, y2 - y1)
            split.boxes[name].append((box, person.is_hard))
            if person.person_id >= 0:
                appearance = _Appearance(name, box, person.is_hard, person.hidden)
                split.seen.setdefault(person.person_id, []).append(appearance)
    return split


def _write_images(annotation: Path, cfg: SyntheticConfig, train: _Split, test: _Split) -> None:
    boxes = train.boxes | test.boxes
    flat = {split.names[0] for split in (train, test)} if cfg.quirks else set()
    rows = []
    for name in sorted(boxes, key=lambda n: int(n[1:-4])):
        entries = list(boxes[name])
        if name in flat:  # as the real file, which has boxes without width
            x, y, _, h = entries[0][0]
            entries.append(((x, y, 0, h), False))
        cells = [(matlab.box_array(box), matlab.flag(hard)) for box, hard in entries]
        box = matlab.struct_array(("idlocate", "ishard"), cells)
        rows.append((name, np.array([[len(cells)]], np.uint8), box))
    matlab.save(
        annotation / "Images.mat", "Img", matlab.struct_array(("imname", "nAppear", "box"), rows)
    )
    matlab.save(annotation / "pool.mat", "pool", matlab.cell_column(test.names))


def _write_train(annotation: Path, train: _Split) -> None:
    cells = []
    for pid in sorted(train.seen):
        rows = [(a.image, matlab.box_array(a.box), matlab.flag(a.hard)) for a in train.seen[pid]]
        scene = matlab.struct_array(("imname", "idlocate", "ishard"), rows)
        count = np.array([[len(rows)]], np.uint16)
        cell = matlab.struct_array(("idname", "nAppear", "scene"), [(f"p{pid + 1}", count, scene)])
        cells.append(cell)
    path = annotation / "test" / "train_test" / "Train.mat"
    matlab.save(path, "Train", matlab.cell_column(cells))


def _choose_queries(cfg: SyntheticConfig, test: _Split) -> dict[int, _Appearance]:
    """Chooses a well visible appearance of each test identity, if possible not beside its twin.

    With quirks, the query of the last identity that appears twice in an image is in that image.
    """
    rng = random_stream(cfg.seed, STREAM, 3_000_010)
    queries, twins = {}, []
    for pid in sorted(test.seen):
        images = [a.image for a in test.seen[pid]]
        single = [a for a in test.seen[pid] if images.count(a.image) == 1]
        if len(single) < len(images):
            twins.append(pid)
        options = [a for a in single if not a.hard] or single or test.seen[pid]
        queries[pid] = options[int(rng.integers(len(options)))]
    if len(twins) >= 2:
        images = [a.image for a in test.seen[twins[-1]]]
        queries[twins[-1]] = next(a for a in test.seen[twins[-1]] if images.count(a.image) > 1)
    return queries


def _galleries(
    cfg: SyntheticConfig,
    test: _Split,
    queries: dict[int, _Appearance],
    chosen: list[int],
    size: int,
) -> list[list[_Appearance | str]]:
    """Returns for each query its positives, then images without the person, ``size`` in all."""
    own_listed = -1
    if cfg.quirks:  # the own box of one query is listed as a positive
        single = (p for p in chosen if len({a.image for a in test.seen[p]}) == len(test.seen[p]))
        own_listed = next(single, -1)
    galleries = []
    for pid in chosen:
        rng = random_stream(cfg.seed, STREAM, 3_000_011, pid, size)
        query = queries[pid]
        positives = [a for a in test.seen[pid] if a is not query or pid == own_listed][:size]
        holders = {a.image for a in test.seen[pid]}
        others = [name for name in test.names if name not in holders and name != query.image]
        picked = rng.permutation(len(others))[: size - len(positives)]
        galleries.append([*positives, *(others[i] for i in picked)])
    return galleries


def _write_protocol(
    path: Path,
    name: str,
    queries: dict[int, _Appearance],
    galleries: list[list[_Appearance | str]],
    chosen: list[int],
) -> None:
    rows = []
    for pid, gallery in zip(chosen, galleries, strict=True):
        query = queries[pid]
        head = (query.image, matlab.box_array(query.box), matlab.flag(query.hard), f"p{pid + 1}")
        entries = [
            (entry, matlab.empty(), matlab.empty())
            if isinstance(entry, str)
            else (entry.image, matlab.box_array(entry.box), matlab.flag(entry.hard))
            for entry in gallery
        ]
        rows.append(
            (
                matlab.struct_array(("imname", "idlocate", "ishard", "idname"), [head]),
                matlab.struct_array(("imname", "idlocate", "ishard"), entries),
            )
        )
    matlab.save(path, name, matlab.struct_array(("Query", "Gallery"), rows))


def _write_subsets(
    annotation: Path, cfg: SyntheticConfig, test: _Split, queries: dict[int, _Appearance]
) -> None:
    """Writes the protocols of occluded and of small queries, an eighth of all identities each."""
    count = max(2, len(queries) // 8)
    size = min(_SUBSET_GALLERY, cfg.test_images - 1)
    covered = {pid: max(test.seen[pid], key=lambda a: a.hidden) for pid in queries}
    small = {pid: min(test.seen[pid], key=lambda a: a.box[2] * a.box[3]) for pid in queries}
    ranked = {
        "Occlusion": ("Occlusion1", covered, lambda pid: -covered[pid].hidden),
        "Resolution": ("Test_Size", small, lambda pid: small[pid].box[2] * small[pid].box[3]),
    }
    for file, (variable, subset, key) in ranked.items():
        chosen = sorted(sorted(queries, key=key)[:count])
        galleries = _galleries(cfg, test, subset, chosen, size)
        path = annotation / "test" / "subset" / f"{file}.mat"
        _write_protocol(path, variable, subset, galleries, chosen)
