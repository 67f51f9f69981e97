# SPDX-License-Identifier: Apache-2.0
"""Bring results from the frame of the network's input to the frame the user asked for."""

import torch
from detectron2._lite import NotInLiteError, absence_message
from detectron2.structures import Instances
from torch.nn import functional as F


def detector_postprocess(
    results: Instances, output_height: int, output_width: int, mask_threshold: float = 0.5
) -> Instances:
    """Scale and clip the boxes of one image; drop those that become empty.

    Args:
        results: has `pred_boxes` or `proposal_boxes`, in the frame of `results.image_size`. They
            are scaled in place; all other fields keep their values.
        output_height, output_width: size in pixels of the image to give the boxes in.
        mask_threshold: part of Detectron2's signature; masks are not in detectron2-lite.

    Returns:
        Instances of size (output_height, output_width) with the rows whose box has an area.
    """
    if results.has("pred_masks") or results.has("pred_keypoints"):
        raise NotInLiteError(absence_message("postprocessing of pred_masks or pred_keypoints"))
    if isinstance(output_width, torch.Tensor):  # a traced size
        new_size = torch.stack([torch.as_tensor(output_height), output_width])
        width, height = output_width.float(), torch.as_tensor(output_height).float()
    else:
        new_size = (output_height, output_width)
        width, height = output_width, output_height

    scale_x, scale_y = width / results.image_size[1], height / results.image_size[0]
    fields = results.get_fields()
    boxes = fields.get("pred_boxes", fields.get("proposal_boxes"))
    if boxes is None:
        raise ValueError(
            "detector_postprocess needs boxes in a field 'pred_boxes' or 'proposal_boxes'; "
            f"the Instances has {sorted(fields)}"
        )
    boxes.scale(scale_x, scale_y)
    boxes.clip(new_size)
    return Instances(new_size, **fields)[boxes.nonempty()]


def sem_seg_postprocess(
    result: torch.Tensor, img_size: tuple[int, int], output_height: int, output_width: int
) -> torch.Tensor:
    """Cut the padding off a (C, H, W) score map and resize it to the output size.

    Args:
        result: (C, H, W) scores of the padded input.
        img_size: (height, width) of the image without padding.
        output_height, output_width: size wanted.

    Returns:
        (C, output_height, output_width), bilinear.
    """
    valid = result[None, :, : img_size[0], : img_size[1]]
    return F.interpolate(
        valid, size=(output_height, output_width), mode="bilinear", align_corners=False
    )[0]
