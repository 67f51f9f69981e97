# SPDX-License-Identifier: Apache-2.0
"""DiffPS: person search on the features of a frozen Stable Diffusion UNet.

Importing this package registers the meta-architecture ``DiffPS``, its parts (among them the
backbone ``DiffusionBackbone``) and the mapper ``DiffPSMapper``. It loads neither diffusers nor
transformers; building the backbone does.
"""

from diffps.backbone import DiffusionBackbone
from diffps.config import add_diffps_config
from diffps.data import DiffPSMapper
from diffps.meta_arch import DiffPS

__all__ = ["DiffPS", "DiffPSMapper", "DiffusionBackbone", "add_diffps_config"]
