# SPDX-License-Identifier: Apache-2.0
"""What can be wrong with a gallery on disk; all of these are shown to the user as one message."""


class GalleryError(ValueError):
    """A folder that is no gallery, of another version, or used in a way that it cannot serve."""


class GalleryDamagedError(GalleryError):
    """Files of the gallery contradict each other in a way that no interrupted run can cause."""


class GalleryLockedError(GalleryError):
    """Another process is writing."""


class OtherModelError(GalleryError):
    """The embeddings of the gallery come from another model: similarities would mean nothing."""


class UnsafePathError(GalleryError):
    """An entry names a file outside the folder that was indexed."""
