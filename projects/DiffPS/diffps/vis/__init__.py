# SPDX-License-Identifier: Apache-2.0
"""Visualizations of DiffPS: the frozen model and the trainable parts at work.

``probe`` runs the UNet, ``pca`` and ``maps`` turn tensors into colors, ``sheet`` arranges panels,
``backbone_panels`` and ``head_panels`` draw the sheets of a ``subject``. The command is
``projects/DiffPS/tools/visualize_diffusion.py``.
"""
