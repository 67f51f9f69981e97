# SPDX-License-Identifier: Apache-2.0
"""Matching of predictions (anchors or proposals) with ground truth boxes.

Shape shorthand: M ground truths, N predictions.
"""

import torch
from detectron2.layers import nonzero_tuple


class Matcher:
    """Matches each prediction with a ground truth and labels it by the quality of the match.

    ``thresholds`` divide the qualities into ``len(thresholds) + 1`` intervals, lowest first, each
    with its label. A quality equal to a threshold belongs to the interval above it.

    Args:
        thresholds: Increasing positive thresholds.
        labels: Label of each interval: 1 foreground, 0 background, -1 ignored.
        allow_low_quality_matches: Whether the best predictions of a ground truth are foreground
            regardless of their quality.
    """

    def __init__(
        self,
        thresholds: list[float],
        labels: list[int],
        allow_low_quality_matches: bool = False,
    ):
        assert len(labels) == len(thresholds) + 1, "need one label per interval"
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
        """Matches predictions.

        Args:
            match_quality_matrix: (M, N) qualities, at least 0.

        Returns:
            The (N,) int64 index of the ground truth with the highest quality, and the (N,) int8
            label. Without ground truth, these are 0 and the label of the lowest interval.
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
        for index, label in enumerate(self.labels):
            is_above = best_quality >= self.thresholds[index]
            match_labels[is_above & (best_quality < self.thresholds[index + 1])] = label
        if not self.allow_low_quality_matches:
            return matches, match_labels
        self.set_low_quality_matches_(match_labels, match_quality_matrix)
        return matches, match_labels

    def set_low_quality_matches_(self, match_labels, match_quality_matrix):
        """Sets to 1, in place, the label of each prediction with the highest quality of a row.

        Args:
            match_labels: (N,) int8 labels.
            match_quality_matrix: (M, N) qualities.
        """
        best_per_gt, _ = match_quality_matrix.max(dim=1)
        is_best = match_quality_matrix == best_per_gt[:, None]
        match_labels[nonzero_tuple(is_best)[1]] = 1
