# SPDX-License-Identifier: Apache-2.0
"""Color augmentations of (H, W, C) images."""

import numpy as np
from fvcore.transforms.transform import BlendTransform

from .augmentation import Augmentation

__all__ = ["RandomBrightness", "RandomContrast", "RandomLighting", "RandomSaturation"]


class _RandomIntensity(Augmentation):
    """Blends the image, with a random weight w, with another image, with weight 1 - w.

    Args:
        intensity_min: Minimum of w. Values below 1 reduce the property.
        intensity_max: Maximum of w. Values above 1 increase the property.
    """

    def __init__(self, intensity_min, intensity_max):
        super().__init__()
        self._init(locals())

    def _other(self, image):
        """Returns the other image."""
        raise NotImplementedError

    def get_transform(self, image):
        """Returns a random blend."""
        weight = np.random.uniform(self.intensity_min, self.intensity_max)
        return BlendTransform(
            src_image=self._other(image), src_weight=1 - weight, dst_weight=weight
        )


class RandomContrast(_RandomIntensity):
    """Changes the contrast: the difference of every value to the mean of the image."""

    def _other(self, image):
        return image.mean()


class RandomBrightness(_RandomIntensity):
    """Changes the brightness: the difference to black."""

    def _other(self, image):
        return 0


class RandomSaturation(_RandomIntensity):
    """Changes the saturation of an RGB image: the difference to gray."""

    def _other(self, image):
        assert image.shape[-1] == 3, f"RandomSaturation needs RGB images, got {image.shape}"
        return image.dot([0.299, 0.587, 0.114])[:, :, np.newaxis]


class RandomLighting(Augmentation):
    """Shifts the color of an RGB image along the principal components of ImageNet's colors.

    This is the "fancy PCA" of Krizhevsky et al., NeurIPS 2012.

    Args:
        scale: Standard deviation of the weight of each component.
    """

    def __init__(self, scale):
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
        """Returns a random shift."""
        assert image.shape[-1] == 3, f"RandomLighting needs RGB images, got {image.shape}"
        weights = np.random.normal(scale=self.scale, size=3)
        shift = self.eigen_vecs.dot(weights * self.eigen_vals)
        return BlendTransform(src_image=shift, src_weight=1.0, dst_weight=1.0)
