# SPDX-License-Identifier: Apache-2.0
"""DiffPS: person search on the features of a frozen Stable Diffusion UNet.

Importing this package registers the backbone ``DiffusionBackbone``. It loads neither diffusers nor
transformers; building the backbone does.
"""

from diffps.backbone import DiffusionBackbone
from diffps.config import add_diffps_config

__all__ = ["DiffusionBackbone", "add_diffps_config"]
