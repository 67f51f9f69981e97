# ruff: noqa: F401
# SPDX-License-Identifier: Apache-2.0
"""Evaluator interface and the evaluation loop."""

from detectron2._lite import absent

from .evaluator import (
    DatasetEvaluator,
    DatasetEvaluators,
    inference_context,
    inference_on_dataset,
)
from .testing import print_csv_format, verify_results

__getattr__ = absent(__name__)
