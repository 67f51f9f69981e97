# SPDX-License-Identifier: Apache-2.0
"""Assign each prediction (anchor or proposal) to a ground truth by their IoU.

Shape shorthand: M ground truths, N predictions.
"""

import torch
from detectron2.layers import nonzero_tuple


class Matcher:
    """Label predictions by the band that their best IoU falls into.

    `thresholds` cut the range of qualities into `len(thresholds) + 1` bands, lowest first;
    `labels` gives one label per band: 1 foreground, 0 background, -1 ignored. A quality equal to
    a threshold belongs to the band above it.

    Args:
        thresholds: increasing, positive cut points.
        labels: one label out of {-1, 0, 1} per band.
        allow_low_quality_matches: also make foreground every prediction that is the best one
            for some ground truth, whatever its band. It keeps its own best ground truth.
    """

    def __init__(
        self,
        thresholds: list[float],
        labels: list[int],
        allow_low_quality_matches: bool = False,
    ):
        assert len(labels) == len(thresholds) + 1, "need one label per band"
        bounds: list[float] = [-float("inf")]
        for t in thresholds:
            assert t > 0, "thresholds must be positive"
            assert t >= bounds[-1], "thresholds must increase"
            bounds.append(t)
        bounds.append(float("inf"))
        for label in labels:
            assert label == -1 or label == 0 or label == 1, "labels must be -1, 0 or 1"

        self.thresholds = bounds
        self.labels = labels
        self.allow_low_quality_matches = allow_low_quality_matches

    def __call__(self, match_quality_matrix):
        """Match.

        Args:
            match_quality_matrix: (M, N), values >= 0.

        Returns:
            matches: (N,) int64, the ground truth with the highest quality.
            match_labels: (N,) int8.

            Without ground truth every prediction gets match 0 and the label of the lowest band.
        """
        assert match_quality_matrix.dim() == 2, "need an (M, N) matrix"
        num_predictions = match_quality_matrix.size(1)
        if match_quality_matrix.numel() == 0:
            matches = match_quality_matrix.new_zeros((num_predictions,), dtype=torch.int64)
            match_labels = match_quality_matrix.new_full(
                (num_predictions,), self.labels[0], dtype=torch.int8
            )
            return matches, match_labels

        assert torch.all(match_quality_matrix >= 0), "qualities must not be negative"
        best_quality, matches = match_quality_matrix.max(dim=0)
        match_labels = torch.ones_like(matches, dtype=torch.int8)
        for band in range(len(self.labels)):
            in_band = (best_quality >= self.thresholds[band]) & (
                best_quality < self.thresholds[band + 1]
            )
            match_labels[in_band] = self.labels[band]
        if not self.allow_low_quality_matches:
            return matches, match_labels
        self.set_low_quality_matches_(match_labels, match_quality_matrix)
        return matches, match_labels

    def set_low_quality_matches_(self, match_labels, match_quality_matrix):
        """Set to 1, in place, the label of each prediction that is some ground truth's best.

        Ties count: all predictions that share a ground truth's highest quality are set.

        Args:
            match_labels: (N,) int8.
            match_quality_matrix: (M, N).
        """
        best_per_gt, _ = match_quality_matrix.max(dim=1)
        is_best = match_quality_matrix == best_per_gt[:, None]
        match_labels[nonzero_tuple(is_best)[1]] = 1
