# SPDX-License-Identifier: Apache-2.0
"""HTTP interface of the page. All answers are JSON, images, or files of ``static/``.

=======================================  ========================================================
``GET /``                                the page
``GET /api/gallery``                     facts about the gallery
``GET /api/images?offset&limit``         its images (``camera``: of one camera)
``GET /api/images/{id}``                 one image, with the persons detected in it
``GET /api/images/{id}/image``           as JPEG (``side``: maximum longer side; ``box``: drawn)
``GET /api/images/{id}/crop?box=``       one person as JPEG
``POST /api/uploads``                    body: an image; header ``X-File-Name``, percent-encoded
``POST /api/search``                     body: :class:`SearchRequest`; returns the matches
``POST /api/search/report.html``         the same as one HTML file, ``results.jsonl`` as lines
=======================================  ========================================================

Every request needs the token of this start, see access.py. Errors are returned as
``{"error": "..."}`` with the messages of the command line.
"""

import time
from collections.abc import Collection
from functools import partial
from pathlib import Path
from typing import Annotated
from urllib.parse import unquote

from fastapi import FastAPI, Query, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse
from fastapi.staticfiles import StaticFiles

from person_search.data import BadImageError
from person_search.search.errors import GalleryError, ImageChangedError, UnsafePathError
from person_search.search.images import clip_box
from person_search.search.names import printable
from person_search.search.page.access import Access
from person_search.search.page.rendering import crop_jpeg, scene_jpeg
from person_search.search.page.safety import UPLOADS, guard, protect
from person_search.search.page.session import PageSession, SearchRequest
from person_search.search.page.uploads import (
    UnknownImageError,
    UploadStorageError,
    UploadTooLargeError,
    UploadTypeError,
)
from person_search.search.results import json_lines, report_html

STATIC = Path(__file__).parent / "static"
JPEG = "image/jpeg"
KEEP = {"Cache-Control": "private, max-age=3600"}  # an id never refers to another image
STATUS = {
    UploadTooLargeError: 413,
    UploadTypeError: 415,
    UploadStorageError: 507,
    UnknownImageError: 404,
    UnsafePathError: 403,
    ImageChangedError: 409,
    GalleryError: 503,
    FileNotFoundError: 404,
    BadImageError: 422,
    ValueError: 422,
}
"""HTTP status of an error; the most specific class applies."""
FAILED = "the server failed; its terminal shows the error."


def create_app(session: PageSession, access: Access, names: Collection[str] = ()) -> FastAPI:
    """Returns the page of a session as an ASGI application.

    Args:
        session: The session; the caller closes it.
        access: Decides who may see the page.
        names: Host names under which the page may be opened, see safety.py.
    """
    app = base_app(access, names)
    _add_images(app, session)
    _add_searches(app, session)

    @app.get("/")
    def page() -> FileResponse:
        return FileResponse(STATIC / "index.html")

    return app


def base_app(access: Access, names: Collection[str] = ()) -> FastAPI:
    """Returns an application with protected requests, one-line errors and the static files.

    Args:
        access: Decides who may see the page.
        names: Host names under which the page may be opened, see safety.py.
    """
    # the built-in documentation would load files from another site
    app = FastAPI(title="Person search", docs_url=None, redoc_url=None, openapi_url=None)
    app.middleware("http")(guard(access, names))
    for kind, status in STATUS.items():
        app.add_exception_handler(kind, partial(_answer_error, status=status))
    app.add_exception_handler(RequestValidationError, _answer_invalid)
    app.add_exception_handler(Exception, _answer_failure)
    app.mount("/static", StaticFiles(directory=STATIC))
    return app


def _add_images(app: FastAPI, session: PageSession) -> None:
    @app.get("/api/gallery")
    def gallery() -> dict:
        return session.describe()

    @app.get("/api/images")
    def images(offset: int = 0, limit: int = 24, camera: str = "") -> dict:
        return session.list_images(offset, limit, camera)

    @app.get("/api/images/{key}")
    def image(key: str) -> dict:
        return session.describe_image(key)

    @app.get("/api/images/{key}/image")
    def scene(key: str, side: int = 1280, box: str = "") -> Response:
        pixels = session.read(key)
        drawn = _parse_box(box, pixels.shape) if box else None
        return Response(scene_jpeg(pixels, side, drawn), media_type=JPEG, headers=KEEP)

    @app.get("/api/images/{key}/crop")
    def crop(key: str, box: Annotated[str, Query()]) -> Response:
        pixels = session.read(key)
        content = crop_jpeg(pixels, _parse_box(box, pixels.shape))
        return Response(content, media_type=JPEG, headers=KEEP)

    @app.post(UPLOADS)
    async def upload(request: Request) -> dict:
        content = bytearray()
        announced = request.headers.get("content-length", "")
        session.uploads.check_size(int(announced) if announced.isdecimal() else 0)
        async for part in request.stream():
            content += part
            session.uploads.check_size(len(content))
        name = unquote(request.headers.get("x-file-name", ""))
        return await run_in_threadpool(session.upload, bytes(content), name)


def _add_searches(app: FastAPI, session: PageSession) -> None:
    @app.post("/api/search")
    def search(body: SearchRequest) -> dict:
        started = time.perf_counter()
        result = session.search(body)
        return {
            "matches": session.match_facts(result),
            "searched": result.describe(),
            "seconds": round(time.perf_counter() - started, 3),
        }

    @app.post("/api/search/report.html")
    def report(body: SearchRequest) -> Response:
        result = session.search(body)
        return Response(report_html(result, len(result.matches)), media_type="text/html")

    @app.post("/api/search/results.jsonl")
    def lines(body: SearchRequest) -> Response:
        return Response(json_lines(session.search(body)), media_type="application/x-ndjson")


def _parse_box(text: str, shape: tuple[int, ...]) -> list[float]:
    """Parses ``x1,y1,x2,y2`` and clips the box to the image."""
    try:
        values = [float(value) for value in text.split(",")]
    except ValueError as e:
        raise ValueError(f"'{text[:60]}' is not a box, for example 10,20,60,160.") from e
    return clip_box(values, shape[1], shape[0]).tolist()


def _answer_error(_: Request, error: Exception, status: int) -> JSONResponse:
    return JSONResponse({"error": printable(str(error))}, status_code=status)


def _answer_failure(_: Request, error: Exception) -> Response:
    """Answers a defect of ours. It propagates afterwards, so that the server prints it."""
    return protect(JSONResponse({"error": FAILED}, status_code=500))


def _answer_invalid(_: Request, error: Exception) -> JSONResponse:
    """Answers a request that does not have the required form."""
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"])
    return JSONResponse({"error": f"{where}: {first['msg']}"}, status_code=422)
