# SPDX-License-Identifier: Apache-2.0
"""A batch of images of different sizes in one tensor."""

from typing import Any, Dict, List, Optional, Tuple  # noqa: UP035  TorchScript reads these

import torch
from detectron2.layers.wrappers import move_device_like, shapes_to_tensor
from torch import device
from torch.nn import functional as F


class ImageList:
    """Images padded at the bottom and on the right to a common size.

    Attributes:
        tensor: (N, H, W) or (N, C1, ..., CK, H, W) images with padding.
        image_sizes: (height, width) of each image without padding.
    """

    def __init__(self, tensor: torch.Tensor, image_sizes: List[Tuple[int, int]]):  # noqa: UP006
        self.tensor = tensor
        self.image_sizes = image_sizes

    def __len__(self) -> int:
        return len(self.image_sizes)

    def __getitem__(self, idx) -> torch.Tensor:
        """Returns a view of image ``idx`` without padding, (H, W) or (C1, ..., CK, H, W)."""
        size = self.image_sizes[idx]
        return self.tensor[idx, ..., : size[0], : size[1]]

    @torch.jit.unused
    def to(self, *args: Any, **kwargs: Any) -> "ImageList":
        """Calls ``Tensor.to`` on the images."""
        return ImageList(self.tensor.to(*args, **kwargs), self.image_sizes)

    @property
    def device(self) -> device:
        """Device of the images."""
        return self.tensor.device

    @staticmethod
    def from_tensors(
        tensors: List[torch.Tensor],  # noqa: UP006
        size_divisibility: int = 0,
        pad_value: float = 0.0,
        padding_constraints: Optional[Dict[str, int]] = None,  # noqa: UP006, UP045
    ) -> "ImageList":
        """Pads images to a common size and stacks them.

        Args:
            tensors: Images, each (H_i, W_i) or (C1, ..., CK, H_i, W_i).
            size_divisibility: If greater than 1, the common size is rounded up to a multiple of it.
            pad_value: Value of the padding.
            padding_constraints: May hold "size_divisibility", which overrides the argument, and
                "square_size"; if that is positive, it is the height and width to pad to.
        """
        assert len(tensors) > 0, "an ImageList needs at least one image"
        leading = tensors[0].shape[:-2]
        for image in tensors:
            assert image.shape[:-2] == leading, f"images differ: {image.shape[:-2]}, {leading}"

        image_sizes = [(image.shape[-2], image.shape[-1]) for image in tensors]
        # tensors, so that a trace computes the sizes from the input
        size_tensors = [shapes_to_tensor([h, w]) for h, w in image_sizes]
        common = torch.stack(size_tensors).max(0).values
        if padding_constraints is not None:
            side = padding_constraints.get("square_size", 0)
            if side > 0:
                common = torch.full_like(common, side)
            size_divisibility = padding_constraints.get("size_divisibility", size_divisibility)
        if size_divisibility > 1:
            # -floor(-x) rounds up
            blocks = -torch.div(-common, size_divisibility, rounding_mode="floor")
            common = blocks * size_divisibility

        if torch.jit.is_scripting():
            common_size: List[int] = common.to(dtype=torch.long).tolist()  # noqa: UP006
            h, w = common_size[0], common_size[1]
        else:
            h, w = common[0], common[1]
            if torch.jit.is_tracing():
                image_sizes = size_tensors

        if len(tensors) == 1:
            # cheaper for the usual batch at test time
            own = image_sizes[0]
            batch = F.pad(tensors[0], [0, w - own[1], 0, h - own[0]], value=pad_value).unsqueeze(0)
        else:
            shape = [len(tensors)] + list(leading) + [h, w]
            # a trace would make a constant of the device
            start = torch.device("cpu") if torch.jit.is_tracing() else tensors[0].device
            batch = tensors[0].new_full(shape, pad_value, device=start)
            batch = move_device_like(batch, tensors[0])
            for i, image in enumerate(tensors):
                batch[i, ..., : image.shape[-2], : image.shape[-1]].copy_(image)
        return ImageList(batch.contiguous(), image_sizes)
