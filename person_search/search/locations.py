# SPDX-License-Identifier: Apache-2.0
"""Where a gallery is: a folder, or a collection of a Milvus server, a cluster or a local file."""

import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote, urlsplit

SCHEMES = ("milvus", "milvus+tls", "milvus+lite")
FORMS = "milvus://HOST:19530/NAME, milvus+tls://HOST:19530/NAME or milvus+lite:///FOLDER/FILE.db"
MAX_NAME = 200


@dataclass(frozen=True)
class MilvusAddress:
    """A gallery in Milvus. Its text, unlike its fields, holds no credentials.

    Attributes:
        uri: What the client connects to: an address of http(s), or a local file.
        collection: Name of the collection of the persons.
        shown: The URL without credentials.
        database: Database of the server; "" for its default one.
        token: "user:password", or an API key; "" without.
    """

    uri: str
    collection: str
    shown: str
    database: str = ""
    token: str = field(default="", repr=False)

    def __str__(self) -> str:
        return self.shown

    @property
    def name(self) -> str:
        """Last part of the URL."""
        return self.shown.rpartition("/")[2]

    @property
    def is_lite(self) -> bool:
        """Whether it is a local file, opened by the embedded engine."""
        return self.shown.startswith("milvus+lite:")


def parse_location(location: str | os.PathLike | MilvusAddress) -> Path | MilvusAddress:
    """Parses a folder or a URL of Milvus.

    Credentials are part of the URL (``milvus://user:password@host/name``, ``milvus://key@host/
    name``), or come from the environment variable ``PERSON_SEARCH_MILVUS_TOKEN`` ("user:password"
    or a key), which, unlike a command line, other users of the machine cannot read.

    Raises:
        ValueError: If it is another URL, or an invalid one.
    """
    if isinstance(location, MilvusAddress):
        return location
    text = os.fspath(location)
    scheme, separator, rest = text.partition("://")
    if not separator or not re.fullmatch(r"[A-Za-z][A-Za-z0-9+._-]+", scheme):
        return Path(location)
    tail = rest.rpartition("@")[2]
    try:
        parts = urlsplit(f"//{rest}")
        # the path of a file may have any character
        stray = (parts.netloc or scheme != "milvus+lite") and "@" in (
            parts.path + parts.query + parts.fragment
        )
    except ValueError:  # its message may quote the credentials
        stray = True
    if stray:
        why = f"is not of the form {FORMS}." if tail == rest else (
            "has credentials with a special character; escape each: / is %2F, ? is %3F, # is %23, "
            "@ is %40, [ is %5B, ] is %5D."
        )  # fmt: skip
        raise ValueError(f"the gallery '{scheme}://{tail}' {why}")
    credentials, _, host = parts.netloc.rpartition("@")
    shown = f"{scheme}://{host}{parts.path}"
    if scheme not in SCHEMES:
        raise ValueError(f"the gallery '{shown}' is neither a folder nor one of {FORMS}.")
    if scheme == "milvus+lite":
        path = Path(unquote(parts.path))
        if host or not path.name.endswith(".db"):
            raise ValueError(
                f"the gallery '{shown}' is not an absolute path of a file: "
                "milvus+lite:///FOLDER/FILE.db"
            )
        return MilvusAddress(str(path), "gallery", shown)
    names = [unquote(name) for name in parts.path.split("/") if name]
    try:
        port = parts.port or 19530
    except ValueError as e:
        raise ValueError(f"the gallery '{shown}' has an invalid port; use {FORMS}.") from e
    if not parts.hostname or len(names) not in (1, 2) or parts.query or parts.fragment:
        raise ValueError(f"the gallery '{shown}' is not of the form {FORMS}.")
    for name in names:
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name) or len(name) > MAX_NAME:
            raise ValueError(
                f"the gallery '{shown}' has the name '{name}'; Milvus allows letters, digits and "
                f"underscores, not a digit first, at most {MAX_NAME}."
            )
    hostname = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    return MilvusAddress(
        f"{'https' if scheme == 'milvus+tls' else 'http'}://{hostname}:{port}",
        names[-1],
        shown,
        names[0] if len(names) == 2 else "",
        unquote(credentials) or os.environ.get("PERSON_SEARCH_MILVUS_TOKEN", ""),
    )
