# SPDX-License-Identifier: Apache-2.0
"""Person search on Detectron2: data sets, evaluator, trainer and drawing shared by all methods."""

__version__ = "0.1.0"
