# SPDX-License-Identifier: Apache-2.0
"""Results of an evaluation: flattening, printing, and comparison with expected values."""

import logging
import pprint
import sys
from collections.abc import Mapping

import numpy as np


def flatten_results_dict(results) -> dict:
    """Flattens nested results: {"bbox": {"AP": 1}} becomes {"bbox/AP": 1}."""
    flat = {}
    for name, value in results.items():
        if isinstance(value, Mapping):
            for inner_name, inner_value in flatten_results_dict(value).items():
                flat[f"{name}/{inner_name}"] = inner_value
        else:
            flat[name] = value
    return flat


def print_csv_format(results) -> None:
    """Logs the main metrics in a format for spreadsheets.

    Metrics with "-" in their name, such as those of single categories, are omitted.

    Args:
        results: Dict from task to a dict from metric to value.
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
    """Compares results with cfg.TEST.EXPECTED_RESULTS and exits the program if they differ.

    Args:
        cfg: Full config. Each expected result is [task, metric, expected value, tolerance].
        results: Dict from task to a dict from metric to value.

    Returns:
        True; different results exit with status 1.
    """
    logger = logging.getLogger(__name__)
    different = []
    for task, metric, expected, tolerance in cfg.TEST.EXPECTED_RESULTS:
        actual = results[task].get(metric)
        is_finite = actual is not None and np.isfinite(actual)
        if not is_finite or abs(actual - expected) > tolerance:
            different.append(f"{task}/{metric} is {actual}, expected {expected} +- {tolerance}")
    if different:
        logger.error("The results differ from TEST.EXPECTED_RESULTS:\n" + "\n".join(different))
        logger.error(f"All results:\n{pprint.pformat(results)}")
        sys.exit(1)
    if cfg.TEST.EXPECTED_RESULTS:
        logger.info("The results agree with TEST.EXPECTED_RESULTS")
    return True
