# SPDX-License-Identifier: Apache-2.0
"""PSDiff: person search by denoising boxes and re-ID embeddings together.

Importing this package registers the meta-architecture ``PSDiff`` and the mapper ``PSDiffMapper``.
"""

import person_search.modeling  # noqa: F401  registers the slim backbones
from psdiff.config import add_psdiff_config
from psdiff.data import PSDiffMapper
from psdiff.meta_arch import PSDiff

__all__ = ["PSDiff", "PSDiffMapper", "add_psdiff_config"]
