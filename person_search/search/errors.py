# SPDX-License-Identifier: Apache-2.0
"""Errors of a gallery on disk; the command line and the page show each as one message."""


class GalleryError(ValueError):
    """A folder is not a gallery, has another version, or cannot be used as requested."""


class GalleryDamagedError(GalleryError):
    """Files of the gallery contradict each other in a way that no interrupted run can cause."""


class GalleryLockedError(GalleryError):
    """Another process is writing the gallery."""


class OtherModelError(GalleryError):
    """The embeddings of the gallery come from another model and cannot be compared."""


class UnsafePathError(GalleryError):
    """An entry names a file outside the indexed folder."""


class RemoteError(GalleryError):
    """Images at a URL cannot be listed or read now; nothing is known about the images."""


class ImageChangedError(GalleryError):
    """An image has another size in pixels than when it was indexed, so its boxes do not fit."""
