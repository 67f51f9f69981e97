# ruff: noqa: F401
# SPDX-License-Identifier: Apache-2.0
"""Proposal generators: the first stage of a detector."""

from detectron2._lite import absent

from .build import PROPOSAL_GENERATOR_REGISTRY, build_proposal_generator
from .rpn import RPN, RPN_HEAD_REGISTRY, StandardRPNHead, build_rpn_head

__getattr__ = absent(__name__)
