# SPDX-License-Identifier: Apache-2.0
"""Building blocks of dataset mappers: reading of images, transforms of annotations.

Shape shorthand: N annotations of one image, K keypoints of one instance.
"""

import logging
from typing import Any

import numpy as np
import pycocotools.mask as mask_util
import torch
from detectron2._lite import absent
from detectron2.structures import (
    BitMasks,
    Boxes,
    BoxMode,
    Instances,
    Keypoints,
    PolygonMasks,
    polygons_to_bitmask,
)
from detectron2.utils.file_io import PathManager
from PIL import Image

from . import transforms as T
from .catalog import MetadataCatalog

__getattr__ = absent(
    __name__,
    "annotations_to_instances_rotated",
    "get_fed_loss_cls_weights",
    "transform_proposals",
)

# Rows: Y, U, V of ITU-R BT.601 from R, G, B; and back.
_RGB_TO_YUV = [[0.299, 0.587, 0.114], [-0.14713, -0.28886, 0.436], [0.615, -0.51499, -0.10001]]
_YUV_TO_RGB = [[1.0, 0.0, 1.13983], [1.0, -0.39465, -0.58060], [1.0, 2.03211, 0.0]]

_EXIF_ORIENTATION = 0x0112
# EXIF orientation -> PIL operation that makes the image upright.
_EXIF_OPERATIONS = {
    2: Image.FLIP_LEFT_RIGHT,
    3: Image.ROTATE_180,
    4: Image.FLIP_TOP_BOTTOM,
    5: Image.TRANSPOSE,
    6: Image.ROTATE_270,
    7: Image.TRANSVERSE,
    8: Image.ROTATE_90,
}


class SizeMismatchError(ValueError):
    """Raised if the size of an image differs from the size in its record."""


def _apply_exif_orientation(image: Image.Image) -> Image.Image:
    """Makes an image upright according to its EXIF data; broken EXIF data are ignored."""
    if not hasattr(image, "getexif"):
        return image
    try:
        orientation = image.getexif().get(_EXIF_ORIENTATION)
    except Exception:  # Pillow raises exceptions of many types here
        return image
    operation = _EXIF_OPERATIONS.get(orientation)
    return image if operation is None else image.transpose(operation)


def convert_PIL_to_numpy(image: Image.Image, format: str | None) -> np.ndarray:
    """Converts a PIL image to an array; see ``read_image`` for the formats."""
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

    The result is uint8, except for "YUV-BT.601", which gives floating point numbers.
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
    """Reads an image and applies its EXIF orientation.

    Args:
        file_name: Path or URL.
        format: Mode of PIL, "BGR" or "YUV-BT.601"; None keeps the mode of the file.

    Returns:
        (H, W, C) uint8 array; floating point for "YUV-BT.601", with Y in [0, 1].
    """
    with PathManager.open(file_name, "rb") as f:
        return convert_PIL_to_numpy(_apply_exif_orientation(Image.open(f)), format)


def check_image_size(dataset_dict: dict, image: np.ndarray) -> None:
    """Compares the size of an image with its record and adds missing sizes to the record.

    Raises:
        SizeMismatchError: The sizes differ.
    """
    height, width = image.shape[:2]
    if "width" in dataset_dict or "height" in dataset_dict:
        expected = (dataset_dict["width"], dataset_dict["height"])
        if expected != (width, height):
            name = dataset_dict.get("file_name") or "without a name"
            raise SizeMismatchError(
                f"image {name} has (width, height) {(width, height)}, but its record says "
                f"{expected}; correct the record"
            )
    dataset_dict.setdefault("width", width)
    dataset_dict.setdefault("height", height)


def get_bbox(annotation: dict[str, Any]) -> np.ndarray:
    """Returns the box of an annotation as (4,) x0, y0, x1, y1."""
    return BoxMode.convert(annotation["bbox"], annotation["bbox_mode"], BoxMode.XYXY_ABS)


def transform_instance_annotations(
    annotation, transforms, image_size, *, keypoint_hflip_indices=None
):
    """Transforms the box, segmentation and keypoints of an annotation in place.

    Args:
        annotation: Annotation of a record. Afterwards ``bbox`` is a (4,) array x0, y0, x1, y1
            clipped to the image, polygons are arrays, and an encoded mask is an (H, W) array.
        transforms: ``TransformList`` or list of transforms.
        image_size: (height, width) after the transforms.
        keypoint_hflip_indices: Result of ``create_keypoint_hflip_indices``.

    Returns:
        The annotation.
    """
    if isinstance(transforms, (tuple, list)):
        transforms = T.TransformList(transforms)
    height, width = image_size
    # in the number type of the record, because integers are rounded differently
    box = transforms.apply_box(np.array([get_bbox(annotation)]))[0].clip(min=0)
    annotation["bbox"] = np.minimum(box, [width, height, width, height])
    annotation["bbox_mode"] = BoxMode.XYXY_ABS
    if "segmentation" in annotation:
        annotation["segmentation"] = _transform_segmentation(
            annotation["segmentation"], transforms, image_size
        )
    if "keypoints" in annotation:
        annotation["keypoints"] = transform_keypoint_annotations(
            annotation["keypoints"], transforms, image_size, keypoint_hflip_indices
        )
    return annotation


def _transform_segmentation(segmentation, transforms, image_size):
    if isinstance(segmentation, list):
        polygons = [np.asarray(polygon).reshape(-1, 2) for polygon in segmentation]
        return [polygon.reshape(-1) for polygon in transforms.apply_polygons(polygons)]
    if isinstance(segmentation, dict):
        mask = transforms.apply_segmentation(mask_util.decode(segmentation))
        assert tuple(mask.shape[:2]) == tuple(image_size), (
            f"the transformed mask has shape {mask.shape[:2]}, the image {tuple(image_size)}"
        )
        return mask
    raise ValueError(
        "the segmentation of a record must be a list of polygons or a run-length encoding in a "
        f"dict, got {type(segmentation)}"
    )


def transform_keypoint_annotations(
    keypoints, transforms, image_size, keypoint_hflip_indices=None
) -> np.ndarray:
    """Transforms keypoints.

    Args:
        keypoints: 3 K numbers x, y, visibility, or an array of them.
        transforms: ``TransformList``.
        image_size: (height, width) after the transforms.
        keypoint_hflip_indices: Result of ``create_keypoint_hflip_indices``.

    Returns:
        (K, 3) float64 array. Points outside the image get visibility 0; points with visibility 0
        are at (0, 0).
    """
    keypoints = np.asarray(keypoints, dtype="float64").reshape(-1, 3)
    positions = transforms.apply_coords(keypoints[:, :2])
    inside = (positions >= [0, 0]).all(axis=1) & (positions <= image_size[::-1]).all(axis=1)
    keypoints[:, :2] = positions
    keypoints[~inside, 2] = 0

    # each flip exchanges left and right; an even number of flips cancels out
    num_flips = sum(isinstance(transform, T.HFlipTransform) for transform in transforms.transforms)
    if num_flips % 2 == 1:
        if keypoint_hflip_indices is None:
            raise ValueError("the flip of keypoints needs keypoint_hflip_indices")
        if len(keypoint_hflip_indices) != len(keypoints):
            raise ValueError(
                f"an instance has {len(keypoints)} keypoints, but the metadata of its data set "
                f"names {len(keypoint_hflip_indices)}"
            )
        keypoints = keypoints[np.asarray(keypoint_hflip_indices, dtype=np.int32)]
    is_labelled = keypoints[:, 2] != 0
    return np.where(is_labelled[:, None], keypoints, 0.0)


def annotations_to_instances(annos, image_size, mask_format="polygon"):
    """Converts transformed annotations to ``Instances`` for training.

    Args:
        annos: List of annotations from ``transform_instance_annotations``.
        image_size: (height, width).
        mask_format: "polygon" or "bitmask", for annotations with ``segmentation``.

    Returns:
        ``Instances`` with ``gt_boxes``, ``gt_classes`` (N,) int64 and, if the annotations have
        them, ``gt_masks`` and ``gt_keypoints``.
    """
    corners = [get_bbox(annotation) for annotation in annos]
    classes = [int(annotation["category_id"]) for annotation in annos]
    instances = Instances(
        image_size,
        gt_boxes=Boxes(np.stack(corners) if corners else np.zeros((0, 4))),
        gt_classes=torch.tensor(classes, dtype=torch.int64),
    )
    # all annotations have the keys of the first one
    present = annos[0].keys() if len(annos) else ()
    if "segmentation" in present:
        segmentations = [annotation["segmentation"] for annotation in annos]
        instances.gt_masks = _masks_from(segmentations, image_size, mask_format)
    if "keypoints" in present:
        points = [annotation.get("keypoints", []) for annotation in annos]
        instances.gt_keypoints = Keypoints(np.array(points))
    return instances


def _masks_from(segmentations, image_size, mask_format) -> BitMasks | PolygonMasks:
    if mask_format == "polygon":
        try:
            return PolygonMasks(segmentations)
        except ValueError as e:
            raise ValueError(
                "these annotations are not all polygons; set INPUT.MASK_FORMAT to 'bitmask'"
            ) from e
    assert mask_format == "bitmask", f"unknown mask_format {mask_format!r}"
    masks = [np.ascontiguousarray(_bitmask_from(s, image_size)) for s in segmentations]
    return BitMasks(torch.stack([torch.from_numpy(mask) for mask in masks]))


def _bitmask_from(segmentation, image_size) -> np.ndarray:
    if isinstance(segmentation, list):
        return polygons_to_bitmask(segmentation, *image_size)
    if isinstance(segmentation, dict):
        return mask_util.decode(segmentation)
    if not isinstance(segmentation, np.ndarray):
        raise ValueError(
            "a segmentation must be a list of polygons, a run-length encoding in a dict, or an "
            f"(H, W) array; got {type(segmentation)}"
        )
    assert segmentation.ndim == 2, f"a mask must be (H, W), got {segmentation.shape}"
    return segmentation


def filter_empty_instances(
    instances, by_box=True, by_mask=True, box_threshold=1e-5, return_mask=False
):
    """Removes empty instances.

    Args:
        instances: ``Instances`` with ``gt_boxes`` and optionally ``gt_masks``.
        by_box: Whether to remove empty boxes.
        by_mask: Whether to remove empty masks.
        box_threshold: Side length in pixels up to which a box is empty.
        return_mask: Whether to also return the (N,) bool mask of the instances kept.
    """
    assert by_box or by_mask, "by_box or by_mask must be True"
    conditions = []
    if by_box:
        conditions.append(instances.gt_boxes.nonempty(threshold=box_threshold))
    if by_mask and instances.has("gt_masks"):
        conditions.append(instances.gt_masks.nonempty())
    if not conditions:
        return (instances, None) if return_mask else instances
    keep = torch.stack([condition.cpu() for condition in conditions]).all(dim=0)
    return (instances[keep], keep) if return_mask else instances[keep]


def create_keypoint_hflip_indices(dataset_names: str | list[str]) -> list[int]:
    """Returns, for each keypoint, the index of its counterpart in the flipped image."""
    names = [dataset_names] if isinstance(dataset_names, str) else dataset_names
    check_metadata_consistency("keypoint_names", names)
    check_metadata_consistency("keypoint_flip_map", names)
    metadata = MetadataCatalog.get(names[0])
    counterpart = dict(metadata.keypoint_flip_map)
    counterpart.update({right: left for left, right in counterpart.items()})
    keypoint_names = metadata.keypoint_names
    return [keypoint_names.index(counterpart.get(name, name)) for name in keypoint_names]


def gen_crop_transform_with_instance(crop_size, image_size, instance):
    """Returns a random crop that contains the center of an instance.

    Args:
        crop_size: (height, width) in pixels, at most the size of the image.
        image_size: (height, width) of the image.
        instance: Annotation whose box lies in the image.
    """
    crop_size = np.asarray(crop_size, dtype=np.int32)
    x0, y0, x1, y1 = get_bbox(instance)
    center = np.array(((y0 + y1) * 0.5, (x0 + x1) * 0.5))
    image_size = np.asarray(image_size, dtype=np.int32)
    assert (center <= image_size).all(), (
        f"box {(x0, y0, x1, y1)} lies outside the image of (height, width) {tuple(image_size)}"
    )
    assert (crop_size <= image_size).all(), (
        f"a crop of {tuple(crop_size)} does not fit into an image of {tuple(image_size)}"
    )
    least = np.maximum(np.floor(center).astype(np.int32) - crop_size, 0)
    greatest = np.minimum(image_size - crop_size, np.ceil(center).astype(np.int32))
    y = np.random.randint(least[0], greatest[0] + 1)
    x = np.random.randint(least[1], greatest[1] + 1)
    return T.CropTransform(x, y, crop_size[1], crop_size[0])


def check_metadata_consistency(key, dataset_names) -> None:
    """Checks that data sets have the same value of a metadata key.

    Raises:
        AttributeError: A data set lacks the key.
        ValueError: The values differ.
    """
    if len(dataset_names) == 0:
        return
    values = [getattr(MetadataCatalog.get(name), key) for name in dataset_names]
    for name, value in zip(dataset_names, values, strict=True):
        if value != values[0]:
            logging.getLogger(__name__).error(
                "Metadata '%s' is %s for dataset '%s' but %s for dataset '%s'",
                key,
                value,
                name,
                values[0],
                dataset_names[0],
            )
            raise ValueError(f"Datasets have different metadata '{key}'!")


def build_augmentation(cfg, is_train):
    """Returns the augmentations of ``cfg.INPUT``: resizing, and a flip for training."""
    settings = cfg.INPUT
    if not is_train:
        return [T.ResizeShortestEdge(settings.MIN_SIZE_TEST, settings.MAX_SIZE_TEST, "choice")]
    resize = T.ResizeShortestEdge(
        settings.MIN_SIZE_TRAIN, settings.MAX_SIZE_TRAIN, settings.MIN_SIZE_TRAIN_SAMPLING
    )
    axis = settings.RANDOM_FLIP
    if axis == "none":
        return [resize]
    return [resize, T.RandomFlip(horizontal=axis == "horizontal", vertical=axis == "vertical")]


# Alias for backward compatibility.
build_transform_gen = build_augmentation
