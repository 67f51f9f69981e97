# SPDX-License-Identifier: Apache-2.0
"""Trains a tiny Stable Diffusion model on synthetic scenes.

``scenes`` draws the images, ``captions`` describes crops of them, ``vae`` and ``denoiser`` are the
two stages of the training in ``recipe``, and ``trainer`` is its loop. Training uses no boxes: the
loss is that of denoising. The command is ``projects/DiffPS/tools/train_tiny_diffusion.py``, and
``benchmarks/measure_pointing.py`` evaluates the attention.
"""
