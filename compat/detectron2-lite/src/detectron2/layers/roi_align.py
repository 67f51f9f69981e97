# SPDX-License-Identifier: Apache-2.0
"""RoIAlign: features of boxes, resampled to a fixed size."""

from torch import nn
from torchvision.ops import roi_align

__all__ = ["ROIAlign", "roi_align"]


class ROIAlign(nn.Module):
    """Samples each box of a feature map on a grid.

    With ``aligned=True`` ("ROIAlignV2" in configs) the center of pixel (0, 0) is at (0.5, 0.5) in
    continuous coordinates, so boxes are shifted by half a cell before sampling. ``False`` is the
    older convention without the shift.
    """

    def __init__(self, output_size, spatial_scale, sampling_ratio, aligned=True):
        """
        Args:
            output_size: (height, width) of the output.
            spatial_scale: factor from box coordinates to feature map cells.
            sampling_ratio: samples per output cell and axis; 0 takes as many as cells are covered.
            aligned: see the class.
        """
        super().__init__()
        self.output_size = output_size
        self.spatial_scale = spatial_scale
        self.sampling_ratio = sampling_ratio
        self.aligned = aligned

    def forward(self, input, rois):
        """Returns (K, C, height, width) for (N, C, H, W) features and K boxes.

        Args:
            input: (N, C, H, W) features.
            rois: (K, 5); index in the batch, then x0, y0, x1, y1.
        """
        assert rois.dim() == 2 and rois.size(1) == 5, f"rois must be (K, 5), got {rois.shape}"
        # torchvision resamples floating point numbers only, and wants one type for both
        features = input.dequantize() if input.is_quantized else input
        return roi_align(
            features,
            rois.to(features.dtype),
            output_size=self.output_size,
            spatial_scale=self.spatial_scale,
            sampling_ratio=self.sampling_ratio,
            aligned=self.aligned,
        )

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}(output_size={self.output_size}, "
            f"spatial_scale={self.spatial_scale}, sampling_ratio={self.sampling_ratio}, "
            f"aligned={self.aligned})"
        )
