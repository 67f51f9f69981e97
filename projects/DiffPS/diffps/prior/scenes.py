# SPDX-License-Identifier: Apache-2.0
"""Synthetic scenes with all that is known about them, for training a prior.

Shape shorthand: N scenes, (H, W) pixels as DiffPS sees them, sides multiples of 64.

The scenes are drawn by the generator of the synthetic data sets, from seeds, places and people of
their own. Nobody in them is in a data set.
"""

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor

from diffps.prior.captions import Figure, part_colors
from person_search.data.synthetic.config import SyntheticConfig
from person_search.data.synthetic.looks import sample_look
from person_search.data.synthetic.scene import SceneSpec
from person_search.data.synthetic.store import draw_images

INDEX = "scenes.json"
_STREAM = 77  # random stream of the generator; the data sets have others
_STRIDE = 64


@dataclass(frozen=True)
class SceneOptions:
    """What to draw.

    Args:
        count: number of scenes.
        seed: of places, people and images.
        cameras: number of places.
        size: (width, height) in pixels as drawn.
        difficulty: see ``SyntheticConfig``.
        most_people: per scene.
        empty_share: share of scenes without people.
    """

    count: int = 2000
    seed: int = 7_000
    cameras: int = 40
    size: tuple[int, int] = (320, 240)
    difficulty: float = 0.3
    most_people: int = 6
    empty_share: float = 0.2

    def __post_init__(self) -> None:
        for name in ("count", "cameras", "most_people"):
            if getattr(self, name) < 1:
                raise ValueError(f"scenes: {name} is {getattr(self, name)}; it must be at least 1")
        if not 0 <= self.empty_share <= 1:
            raise ValueError(f"scenes: empty_share is {self.empty_share}; it must be in [0, 1]")


@dataclass(frozen=True)
class Scenes:
    """Images and who stands where."""

    images: Tensor
    """(N, 3, H, W) uint8 RGB."""
    figures: list[list[Figure]]
    """Everybody in each image, boxes in its pixels."""

    def __len__(self) -> int:
        return len(self.images)


def plan_scenes(options: SceneOptions) -> list[SceneSpec]:
    """Decides who is in which scene; person ids count the people of one scene."""
    rng = np.random.default_rng([options.seed, _STREAM])
    specs = []
    for index in range(options.count):
        number = int(rng.integers(1, options.most_people + 1))
        if rng.random() < options.empty_share:
            number = 0
        people = tuple((person, sample_look(rng)) for person in range(number))
        specs.append(
            SceneSpec(
                file_name=f"{index:05d}.jpg",
                seed=options.seed,
                stream=_STREAM,
                index=index,
                camera=int(rng.integers(options.cameras)),
                size=options.size,
                difficulty=options.difficulty,
                people=people,
            )
        )
    return sorted(specs, key=lambda spec: spec.camera)  # few cameras are kept at a time


def draw_scenes(folder: str | os.PathLike, options: SceneOptions, progress: bool = True) -> None:
    """Draws the scenes into a folder, unless those of the same options are there."""
    folder = Path(folder)
    wanted = json.loads(json.dumps(asdict(options)))
    if (folder / INDEX).is_file() and _read_index(folder)["options"] == wanted:
        return
    specs = plan_scenes(options)
    (folder / INDEX).unlink(missing_ok=True)
    drawn = draw_images(specs, folder, SyntheticConfig(), 1, progress, "scenes")
    entries = []
    for spec, people in zip(specs, drawn, strict=True):
        looks = dict(spec.people)
        entries.append(
            {
                "file_name": spec.file_name,
                "people": [
                    {"box": p.box, "colors": part_colors(looks[p.person_id])} for p in people
                ],
            }
        )
    partial = folder / f"{INDEX}.partial"
    partial.write_text(json.dumps({"options": wanted, "scenes": entries}))
    partial.rename(folder / INDEX)


def load_scenes(folder: str | os.PathLike) -> Scenes:
    """Reads what :func:`draw_scenes` wrote, resized to sides that are multiples of 64."""
    folder = Path(folder)
    images, figures = [], []
    for entry in _read_index(folder)["scenes"]:
        picture = cv2.imread(str(folder / entry["file_name"]))
        if picture is None:
            raise FileNotFoundError(f"{folder / entry['file_name']} is missing or damaged.")
        height, width = picture.shape[:2]
        size = (_round(width), _round(height))
        picture = cv2.resize(picture, size, interpolation=cv2.INTER_LINEAR)
        images.append(torch.from_numpy(np.ascontiguousarray(picture[..., ::-1].transpose(2, 0, 1))))
        factors = np.array([size[0] / width, size[1] / height] * 2)
        figures.append(
            [Figure(tuple((np.array(p["box"]) * factors).tolist()), p["colors"])
             for p in entry["people"]]
        )  # fmt: skip
    return Scenes(torch.stack(images), figures)


def _round(side: int) -> int:
    """To the next multiple of 64, as ``DiffPSMapper`` does for small images."""
    return max(_STRIDE, round(side / _STRIDE) * _STRIDE)


def _read_index(folder: Path) -> dict:
    try:
        return json.loads((folder / INDEX).read_text())
    except FileNotFoundError as e:
        raise FileNotFoundError(f"{folder} holds no scenes: it has no {INDEX}.") from e
    except json.JSONDecodeError as e:
        raise ValueError(f"{folder / INDEX} is damaged: {e}. Delete the folder.") from e
