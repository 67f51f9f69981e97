# SPDX-License-Identifier: Apache-2.0
"""A page over a small gallery of colored images, answering on a real port.

The model finds the left and the right half of every image; their embeddings are their colors.
"""

import http.client
import io
import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from color_model import ColorModel, paint
from PIL import Image

from person_search.search import (
    IndexOptions,
    OriginRules,
    PersonEmbedder,
    find_sources,
    index_images,
    read_table,
)

# without the extra "page" the tests of the page are left out
uvicorn = pytest.importorskip("uvicorn")
pytest.importorskip("fastapi")

from fastapi import FastAPI  # noqa: E402

from person_search.search.page.access import Access  # noqa: E402
from person_search.search.page.app import create_app  # noqa: E402
from person_search.search.page.server import bind  # noqa: E402
from person_search.search.page.session import PageSession  # noqa: E402
from person_search.search.page.uploads import UploadLimits  # noqa: E402

RED, GREEN, BLUE = (250, 0, 0), (0, 250, 0), (0, 0, 250)
TOKEN = "token-of-the-tests"
LEFT, RIGHT = (0, 0, 50, 80), (50, 0, 100, 80)
IMAGES = {
    "a.png": (RED, GREEN),
    "b.png": (GREEN, BLUE),
    "c.png": (RED, BLUE),
    "d.png": ((200, 60, 0), (60, 200, 0)),
}
TABLE = """file,camera,time
a.png,gate,2026-05-01T12:00
b.png,gate,2026-05-01T13:00
c.png,hall,2026-05-01T14:00
d.png,hall,
"""


def embedder() -> PersonEmbedder:
    return PersonEmbedder(ColorModel(), image_format="RGB", min_size=80, max_size=100)


def paint_halves(path: Path, colors) -> Path:
    return paint(path, dict(zip((LEFT, RIGHT), colors, strict=True)))


def image_bytes(colors=(RED, BLUE), kind: str = "PNG", **options) -> bytes:
    """An image of two halves as a file."""
    pixels = np.zeros((80, 100, 3), np.uint8)
    pixels[:, :50], pixels[:, 50:] = colors
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind, **options)
    return buffer.getvalue()


def make_gallery(folder: Path) -> Path:
    """Indexes ``IMAGES``; returns the folder of the gallery."""
    (folder / "images").mkdir(parents=True)
    for name, colors in IMAGES.items():
        paint_halves(folder / "images" / name, colors)
    (folder / "table.csv").write_text(TABLE)
    options = IndexOptions(origins=OriginRules(table=read_table(folder / "table.csv")))
    index_images(embedder(), folder / "gallery", find_sources([folder / "images"]), options)
    return folder / "gallery"


@dataclass
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> dict:
        return json.loads(self.body)


@dataclass
class Page:
    """A page that answers."""

    session: PageSession | None
    app: FastAPI
    access: Access
    port: int

    @property
    def address(self) -> str:
        """The address with the token, which the browser exchanges for a cookie."""
        return f"http://127.0.0.1:{self.port}/?token={TOKEN}"

    def ask(self, method: str, path: str, body=None, **headers: str) -> Answer:
        """One request with the token; a dict is sent as JSON.

        ``host=`` and the like are headers; ``authorization=""`` leaves out the token.
        """
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        if not named.setdefault("authorization", f"Bearer {TOKEN}"):
            del named["authorization"]
        if isinstance(body, dict):
            body, named["content-type"] = json.dumps(body).encode(), "application/json"
        connection = http.client.HTTPConnection("127.0.0.1", self.port)
        try:
            connection.request(method, path, body, named)
            response = connection.getresponse()
            found = {name.lower(): value for name, value in response.getheaders()}
            return Answer(response.status, found, response.read())
        finally:
            connection.close()

    def get(self, path: str, **headers: str) -> Answer:
        return self.ask("GET", path, **headers)

    def post(self, path: str, body=None, **headers: str) -> Answer:
        return self.ask("POST", path, body, **headers)


@contextmanager
def running(
    gallery: Path,
    limits: UploadLimits | None = None,
    names: tuple[str, ...] = (),
    **access: object,
) -> Iterator[Page]:
    """Starts the page on a free port, and ends it; ``access`` are options of ``Access``."""
    with (
        closing(PageSession(gallery, embedder(), limits)) as session,
        closing(bind("127.0.0.1", 0)) as listening,
    ):
        port = listening.getsockname()[1]
        may = Access(**{"token": TOKEN, "port": port, **access})
        app = create_app(session, may, names)
        with answering(app, listening):
            yield Page(session, app, may, port)


@contextmanager
def answering(app: FastAPI, listening: socket.socket) -> Iterator[None]:
    """Serves an application in a thread."""
    server = uvicorn.Server(
        uvicorn.Config(app, log_level="warning", lifespan="off", proxy_headers=False)
    )
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()
    try:
        deadline = time.monotonic() + 300
        while not server.started and time.monotonic() < deadline:
            time.sleep(0.01)
        yield
    finally:
        server.should_exit = True
        thread.join()
