# SPDX-License-Identifier: Apache-2.0
"""Whether the weights know images like those of a gallery: drawn persons, or photographs."""

from collections.abc import Sequence

from person_search.data import kind_of_images
from person_search.utils.model_card import DRAWN, PHOTOGRAPHS, ModelCard


def describe_misfit(card: ModelCard | None, details: Sequence[float]) -> str:
    """Compares the training images of a model with those of a gallery.

    Args:
        card: Model card; None if the weights have none.
        details: ``color_detail`` of images of the gallery.

    Returns:
        One sentence if the images are of another kind; "" if they fit, or one kind is unknown.
    """
    kind = kind_of_images(details)
    if card is None or {card.kind, kind} != {DRAWN, PHOTOGRAPHS}:
        return ""
    images = "photographs" if kind == PHOTOGRAPHS else "drawn"
    return (
        f"The model was trained on {card.trained_on}, but these images seem to be {images}: "
        "expect wrong matches, even with a high similarity."
    )
