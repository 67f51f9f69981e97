# SPDX-License-Identifier: Apache-2.0
"""RoIAlign: resamples the features of boxes to a fixed size."""

from torch import nn
from torchvision.ops import roi_align


class ROIAlign(nn.Module):
    """Samples each box of a feature map on a grid.

    Args:
        output_size: (height, width) of the output.
        spatial_scale: Factor from box coordinates to feature map cells.
        sampling_ratio: Samples per output cell and axis; 0 takes as many as cells are covered.
        aligned: Whether the center of pixel (0, 0) is at (0.5, 0.5) in continuous coordinates, so
            that boxes are shifted by half a cell before sampling ("ROIAlignV2" in configs).
    """

    def __init__(self, output_size, spatial_scale, sampling_ratio, aligned=True):
        super().__init__()
        self.output_size = output_size
        self.spatial_scale = spatial_scale
        self.sampling_ratio = sampling_ratio
        self.aligned = aligned

    def forward(self, input, rois):
        """Pools K boxes.

        Args:
            input: (N, C, H, W) features.
            rois: (K, 5) rows: index in the batch, x0, y0, x1, y1.

        Returns:
            (K, C, height, width) features.
        """
        assert rois.dim() == 2 and rois.size(1) == 5, f"rois must be (K, 5), got {rois.shape}"
        # torchvision needs floating point numbers of the same type for both
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
