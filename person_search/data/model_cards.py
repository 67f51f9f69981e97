# SPDX-License-Identifier: Apache-2.0
"""What a training has to say in its model card, and whether images are drawn or photographs.

Painted persons and backgrounds have few colors with sharp borders; in a photograph the color varies
everywhere, even where a surface seems uniform. :func:`color_detail` measures this at a size where
neither the noise of a camera nor JPEG matters. ``docs/model_card.md`` reports its error rates.
"""

import datetime
import logging
import math
import platform
from collections.abc import Sequence

import cv2
import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog

from person_search import __version__
from person_search.config import config_hash
from person_search.data.datasets.builtin import get_num_pids
from person_search.data.image_io import READ_ERRORS, read_image_file
from person_search.utils.backend import backend_name
from person_search.utils.model_card import DRAWN, KINDS, MIXED, PHOTOGRAPHS, UNKNOWN, ModelCard

MEASURED_IMAGES = 32
"""Number of images that are enough to tell drawn images from photographs."""
SIDE = 48
"""Shorter side in pixels to which images are reduced."""
THRESHOLD = 0.36
"""Mean color detail that separates drawn images (below) from photographs."""
DEVIATION = 0.1
"""Standard deviation of the color detail of the images of a gallery, rounded up."""
_GRAY = 0.5
"""Mean difference of colors below which an image is gray and nothing can be said."""


def color_detail(image: np.ndarray) -> float:
    """Measures how evenly the color of an image varies.

    Args:
        image: Array (H, W, 3) uint8, in RGB or BGR order.

    Returns:
        Median divided by mean of the color differences between neighboring pixels of the reduced
        image, 0 to 1: about 0.2 for drawn images, 0.4 to 0.6 for photographs. nan for gray images.
    """
    scale = SIDE / min(image.shape[:2])
    size = (max(round(scale * image.shape[1]), 2), max(round(scale * image.shape[0]), 2))
    # float, since the differences are smaller than a level of uint8
    small = cv2.resize(image.astype(np.float32), size, interpolation=cv2.INTER_AREA)
    color = small[:, :, (0, 2)] - small[:, :, 1:2]
    steps = [np.linalg.norm(np.diff(color, axis=axis), axis=2).ravel() for axis in (0, 1)]
    differences = np.concatenate(steps)
    mean = float(differences.mean())
    return float(np.median(differences)) / mean if mean >= _GRAY else math.nan


def kind_of_images(details: Sequence[float]) -> str:
    """Decides whether images are drawn or photographs.

    Args:
        details: :func:`color_detail` of each image; nan counts as no image.

    Returns:
        ``DRAWN`` or ``PHOTOGRAPHS`` if the mean is two standard errors away from the threshold,
        ``UNKNOWN`` otherwise.
    """
    known = [value for value in details if not math.isnan(value)]
    if not known:
        return UNKNOWN
    distance = sum(known) / len(known) - THRESHOLD
    if abs(distance) < 2 * DEVIATION / math.sqrt(len(known)):
        return UNKNOWN
    return PHOTOGRAPHS if distance > 0 else DRAWN


def dataset_kind(name: str, records: Sequence[dict]) -> str:
    """Returns the kind of a registered data set, one of ``KINDS``.

    It is ``image_kind`` of its metadata, a value or a function. Where that is absent, the images of
    some records are measured.
    """
    kind = MetadataCatalog.get(name).get("image_kind")
    kind = kind() if callable(kind) else kind
    if kind:
        if kind not in KINDS:
            raise ValueError(
                f"the data set {name!r} has the kind {kind!r}; allowed: {', '.join(KINDS)}"
            )
        return kind
    details = []
    for record in records[:: max(len(records) // MEASURED_IMAGES, 1)][:MEASURED_IMAGES]:
        try:
            details.append(color_detail(read_image_file(record["file_name"], "RGB")))
        except READ_ERRORS:  # reported by the training, if it reads the image
            continue
    return kind_of_images(details)


def training_card(cfg: CfgNode, method: str = "") -> ModelCard:
    """Returns the model card of a training, without metrics.

    Args:
        cfg: Config with DATASETS.TRAIN; the data sets are registered.
        method: What is trained. Default: ``MODEL.META_ARCHITECTURE``.
    """
    kinds, images, identities = set(), 0, 0
    for name in cfg.DATASETS.TRAIN:
        records = DatasetCatalog.get(name)
        images += len(records)
        identities += get_num_pids(name)
        kinds.add(dataset_kind(name, records))
    kind = kinds.pop() if len(kinds) == 1 else (UNKNOWN if UNKNOWN in kinds or not kinds else MIXED)
    card = ModelCard(
        method=method or cfg.MODEL.META_ARCHITECTURE,
        config=config_hash(cfg),
        data=tuple(cfg.DATASETS.TRAIN),
        kind=kind,
        identities=identities,
        images=images,
        input_size=(int(cfg.INPUT.MIN_SIZE_TEST), int(cfg.INPUT.MAX_SIZE_TEST)),
        embed_dim=cfg.MODEL.REID.EMBED_DIM,
        license=cfg.MODEL.LICENSE,
        date=datetime.date.today().isoformat(),
        versions={
            "person-search": __version__,
            "detectron2": backend_name(),
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
    )
    logging.getLogger(__name__).info("Model card: %s", card.describe())
    return card
