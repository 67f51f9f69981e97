# SPDX-License-Identifier: Apache-2.0
"""What a user of the page asks for.

Boxes are XYXY pixels of the image as people see it (EXIF orientation applied).
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from person_search.search.table import SearchFilter

MAX_PERSONS = 10
MAX_TOP = 200


@dataclass(frozen=True)
class Choice:
    """A person that somebody has chosen.

    Args:
        image: id of the image.
        person: number of a detected person in it; None for a drawn box.
        box: that was drawn; None for a detected person.
    """

    picture: str
    person: int | None = None
    box: tuple[float, float, float, float] | None = None


@dataclass(frozen=True)
class Request:
    """A search.

    Args:
        persons: images of the same person.
        top: matches that are wanted.
        wanted: filters.
        every_person: list all persons of an image, not only the most similar.
        include_own: search the images that the persons were chosen from, too.
    """

    persons: Sequence[Choice]
    top: int = 24
    wanted: SearchFilter = field(default_factory=SearchFilter)
    every_person: bool = False
    include_own: bool = False
