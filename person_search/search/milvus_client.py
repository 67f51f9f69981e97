# SPDX-License-Identifier: Apache-2.0
"""The connection to Milvus: everything that differs between servers, and errors as one line.

Tried with Milvus 2.3.5 (the server of the wheel ``milvus``) and Milvus Lite 3.2. What an older
server lacks is not used: ``group_by_field`` (ignored without a message), filters with parameters.
"""

import json
import logging
import re
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from person_search.search.errors import GalleryError, GalleryLockedError
from person_search.search.locations import MilvusAddress

SECONDS = 60.0
"""How long a request is repeated while the server is away."""
CONNECT_SECONDS = 10.0
PAUSE = 0.2
"""Seconds between two attempts."""
RECONNECT = {"grpc.initial_reconnect_backoff_ms": 200, "grpc.max_reconnect_backoff_ms": 2_000}
"""A server that is back is noticed soon; the pauses of gRPC grow to two minutes."""
MOST = 16_384
"""Maximum number of results of a request."""
BLOCK = 1_000
"""Keys in a filter, and rows with embeddings, of one request."""
COMPACT_ROWS = 8_192
"""Rows without embeddings of one request."""


def quoted(values: Iterable[str]) -> str:
    """Returns a list of strings for a filter."""
    return json.dumps(list(values), ensure_ascii=False)


class _ServerAwayError(GalleryError):
    """No server answers."""


class Connection:
    """A client whose errors are those of a gallery.

    Args:
        address: Address of the gallery.

    Raises:
        GalleryError: If the server is away or refuses, or the client is not installed.
    """

    def __init__(self, address: MilvusAddress) -> None:
        self.address = address
        try:
            import pymilvus

            if address.is_lite:
                import milvus_lite  # noqa: F401
        except ImportError as e:
            raise GalleryError(
                f"the gallery '{address}' requires {e.name}, which is not installed: "
                "pip install 'person-search[milvus]'"
            ) from e
        for name in ("pymilvus", "milvus_lite"):  # they log errors that they also raise
            logging.getLogger(name).setLevel(logging.CRITICAL)
        self.types = pymilvus.DataType
        with self._errors():
            self._client = pymilvus.MilvusClient(
                uri=address.uri,
                token=address.token,
                db_name=address.database,
                timeout=CONNECT_SECONDS,
                grpc_options=RECONNECT,
            )
            self.version = str(self._client.get_server_version())

    def close(self) -> None:
        """Ends the connection."""
        self._client.close()

    def __getattr__(self, name: str) -> Any:
        """Returns a method of the client, with a limit on its retries and one-line errors."""
        method = getattr(self._client, name)

        def call(*args: Any, **options: Any) -> Any:
            end = time.monotonic() + SECONDS
            while True:
                try:
                    with self._errors():
                        return method(*args, timeout=SECONDS, **options)
                except _ServerAwayError:  # the client gives up when it cannot reconnect at once
                    if time.monotonic() >= end or self.address.is_lite:
                        raise
                    time.sleep(PAUSE)

        return call

    @contextmanager
    def _errors(self) -> Iterator[None]:
        import grpc
        from pymilvus.exceptions import MilvusException

        try:
            yield
        except (MilvusException, grpc.RpcError, grpc.FutureTimeoutError, ConnectionError) as e:
            raise self._explain(e) from e

    def _explain(self, error: Exception) -> GalleryError:
        """Returns an error for a person to read; credentials are no part of it."""
        text = " ".join(str(getattr(error, "message", "") or error).split())
        if self.address.token:
            text = text.replace(self.address.token, "***")
        # pymilvus reports whatever goes wrong at connecting as an absent server, with the cause
        plain = f"{text} {error.__cause__ or ''}".lower()
        name, database = self.address.collection.lower(), self.address.database.lower()
        for own in filter(None, (self.address.uri.lower(), f"{name}_images", name, database)):
            plain = re.sub(rf"\b{re.escape(own)}\b", "", plain)  # may contain any word

        def says(*words: str) -> bool:
            return re.search(rf"\b({'|'.join(words)})\b", plain) is not None

        known = f"the gallery '{self.address}'"
        if says("open local milvus failed") or (self.address.is_lite and says("lock", "locked")):
            return GalleryLockedError(
                f"{known} cannot be opened: another process has opened the file, or its folder "
                "does not exist. Milvus Lite allows one process at a time."
            )
        if says("auth", r"\w*auth(enticat|oriz)\w*", "credentials?", "permission", "privileges?"):
            return GalleryError(
                f"{known}: the server refuses these credentials. Set "
                "PERSON_SEARCH_MILVUS_TOKEN to user:password or to a key."
            )
        if says("no space left", "disk", "quota", "memory"):
            return GalleryError(
                f"{known}: the server has no room ({text[:200]}). What it has acknowledged is "
                "kept; make room and start again."
            )
        # just started, a server has not loaded its collections yet
        away = ("fail connecting", "unavailable", "retry", "refused", "not ready", "closed")
        if says(*away, "not loaded", "no available shard leaders?", "channel not available"):
            return _ServerAwayError(
                f"{known}: no server answers at {self.address.uri}, or it is still starting. What "
                "it has acknowledged is kept; start again when it runs."
            )
        if says("timeout", "timed out", "deadline", "deadline_exceeded"):
            return GalleryError(
                f"{known}: the server at {self.address.uri} has not answered in time. What it has "
                "acknowledged is kept; start again."
            )
        return GalleryError(f"{known}: {text[:300]}")

    # ---- differences between servers -------------------------------------------------------------

    def scalar_index(self, kind: Any) -> str:
        """Returns the index type of a field for filters; "" if the server has none."""
        if self.address.is_lite:
            return ""  # a scan is fast enough
        if kind == self.types.VARCHAR:
            return "Trie"  # also of later servers; 2.3 refuses INVERTED
        return "STL_SORT"

    def load(self, collection: str) -> None:
        """Prepares a collection for searching."""
        if self.list_indexes(collection, field_name="feat"):
            self.load_collection(collection)
        else:  # an interruption between the two requests of set_index
            self.set_index(collection, "FLAT", {})

    def set_index(self, collection: str, kind: str, params: dict[str, Any]) -> None:
        """Replaces the index of the vectors, and loads the collection."""
        if self.list_indexes(collection, field_name="feat"):
            self.release_collection(collection)
            self.drop_index(collection, "feat")  # Lite refuses to replace it
        made = self._client.prepare_index_params()
        made.add_index("feat", index_type=kind, metric_type="IP", params=params)
        self.create_index(collection, made)
        self.load_collection(collection)

    def is_indexed(self, collection: str) -> bool:
        """Whether all rows that have been flushed are searched with an index of their own.

        Until then, Milvus searches them with an index that no parameter of a request controls: of
        the 1 % that pass a filter, it misses 4 % of the best.
        """
        loaded = {segment.segment_id for segment in self.list_loaded_segments(collection)}
        return all(
            segment.segment_id in loaded for segment in self.list_persistent_segments(collection)
        )

    # ---- requests --------------------------------------------------------------------------------

    def count(self, collection: str, where: str, level: str = "Strong") -> int:
        """Returns the number of rows."""
        found = self.query(
            collection, filter=where, output_fields=["count(*)"], consistency_level=level
        )
        return int(found[0]["count(*)"])

    def rows(
        self, collection: str, where: str, fields: Sequence[str], level: str = "Strong"
    ) -> Iterator[dict[str, Any]]:
        """Yields all rows in the order of their keys, a block at a time."""
        block, last = BLOCK if "feat" in fields else COMPACT_ROWS, ""
        while True:
            # the iterator of the client, and its parameters, lose rows of a server of version 2.3
            found = self.query(
                collection,
                filter=f"({where}) and pk > {quoted([last])[1:-1]}" if where else f'pk > "{last}"',
                output_fields=list(fields),
                limit=block,
                consistency_level=level,
            )
            yield from sorted(found, key=lambda row: row["pk"])
            if len(found) < block:
                return
            last = max(row["pk"] for row in found)

    def rows_by_key(
        self, collection: str, keys: Sequence[str], fields: Sequence[str], level: str = "Strong"
    ) -> Iterator[dict[str, Any]]:
        """Yields the rows with these keys, as far as they exist."""
        for start in range(0, len(keys), BLOCK):
            yield from self.query(
                collection,
                filter=f"pk in {quoted(keys[start : start + BLOCK])}",
                output_fields=list(fields),
                consistency_level=level,
            )
