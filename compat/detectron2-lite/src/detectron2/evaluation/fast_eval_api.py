# SPDX-License-Identifier: Apache-2.0
"""The evaluator that Detectron2 has in C++, under its name; here it is pycocotools' own."""

from pycocotools.cocoeval import COCOeval

__all__ = ["COCOeval_opt"]


class COCOeval_opt(COCOeval):
    """pycocotools' `COCOeval`: the same numbers as the C++ one, more slowly."""
