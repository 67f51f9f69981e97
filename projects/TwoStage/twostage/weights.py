# SPDX-License-Identifier: Apache-2.0
"""Weight files of the two stages."""

import os

from person_search.utils.weight_files import fetch_weights


def local_file(path: str, key: str) -> str:
    """Returns the local path of a weight file, downloading it if it is a URL.

    Args:
        path: Path, or an address of :func:`~person_search.utils.weight_files.fetch_weights`.
        key: Config key of the path, for error messages.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The download failed.
    """
    if "://" in path:
        try:
            return fetch_weights(path)
        except OSError as error:
            raise ValueError(f"{key}: {error}") from error
    if not os.path.isfile(path):
        raise FileNotFoundError(f"{key} {path!r} does not exist.")
    return path
