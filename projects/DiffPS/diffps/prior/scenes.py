# SPDX-License-Identifier: Apache-2.0
"""Synthetic scenes with their annotations, for training a prior.

Shape shorthand: N scenes, (H, W) pixels of the model's input, sides multiples of 64.

The scenes are drawn by the generator of the synthetic datasets, with other seeds, places and
persons: no person of a scene is in a dataset.
"""

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor

from diffps.prior.captions import ScenePerson, part_colors
from person_search.data.synthetic.looks import sample_look
from person_search.data.synthetic.scene import SceneSpec
from person_search.data.synthetic.store import draw_images
from person_search.synthetic_config import SyntheticConfig
from person_search.utils.files import write_atomically

INDEX = "scenes.json"
_STREAM = 77  # random stream of the generator; the datasets have others
_STRIDE = 64


@dataclass(frozen=True)
class SceneOptions:
    """Options of the scenes.

    Attributes:
        count: Number of scenes.
        seed: Seed of places, persons and images.
        cameras: Number of places.
        size: (width, height) in pixels as drawn.
        difficulty: See ``SyntheticConfig``.
        most_people: Maximum number of persons per scene.
        empty_share: Share of scenes without persons.
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
    """Images and their persons.

    Attributes:
        images: (N, 3, H, W) uint8 RGB.
        persons: Persons of each image, boxes in its pixels.
    """

    images: Tensor
    persons: list[list[ScenePerson]]

    def __len__(self) -> int:
        return len(self.images)


def plan_scenes(options: SceneOptions) -> list[SceneSpec]:
    """Draws the persons and the place of each scene; person ids count the persons of one scene."""
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
    """Draws the scenes into a folder, unless it holds those of the same options."""
    folder = Path(folder)
    wanted = json.loads(json.dumps(asdict(options)))
    if (folder / INDEX).is_file() and _read_index(folder)["options"] == wanted:
        return
    specs = plan_scenes(options)
    (folder / INDEX).unlink(missing_ok=True)
    drawn = draw_images(specs, folder, SyntheticConfig(), 1, progress, "scenes")
    entries = []
    for spec, persons in zip(specs, drawn, strict=True):
        looks = dict(spec.people)
        people = [{"box": p.box, "colors": part_colors(looks[p.person_id])} for p in persons]
        entries.append({"file_name": spec.file_name, "people": people})
    content = json.dumps({"options": wanted, "scenes": entries})
    write_atomically(folder / INDEX, content.encode())


def load_scenes(folder: str | os.PathLike) -> Scenes:
    """Reads the scenes of :func:`draw_scenes`, resized to sides that are multiples of 64."""
    folder = Path(folder)
    images, persons = [], []
    for entry in _read_index(folder)["scenes"]:
        image = cv2.imread(str(folder / entry["file_name"]))
        if image is None:
            raise FileNotFoundError(f"{folder / entry['file_name']} is missing or damaged.")
        old = image.shape[1::-1]
        # to the nearest multiple, as DiffPSMapper does for small images
        size = tuple(max(_STRIDE, round(side / _STRIDE) * _STRIDE) for side in old)
        image = cv2.resize(image, size, interpolation=cv2.INTER_LINEAR)
        images.append(torch.from_numpy(np.ascontiguousarray(image[..., ::-1].transpose(2, 0, 1))))
        factors = np.array([size[0] / old[0], size[1] / old[1]] * 2)
        persons.append(
            [
                ScenePerson(tuple((np.array(p["box"]) * factors).tolist()), p["colors"])
                for p in entry["people"]
            ]
        )
    return Scenes(torch.stack(images), persons)


def crop_start(middle: float, crop: int, side: int) -> int:
    """Returns the start of a crop with this middle that lies inside the image."""
    return int(np.clip(round(middle - crop / 2), 0, side - crop))


def _read_index(folder: Path) -> dict:
    try:
        return json.loads((folder / INDEX).read_text())
    except FileNotFoundError as e:
        raise FileNotFoundError(f"{folder} does not hold scenes: it has no {INDEX}.") from e
    except json.JSONDecodeError as e:
        raise ValueError(f"{folder / INDEX} is damaged: {e}. Delete the folder.") from e
