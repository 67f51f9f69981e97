# SPDX-License-Identifier: Apache-2.0
"""Images as files of bounded size."""

import io

import numpy as np
import pytest
from PIL import Image

from person_search.vis import encode_image


def noise(width: int, height: int) -> Image.Image:
    values = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(values)


@pytest.mark.parametrize("suffix", [".png", ".jpg"])
def test_even_noise_stays_below_the_limit(suffix: str) -> None:
    content = encode_image(noise(400, 300), suffix, max_bytes=40_000)
    assert len(content) <= 40_000
    small = Image.open(io.BytesIO(content))
    assert small.width / small.height == pytest.approx(4 / 3, abs=0.05)


def test_png_that_fits_is_exact() -> None:
    image = noise(40, 30)
    read = Image.open(io.BytesIO(encode_image(image, ".png"))).convert("RGB")
    assert (np.asarray(read) == np.asarray(image)).all()


def test_colors_are_given_up_before_the_size() -> None:
    image = noise(200, 150)
    read = Image.open(io.BytesIO(encode_image(image, ".png", max_bytes=50_000)))
    assert read.size == (200, 150) and read.mode == "P"


def test_smallest_size_ends_the_search() -> None:
    read = Image.open(io.BytesIO(encode_image(noise(100, 100), ".png", max_bytes=10)))
    assert min(read.size) >= 60


def test_other_formats_are_refused() -> None:
    with pytest.raises(ValueError, match=r"not as '\.gif'"):
        encode_image(noise(4, 4), ".gif")
