# SPDX-License-Identifier: Apache-2.0
"""PSDiff: person search by denoising bounding boxes and re-ID embeddings jointly.

Importing this package registers the meta-architecture ``PSDiff``, the mapper ``PSDiffMapper`` and
the crop embedder ``PSDiffTeacher``.
"""

import person_search.modeling  # noqa: F401  registers the slim backbones
from psdiff.config import add_psdiff_config
from psdiff.data import PSDiffMapper
from psdiff.meta_arch import PSDiff
from psdiff.teachers.crop_embedder import PSDiffTeacher

__all__ = ["PSDiff", "PSDiffMapper", "PSDiffTeacher", "add_psdiff_config"]
