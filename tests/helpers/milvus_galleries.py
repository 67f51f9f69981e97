# SPDX-License-Identifier: Apache-2.0
"""A Milvus server for a module of tests, and galleries of each kind."""

import os
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from milvus_process import MilvusProcess

KINDS = ("folder", "lite", "server")


@pytest.fixture(scope="module")
def own_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MilvusProcess]:
    """A server of this module, which knows the user root."""
    pytest.importorskip("pymilvus", reason="galleries in Milvus need the extra 'milvus'")
    pytest.importorskip("milvus", reason="the server needs the wheel 'milvus'")
    with ExitStack() as stack:
        try:
            yield stack.enter_context(MilvusProcess(tmp_path_factory.mktemp("milvus"), "authorize"))
        except RuntimeError as e:
            pytest.skip(f"the server of the wheel 'milvus' does not run here: {e}")


@pytest.fixture(scope="module")
def server(request: pytest.FixtureRequest) -> str:
    """USER:PASSWORD@HOST:PORT of it, or of another one that ``PERSON_SEARCH_TEST_MILVUS`` names."""
    if given := os.environ.get("PERSON_SEARCH_TEST_MILVUS"):
        pytest.importorskip("pymilvus", reason="galleries in Milvus need the extra 'milvus'")
        return given
    return f"root:Milvus@127.0.0.1:{request.getfixturevalue('own_server').port}"


@pytest.fixture(params=KINDS)
def new_gallery(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[], object]:
    """Returns a function that returns the location of a gallery to be."""
    return location_of(request.param, request, tmp_path)


def location_of(kind: str, request: pytest.FixtureRequest, folder: Path) -> Callable[[], object]:
    if kind == "folder":
        return lambda: folder / f"g{uuid.uuid4().hex[:8]}"
    if kind == "lite":
        pytest.importorskip("milvus_lite", reason="galleries in Milvus need the extra 'milvus'")
        return lambda: f"milvus+lite://{folder}/g{uuid.uuid4().hex[:8]}.db"
    address = request.getfixturevalue("server")
    return lambda: f"milvus://{address}/g{uuid.uuid4().hex[:12]}"
