# SPDX-License-Identifier: Apache-2.0
"""The HTTP interface of the page. All answers are JSON, images, or files of ``static/``.

=======================================  ========================================================
``GET /``                                the page
``GET /api/gallery``                     the gallery in a few facts
``GET /api/images?offset&limit``       its images (``camera``: of one camera)
``GET /api/images/{id}``               one image, with the persons detected in it
``GET /api/images/{id}/image``         as JPEG (``side``: of the longer side; ``box``: drawn)
``GET /api/images/{id}/crop?box=``     one person as JPEG
``POST /api/uploads``                    body: an image; header ``X-File-Name``, percent-encoded
``POST /api/search``                     body: :class:`SearchBody`; answers with the matches
``POST /api/search/report.html``         the same as one HTML file, ``results.jsonl`` as lines
=======================================  ========================================================

What is wrong is told as ``{"error": "..."}``, with the words that the command line would use.
"""

import time
from collections.abc import Collection
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import unquote

from fastapi import FastAPI, Query, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse
from fastapi.staticfiles import StaticFiles
from pydantic import BaseModel, ConfigDict, Field, FiniteFloat

from person_search.data import BadImageError
from person_search.search.errors import GalleryError, UnsafePathError
from person_search.search.images import clip_box
from person_search.search.page.rendering import crop_jpeg, scene_jpeg
from person_search.search.page.requests import Choice
from person_search.search.page.requests import Request as SearchRequest
from person_search.search.page.safety import UPLOADS, guard, protect
from person_search.search.page.session import PageSession
from person_search.search.page.uploads import (
    UnknownImageError,
    UploadTooLargeError,
    UploadTypeError,
)
from person_search.search.results import json_lines, report_html
from person_search.search.sources import parse_time
from person_search.search.table import SearchFilter

STATIC = Path(__file__).parent / "static"
JPEG = "image/jpeg"
KEEP = {"Cache-Control": "private, max-age=3600"}  # ids are never used again for other images
STATUS = {
    UploadTooLargeError: 413,
    UploadTypeError: 415,
    UnknownImageError: 404,
    UnsafePathError: 403,
    GalleryError: 503,
    FileNotFoundError: 404,
    BadImageError: 422,
    ValueError: 422,
}
"""Status of an error; of several kinds that fit, the narrowest counts."""
FAILED = "the program behind this page failed; its terminal says more."

Box = tuple[FiniteFloat, FiniteFloat, FiniteFloat, FiniteFloat]


class ChoiceBody(BaseModel):
    """One person: the number of a detected one, or a box in pixels."""

    model_config = ConfigDict(extra="forbid")
    picture: str = Field(max_length=100)
    person: int | None = None
    box: Box | None = None


class SearchBody(BaseModel):
    """A search; times as ISO 8601, cameras by name, empty for all."""

    model_config = ConfigDict(extra="forbid")
    persons: list[ChoiceBody]
    top: int = 24
    min_score: FiniteFloat = 0.0
    cameras: list[str] = []
    since: str = ""
    until: str = ""
    min_similarity: FiniteFloat | None = None
    every_person: bool = False
    include_own: bool = False

    def request(self) -> SearchRequest:
        """
        Raises:
            ValueError: a time that is none.
        """
        return SearchRequest(
            [Choice(person.picture, person.person, person.box) for person in self.persons],
            self.top,
            SearchFilter(
                self.min_score,
                frozenset(self.cameras),
                parse_time(self.since) if self.since else None,
                parse_time(self.until) if self.until else None,
                self.min_similarity,
            ),
            self.every_person,
            self.include_own,
        )


def create_app(session: PageSession, names: Collection[str] = ()) -> FastAPI:
    """The page of a session as an ASGI application.

    Args:
        session: the caller closes it.
        names: by which the page may be called, see safety.py.
    """
    # its own documentation would be loaded from another site
    app = FastAPI(title="Person search", docs_url=None, redoc_url=None, openapi_url=None)
    app.middleware("http")(guard(names))
    for kind, status in STATUS.items():
        app.add_exception_handler(kind, _teller(status))
    app.add_exception_handler(RequestValidationError, _tell_invalid)
    app.add_exception_handler(Exception, _tell_failure)
    _add_images(app, session)
    _add_searches(app, session)

    @app.get("/")
    def page() -> FileResponse:
        return FileResponse(STATIC / "index.html")

    app.mount("/static", StaticFiles(directory=STATIC))
    return app


def _add_images(app: FastAPI, session: PageSession) -> None:
    @app.get("/api/gallery")
    def gallery() -> dict:
        return session.describe()

    @app.get("/api/pictures")
    def pictures(offset: int = 0, limit: int = 24, camera: str = "") -> dict:
        return session.list_images(offset, limit, camera)

    @app.get("/api/pictures/{key}")
    def picture(key: str) -> dict:
        return session.picture(key)

    @app.get("/api/pictures/{key}/image")
    def image(key: str, side: int = 1280, box: str = "") -> Response:
        pixels = session.read(key)
        drawn = _parse_box(box, pixels.shape) if box else None
        return Response(scene_jpeg(pixels, side, drawn), media_type=JPEG, headers=KEEP)

    @app.get("/api/pictures/{key}/crop")
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
    def search(body: SearchBody) -> dict:
        started = time.perf_counter()
        result = session.search(body.request())
        return {
            "matches": session.match_facts(result),
            "searched": result.describe(),
            "seconds": round(time.perf_counter() - started, 3),
        }

    @app.post("/api/search/report.html")
    def report(body: SearchBody) -> Response:
        result = session.search(body.request())
        return Response(report_html(result, len(result.matches)), media_type="text/html")

    @app.post("/api/search/results.jsonl")
    def lines(body: SearchBody) -> Response:
        content = json_lines(session.search(body.request()))
        return Response(content, media_type="application/x-ndjson")


def _parse_box(text: str, shape: tuple[int, ...]) -> list[float]:
    """``x1,y1,x2,y2``, as far as it lies in the image."""
    try:
        values = [float(value) for value in text.split(",")]
    except ValueError as e:
        raise ValueError(f"'{text[:60]}' is no box; write it as x1,y1,x2,y2.") from e
    return clip_box(values, shape[1], shape[0]).tolist()


def _teller(status: int) -> Any:
    def tell(_: Request, error: Exception) -> JSONResponse:
        return JSONResponse({"error": str(error)}, status_code=status)

    return tell


def _tell_failure(_: Request, error: Exception) -> Response:
    """An error of our own. It is passed on afterwards: the server prints where it came from."""
    return protect(JSONResponse({"error": FAILED}, status_code=500))


def _tell_invalid(_: Request, error: Exception) -> JSONResponse:
    """What is wrong with a request that does not have the form above."""
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"])
    return JSONResponse({"error": f"{where}: {first['msg']}"}, status_code=422)
