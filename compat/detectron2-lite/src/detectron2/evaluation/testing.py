# SPDX-License-Identifier: Apache-2.0
"""Results of an evaluation: flat names, a printed form, and a check against expected values."""

import logging
import pprint
import sys
from collections.abc import Mapping

import numpy as np


def flatten_results_dict(results) -> dict:
    """{"bbox": {"AP": 1}} -> {"bbox/AP": 1}, at any depth."""
    flat = {}
    for name, value in results.items():
        if isinstance(value, Mapping):
            inner = flatten_results_dict(value)
            flat.update({f"{name}/{inner_name}": inner[inner_name] for inner_name in inner})
        else:
            flat[name] = value
    return flat


def print_csv_format(results) -> None:
    """Log the main metrics so that they can be pasted into a spreadsheet.

    Metrics with "-" in their name, such as those of single categories, are left out.

    Args:
        results: task -> {metric -> value}.
    """
    assert isinstance(results, Mapping) or not len(results), results
    logger = logging.getLogger(__name__)
    for task, metrics in results.items():
        if isinstance(metrics, Mapping):
            main = {name: value for name, value in metrics.items() if "-" not in name}
            logger.info(f"copypaste: Task: {task}")
            logger.info("copypaste: " + ",".join(main))
            logger.info("copypaste: " + ",".join(f"{value:.4f}" for value in main.values()))
        else:
            logger.info(f"copypaste: {task}={metrics}")


def verify_results(cfg, results) -> bool:
    """Check results against cfg.TEST.EXPECTED_RESULTS; leave the program if they differ.

    Args:
        cfg: each expectation is [task, metric, expected value, tolerance].
        results: task -> {metric -> value}.

    Returns:
        True; a mismatch exits with status 1.
    """
    logger = logging.getLogger(__name__)
    expectations = cfg.TEST.EXPECTED_RESULTS
    missed = [
        f"{task}/{metric} is {results[task].get(metric)}, not {expected} +- {tolerance}"
        for task, metric, expected, tolerance in expectations
        if not _is_near(results[task].get(metric), expected, tolerance)
    ]
    if missed:
        logger.error("TEST.EXPECTED_RESULTS is not met:\n" + "\n".join(missed))
        logger.error(f"All results:\n{pprint.pformat(results)}")
        sys.exit(1)
    if expectations:
        logger.info("The results meet TEST.EXPECTED_RESULTS")
    return True


def _is_near(actual: float | None, expected: float, tolerance: float) -> bool:
    """Whether a metric exists, is finite, and is as expected."""
    return actual is not None and bool(np.isfinite(actual)) and abs(actual - expected) <= tolerance
