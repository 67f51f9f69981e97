# SPDX-License-Identifier: Apache-2.0
"""Postprocessing of detections."""

import torch
from detectron2._lite import NotInLiteError, absence_message, absent
from detectron2.structures import Instances

__getattr__ = absent(__name__, "sem_seg_postprocess")


def detector_postprocess(
    results: Instances, output_height: int, output_width: int, mask_threshold: float = 0.5
) -> Instances:
    """Rescales the boxes of one image to an output size, clips them, and removes empty boxes.

    Args:
        results: Instances with `pred_boxes` or `proposal_boxes` in the frame of
            `results.image_size`. The boxes are scaled in place.
        output_height: Height of the output image in pixels.
        output_width: Width of the output image in pixels.
        mask_threshold: Not used; masks are absent.

    Returns:
        Instances with the image size (output_height, output_width).
    """
    if results.has("pred_masks") or results.has("pred_keypoints"):
        raise NotInLiteError(absence_message("postprocessing of pred_masks or pred_keypoints"))
    if isinstance(output_width, torch.Tensor):  # traced
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
            "detector_postprocess needs a field 'pred_boxes' or 'proposal_boxes'; the fields are "
            f"{sorted(fields)}"
        )
    boxes.scale(scale_x, scale_y)
    boxes.clip(new_size)
    return Instances(new_size, **fields)[boxes.nonempty()]
