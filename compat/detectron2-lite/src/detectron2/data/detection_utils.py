# SPDX-License-Identifier: Apache-2.0
"""What data set mappers are made of: annotations and their transforms.

Shape shorthand: N annotations of one image, K keypoints of one object.
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

from . import transforms as T
from .catalog import MetadataCatalog
from .image_io import (
    SizeMismatchError,
    _apply_exif_orientation,
    check_image_size,
    convert_image_to_rgb,
    convert_PIL_to_numpy,
    read_image,
)

__all__ = [
    "SizeMismatchError",
    "_apply_exif_orientation",
    "annotations_to_instances",
    "build_augmentation",
    "build_transform_gen",
    "check_image_size",
    "check_metadata_consistency",
    "convert_PIL_to_numpy",
    "convert_image_to_rgb",
    "create_keypoint_hflip_indices",
    "filter_empty_instances",
    "gen_crop_transform_with_instance",
    "get_bbox",
    "read_image",
    "transform_instance_annotations",
    "transform_keypoint_annotations",
    "transform_proposals",
]

__getattr__ = absent(__name__, "annotations_to_instances_rotated", "get_fed_loss_cls_weights")


def transform_proposals(dataset_dict, image_shape, transforms, *, proposal_topk, min_box_size=0):
    """Replaces the proposals of a record by transformed ones, as ``proposals``.

    Args:
        dataset_dict: the record, changed in place; nothing happens without proposals.
        image_shape: (height, width) after the transforms.
        transforms: a ``TransformList``.
        proposal_topk: how many to keep.
        min_box_size: proposals with a side not longer than that are dropped.
    """
    if "proposal_boxes" not in dataset_dict:
        return
    corners, mode, logits = (
        dataset_dict.pop(f"proposal_{key}") for key in ("boxes", "bbox_mode", "objectness_logits")
    )
    corners = BoxMode.convert(corners, mode, BoxMode.XYXY_ABS)
    boxes = Boxes(transforms.apply_box(corners))
    boxes.clip(image_shape)
    keep = torch.where(boxes.nonempty(threshold=min_box_size))[0][:proposal_topk]
    dataset_dict["proposals"] = Instances(
        image_shape,
        proposal_boxes=boxes[keep],
        objectness_logits=torch.as_tensor(logits.astype("float32", copy=False))[keep],
    )


def get_bbox(annotation: dict[str, Any]) -> np.ndarray:
    """Returns the box of an annotation as (4,) x0, y0, x1, y1."""
    return BoxMode.convert(annotation["bbox"], annotation["bbox_mode"], BoxMode.XYXY_ABS)


def transform_instance_annotations(
    annotation, transforms, image_size, *, keypoint_hflip_indices=None
):
    """Transforms the box, segmentation and keypoints of an annotation, in place.

    Args:
        annotation: as in a record. Afterwards ``bbox`` is a (4,) array x0, y0, x1, y1 clipped to
            the image, polygons are arrays, and an encoded mask is an (H, W) array.
        transforms: a ``TransformList``, or a list of transforms.
        image_size: (height, width) after the transforms.
        keypoint_hflip_indices: see ``create_keypoint_hflip_indices``.

    Returns:
        The annotation.
    """
    is_list = isinstance(transforms, (tuple, list))
    applied = T.TransformList(transforms) if is_list else transforms
    height, width = image_size
    # the box first in the record's numbers, for integers round differently
    box = applied.apply_box(np.array([get_bbox(annotation)]))[0].clip(min=0)
    changed = {
        "bbox": np.minimum(box, [width, height, width, height]),
        "bbox_mode": BoxMode.XYXY_ABS,
    }
    if "segmentation" in annotation:
        mask = annotation["segmentation"]
        changed["segmentation"] = _transform_segmentation(mask, applied, image_size)
    if "keypoints" in annotation:
        changed["keypoints"] = transform_keypoint_annotations(
            annotation["keypoints"], applied, image_size, keypoint_hflip_indices
        )
    annotation.update(changed)
    return annotation


def _transform_segmentation(segmentation, transforms, image_size):
    if isinstance(segmentation, list):
        polygons = [np.asarray(polygon).reshape(-1, 2) for polygon in segmentation]
        return [polygon.reshape(-1) for polygon in transforms.apply_polygons(polygons)]
    if isinstance(segmentation, dict):
        mask = transforms.apply_segmentation(mask_util.decode(segmentation))
        assert tuple(mask.shape[:2]) == tuple(image_size), (
            f"the transformed mask is {mask.shape[:2]}, the image {tuple(image_size)}"
        )
        return mask
    raise ValueError(
        "a segmentation of a record is a list of polygons or a run-length encoding in a dict, "
        f"got {type(segmentation)}"
    )


def transform_keypoint_annotations(
    keypoints, transforms, image_size, keypoint_hflip_indices=None
) -> np.ndarray:
    """Transforms keypoints.

    Args:
        keypoints: 3 K numbers x, y, visibility, or an array of them.
        transforms: a ``TransformList``.
        image_size: (height, width) after the transforms.
        keypoint_hflip_indices: see ``create_keypoint_hflip_indices``.

    Returns:
        (K, 3) float64 array. Points that leave the image get visibility 0, and points with
        visibility 0 are at (0, 0).
    """
    keypoints = np.asarray(keypoints, dtype="float64").reshape(-1, 3)
    positions = transforms.apply_coords(keypoints[:, :2])
    inside = (positions >= [0, 0]).all(axis=1) & (positions <= image_size[::-1]).all(axis=1)
    keypoints[:, :2] = positions
    keypoints[~inside, 2] = 0

    # each flip exchanges left and right, so an even number of them leaves the names alone
    num_flips = sum(isinstance(transform, T.HFlipTransform) for transform in transforms.transforms)
    if num_flips % 2 == 1:
        keypoints = keypoints[_partner_rows(keypoint_hflip_indices, len(keypoints))]
    is_labelled = keypoints[:, 2] != 0
    return np.where(is_labelled[:, None], keypoints, 0.0)


def _partner_rows(keypoint_hflip_indices, num_keypoints: int) -> np.ndarray:
    """Returns, as (K,) indices, the keypoint that takes the place of each in the mirror."""
    if keypoint_hflip_indices is None:
        raise ValueError("a flip exchanges left and right keypoints: give keypoint_hflip_indices")
    if len(keypoint_hflip_indices) != num_keypoints:
        raise ValueError(
            f"an object has {num_keypoints} keypoints, but the metadata of its data set names "
            f"{len(keypoint_hflip_indices)}"
        )
    return np.asarray(keypoint_hflip_indices, dtype=np.int32)


def annotations_to_instances(annos, image_size, mask_format="polygon"):
    """Turns transformed annotations into ``Instances`` for training.

    Args:
        annos: list of annotations, as ``transform_instance_annotations`` returns them.
        image_size: (height, width).
        mask_format: "polygon" or "bitmask", for annotations with ``segmentation``.

    Returns:
        ``gt_boxes``, ``gt_classes`` (N,) int64, and ``gt_masks``, ``gt_keypoints`` where the
        annotations have them. No annotations give N = 0.
    """
    corners = [get_bbox(annotation) for annotation in annos]
    classes = [int(annotation["category_id"]) for annotation in annos]
    instances = Instances(
        image_size,
        gt_boxes=Boxes(np.stack(corners) if corners else np.zeros((0, 4))),
        gt_classes=torch.tensor(classes, dtype=torch.int64),
    )
    # the first annotation speaks for all
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
    """Returns the (H, W) array of polygons, of an encoded mask, or of such an array."""
    if isinstance(segmentation, list):
        return polygons_to_bitmask(segmentation, *image_size)
    if isinstance(segmentation, dict):
        return mask_util.decode(segmentation)
    if not isinstance(segmentation, np.ndarray):
        raise ValueError(
            "a segmentation is a list of polygons, a run-length encoding in a dict, or an (H, W) "
            f"array; got {type(segmentation)}"
        )
    assert segmentation.ndim == 2, f"a mask must be (H, W), got {segmentation.shape}"
    return segmentation


def filter_empty_instances(
    instances, by_box=True, by_mask=True, box_threshold=1e-5, return_mask=False
):
    """Drops the objects without extent.

    Args:
        instances: with ``gt_boxes``, and with ``gt_masks`` or not.
        by_box: drop empty boxes.
        by_mask: drop empty masks.
        box_threshold: a side not longer than that makes a box empty.
        return_mask: also return the (N,) bool of the objects kept.
    """
    assert by_box or by_mask, "nothing to filter by"
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
    """Returns, for each keypoint, which one takes its place when the image is mirrored."""
    names = [dataset_names] if isinstance(dataset_names, str) else dataset_names
    check_metadata_consistency("keypoint_names", names)
    check_metadata_consistency("keypoint_flip_map", names)
    metadata = MetadataCatalog.get(names[0])
    partner = dict(metadata.keypoint_flip_map)
    partner.update({right: left for left, right in partner.items()})
    keypoint_names = metadata.keypoint_names
    return [keypoint_names.index(partner.get(name, name)) for name in keypoint_names]


def gen_crop_transform_with_instance(crop_size, image_size, instance):
    """Returns a random crop that contains the center of an object.

    Args:
        crop_size: (height, width) in pixels, at most those of the image.
        image_size: (height, width) of the image.
        instance: an annotation, whose box must not lie beyond the image.
    """
    crop_size = np.asarray(crop_size, dtype=np.int32)
    x0, y0, x1, y1 = get_bbox(instance)
    center = np.array(((y0 + y1) * 0.5, (x0 + x1) * 0.5))
    image_size = np.asarray(image_size, dtype=np.int32)
    assert (center <= image_size).all(), (
        f"box {(x0, y0, x1, y1)} lies beyond the image of (height, width) {tuple(image_size)}"
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
    """Requires that data sets have the same value of a metadata key.

    Raises:
        AttributeError: a data set lacks the key.
        ValueError: the values differ.
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
    """Returns the augmentations of ``cfg.INPUT``: resizing, and in training a flip."""
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


# Name of before.
build_transform_gen = build_augmentation
