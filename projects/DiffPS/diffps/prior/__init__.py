# SPDX-License-Identifier: Apache-2.0
"""Trains a tiny Stable Diffusion model on synthetic scenes, and measures what its attention finds.

``scenes`` draws the images, ``captions`` puts crops of them into words, ``trainer`` is the loop,
``vae`` and ``denoiser`` are the two stages, ``pointing`` measures. No part sees a box in training:
the loss is that of denoising. ``projects/DiffPS/tools/train_tiny_diffusion.py`` is the command.
"""
