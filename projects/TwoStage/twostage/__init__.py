# SPDX-License-Identifier: Apache-2.0
"""Two-stage baseline: a detector, then a re-ID network on crops. Registers ``TwoStage``."""

from twostage.config import add_twostage_config
from twostage.meta_arch import TwoStage

__all__ = ["TwoStage", "add_twostage_config"]
