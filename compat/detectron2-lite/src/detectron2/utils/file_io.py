# SPDX-License-Identifier: Apache-2.0
"""The path manager through which all files are opened: local paths, http(s) and detectron2://."""

from iopath.common.file_io import HTTPURLHandler, OneDrivePathHandler, PathHandler
from iopath.common.file_io import PathManager as PathManagerBase

__all__ = ["PathManager", "PathHandler"]

PathManager = PathManagerBase()
"""The one instance in use. Register further handlers on it to read from elsewhere."""


class Detectron2Handler(PathHandler):
    """Maps `detectron2://X` to the public download server of Detectron2's model zoo."""

    PREFIX = "detectron2://"
    S3_DETECTRON2_PREFIX = "https://dl.fbaipublicfiles.com/detectron2/"

    def _get_supported_prefixes(self) -> list[str]:
        return [self.PREFIX]

    def _get_local_path(self, path: str, **kwargs) -> str:
        url = self.S3_DETECTRON2_PREFIX + path.removeprefix(self.PREFIX)
        return PathManager.get_local_path(url, **kwargs)

    def _open(self, path: str, mode: str = "r", **kwargs):
        return PathManager.open(self._get_local_path(path), mode, **kwargs)


for _handler in (HTTPURLHandler(), OneDrivePathHandler(), Detectron2Handler()):
    PathManager.register_handler(_handler)
