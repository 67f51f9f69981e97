# SPDX-License-Identifier: Apache-2.0
"""Evaluation of person search: detection and search metrics from one pass over the test set."""

from person_search.evaluation.chance import chance_level
from person_search.evaluation.detection_metrics import evaluate_detection
from person_search.evaluation.evaluator import PersonSearchEvaluator
from person_search.evaluation.predictions import (
    PooledPredictions,
    read_predictions,
    write_predictions,
)
from person_search.evaluation.ranking import rank_gallery
from person_search.evaluation.search_metrics import SearchScores, evaluate_search
from person_search.evaluation.settings import EvaluationSettings, SearchOptions

__all__ = [
    "EvaluationSettings",
    "PersonSearchEvaluator",
    "PooledPredictions",
    "SearchOptions",
    "SearchScores",
    "chance_level",
    "evaluate_detection",
    "evaluate_search",
    "rank_gallery",
    "read_predictions",
    "write_predictions",
]
