# SPDX-License-Identifier: Apache-2.0
"""Trains a tiny Stable Diffusion model on synthetic scenes, and evaluates its attention.

``scenes`` draws the images, ``captions`` describes crops of them, ``vae`` and ``denoiser`` are the
two stages of the training in ``recipe``, ``trainer`` is its loop, and ``pointing`` evaluates.
Training uses no boxes: the loss is that of denoising. The command is
``projects/DiffPS/tools/train_tiny_diffusion.py``.
"""
