# SPDX-License-Identifier: Apache-2.0
"""Augmentations of color. They take (H, W, C) images and blend them with something else."""

import numpy as np
from fvcore.transforms.transform import BlendTransform

from .augmentation import Augmentation

__all__ = ["RandomBrightness", "RandomContrast", "RandomLighting", "RandomSaturation"]


class _RandomIntensity(Augmentation):
    """Blends with weight w for the image and 1 - w for something else, w uniform at random."""

    def __init__(self, intensity_min, intensity_max):
        """Takes the range of w: below 1 weakens, above 1 strengthens, 1 changes nothing."""
        super().__init__()
        self._init(locals())

    def _other(self, image):
        """Returns what the image is blended with."""
        raise NotImplementedError

    def get_transform(self, image):
        weight = np.random.uniform(self.intensity_min, self.intensity_max)
        return BlendTransform(
            src_image=self._other(image), src_weight=1 - weight, dst_weight=weight
        )


class RandomContrast(_RandomIntensity):
    """Changes the contrast: the distance of every value to the mean of the image."""

    def _other(self, image):
        return image.mean()


class RandomBrightness(_RandomIntensity):
    """Changes the brightness: the distance to black."""

    def _other(self, image):
        return 0


class RandomSaturation(_RandomIntensity):
    """Changes the saturation: the distance to gray. The image must be RGB."""

    def _other(self, image):
        assert image.shape[-1] == 3, f"RandomSaturation needs RGB images, got {image.shape}"
        return image.dot([0.299, 0.587, 0.114])[:, :, np.newaxis]


class RandomLighting(Augmentation):
    """Shifts the color of an RGB image along the principal components of ImageNet's colors.

    The "fancy PCA" of Krizhevsky et al., NeurIPS 2012.
    """

    def __init__(self, scale):
        """Takes the standard deviation of the weight of each component."""
        super().__init__()
        self._init(locals())
        self.eigen_vecs = np.array(
            [
                [-0.5675, 0.7192, 0.4009],
                [-0.5808, -0.0045, -0.8140],
                [-0.5836, -0.6948, 0.4203],
            ]
        )
        self.eigen_vals = np.array([0.2175, 0.0188, 0.0045])

    def get_transform(self, image):
        assert image.shape[-1] == 3, f"RandomLighting needs RGB images, got {image.shape}"
        weights = np.random.normal(scale=self.scale, size=3)
        shift = self.eigen_vecs.dot(weights * self.eigen_vals)
        return BlendTransform(src_image=shift, src_weight=1.0, dst_weight=1.0)
