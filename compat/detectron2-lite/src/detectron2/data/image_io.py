# SPDX-License-Identifier: Apache-2.0
"""Reading images in the channel order a model wants."""

import numpy as np
import torch
from detectron2.utils.file_io import PathManager
from PIL import Image

# Rows: Y, U, V of ITU-R BT.601 from R, G, B; and back.
_RGB_TO_YUV = [[0.299, 0.587, 0.114], [-0.14713, -0.28886, 0.436], [0.615, -0.51499, -0.10001]]
_YUV_TO_RGB = [[1.0, 0.0, 1.13983], [1.0, -0.39465, -0.58060], [1.0, 2.03211, 0.0]]

_EXIF_ORIENTATION = 0x0112
# How an image with that orientation is to be turned for display; 1 is upright.
_TURN = {
    2: Image.FLIP_LEFT_RIGHT,
    3: Image.ROTATE_180,
    4: Image.FLIP_TOP_BOTTOM,
    5: Image.TRANSPOSE,
    6: Image.ROTATE_270,
    7: Image.TRANSVERSE,
    8: Image.ROTATE_90,
}


class SizeMismatchError(ValueError):
    """The image is not of the size that its record states."""


def _apply_exif_orientation(image: Image.Image) -> Image.Image:
    """Turns an image upright as its EXIF data say. Broken EXIF data count as none."""
    if not hasattr(image, "getexif"):
        return image
    try:
        orientation = image.getexif().get(_EXIF_ORIENTATION)
    except Exception:  # Pillow raises many kinds here
        return image
    turn = _TURN.get(orientation)
    return image if turn is None else image.transpose(turn)


def convert_PIL_to_numpy(image: Image.Image, format: str | None) -> np.ndarray:
    """Converts a PIL image; the formats are those of ``read_image``."""
    if format is not None:
        image = image.convert("RGB" if format in ("BGR", "YUV-BT.601") else format)
    array = np.asarray(image)
    if format == "L":
        return np.expand_dims(array, -1)
    if format == "BGR":
        return array[:, :, ::-1]
    if format == "YUV-BT.601":
        return np.dot(array / 255.0, np.array(_RGB_TO_YUV).T)
    return array


def convert_image_to_rgb(image: np.ndarray | torch.Tensor, format: str) -> np.ndarray:
    """Converts an (H, W, C) image of a format of ``read_image`` to (H, W, 3) RGB in [0, 255].

    The result is uint8, but for "YUV-BT.601", which stays in floating point.
    """
    array = image.cpu().numpy() if isinstance(image, torch.Tensor) else image
    if format == "YUV-BT.601":
        return np.dot(array, np.array(_YUV_TO_RGB).T) * 255.0
    if format == "BGR":
        return array[:, :, [2, 1, 0]]
    if format == "L":
        array = array[:, :, 0]
    return np.asarray(Image.fromarray(array.astype(np.uint8), mode=format).convert("RGB"))


def read_image(file_name: str, format: str | None = None) -> np.ndarray:
    """Reads an image and turns it upright as its EXIF data say.

    Args:
        file_name: path or URL.
        format: a mode of PIL, or "BGR", or "YUV-BT.601"; None keeps the mode of the file.

    Returns:
        (H, W, C) uint8 array; for "YUV-BT.601" floating point, Y in [0, 1].
    """
    with PathManager.open(file_name, "rb") as f:
        return convert_PIL_to_numpy(_apply_exif_orientation(Image.open(f)), format)


def check_image_size(dataset_dict: dict, image: np.ndarray) -> None:
    """Compares the size of an image with its record, and adds it where the record lacks it.

    Raises:
        SizeMismatchError: they differ.
    """
    height, width = image.shape[:2]
    if "width" in dataset_dict or "height" in dataset_dict:
        stated = (dataset_dict["width"], dataset_dict["height"])
        if stated != (width, height):
            name = dataset_dict.get("file_name")
            raise SizeMismatchError(
                f"image {name or 'without a name'} is {(width, height)} (width, height), but its "
                f"record says {stated}; correct the record"
            )
    dataset_dict.setdefault("width", width)
    dataset_dict.setdefault("height", height)
