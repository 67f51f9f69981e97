# SPDX-License-Identifier: Apache-2.0
"""The index of Detectron2's trained models, which detectron2-lite does not have.

The module itself can be imported, since programs do so for one of several options; each use of it
names what to install.
"""

from detectron2._lite import absent

__getattr__ = absent(__name__, "get", "get_checkpoint_url", "get_config", "get_config_file")
