# SPDX-License-Identifier: Apache-2.0
"""Visualizations of DiffPS: the frozen model and the trainable parts at work.

``probe`` runs the UNet, ``pca`` and ``maps`` turn tensors into colors, ``sheet`` arranges panels,
``backbone_panels`` and ``head_panels`` draw the sheets. The command is
``projects/DiffPS/tools/visualize_diffusion.py``.
"""

from diffps.vis.backbone_panels import (
    AttentionOptions,
    draw_attention,
    draw_pca,
    group_by_level,
)
from diffps.vis.head_panels import HeadsView, draw_dgrpn, draw_msfrn, draw_sfan
from diffps.vis.probe import DiffusionProbe
from diffps.vis.sheet import stack_sheets
from diffps.vis.subject import Subject, make_subject

__all__ = [
    "AttentionOptions",
    "DiffusionProbe",
    "HeadsView",
    "Subject",
    "draw_attention",
    "draw_dgrpn",
    "draw_msfrn",
    "draw_pca",
    "draw_sfan",
    "group_by_level",
    "make_subject",
    "stack_sheets",
]
