# SPDX-License-Identifier: Apache-2.0
"""Weight files of the two stages."""

import os

from detectron2.utils.file_io import PathManager


def local_file(path: str, key: str) -> str:
    """Returns the local path of a weight file, downloading it if it is a URL.

    Args:
        path: Path, or an address of Detectron2's ``PathManager``. Downloads are kept.
        key: Config key of the path, for error messages.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The download failed.
    """
    if "://" in path:
        try:
            return PathManager.get_local_path(path)
        except OSError as error:
            raise ValueError(
                f"{key} {path!r} could not be downloaded: {error}. Without a network, give the "
                "path of a file."
            ) from error
    if not os.path.isfile(path):
        raise FileNotFoundError(f"{key} {path!r} does not exist.")
    return path
