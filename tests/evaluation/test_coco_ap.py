# SPDX-License-Identifier: Apache-2.0
"""COCO's AP by size of the person; test_detection_metrics.py has cases by hand."""

import numpy as np
import pytest
from evaluation_cases import random_case
from hypothesis import given, settings
from hypothesis import strategies as st

from person_search.evaluation.coco_ap import coco_average_precision, coco_summary


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_coco_sizes_are_parts_of_the_whole(seed):
    case = random_case(seed)
    pooled = case.pooled()
    boxes = np.array([b for image in case.gt.values() for b in image]).reshape(-1, 4)
    offsets = np.cumsum([0] + [len(image) for image in case.gt.values()])
    arrays = (boxes, offsets, pooled.boxes, pooled.scores, pooled.det_offsets)
    metrics = coco_summary(*arrays)
    assert metrics["AP50"] == pytest.approx(coco_average_precision(*arrays))
    assert metrics["AP75"] == pytest.approx(coco_average_precision(*arrays, iou_thresh=0.75))
    assert metrics["AP75"] <= metrics["AP50"] + 1e-9 and metrics["AP"] <= metrics["AP50"] + 1e-9
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)
    for name, low, high in (("APs", 0, 32**2), ("APm", 32**2, 96**2), ("APl", 96**2, 1e10)):
        is_empty = not ((areas >= low) & (areas <= high)).any()
        assert np.isnan(metrics[name]) == is_empty
