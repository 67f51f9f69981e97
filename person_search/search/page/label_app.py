# SPDX-License-Identifier: Apache-2.0
"""HTTP interface of ``person-search label``; see app.py for errors and access.

=======================================  ========================================================
``GET /``                                the page
``GET /api/label``                       the groups
``POST /api/label``                      body: :class:`Edit`; returns the groups
``GET /api/label/{edition}/{person}``    the crop of a person as JPEG (``scene=1``: whole image)
=======================================  ========================================================

Persons are numbered per start; the edition in the address of their images makes sure that a browser
does not show those of an earlier start.
"""

import secrets
from collections.abc import Collection

from fastapi import FastAPI, Response
from fastapi.responses import FileResponse

from person_search.search.labeling import Edit, Labeling
from person_search.search.page.access import Access
from person_search.search.page.app import JPEG, KEEP, STATIC, base_app
from person_search.search.page.rendering import Decoded, crop_jpeg, scene_jpeg


def create_label_app(labeling: Labeling, access: Access, names: Collection[str] = ()) -> FastAPI:
    """Returns the page of a labeling as an ASGI application.

    Args:
        labeling: The groups.
        access: Decides who may see the page.
        names: Host names under which the page may be opened, see safety.py.
    """
    app = base_app(access, names)
    edition, decoded = secrets.token_hex(4), Decoded()

    def facts() -> dict:
        return {"edition": edition, **labeling.facts()}

    @app.get("/api/label")
    def groups() -> dict:
        return facts()

    @app.post("/api/label")
    def edit(body: Edit) -> dict:
        labeling.edit(body)
        return facts()

    @app.get("/api/label/{edition}/{person}")
    def image(edition: str, person: int, scene: bool = False) -> Response:
        box = labeling.box(person)
        key = str(labeling.image_of[person])
        pixels = decoded.get(key, lambda: labeling.pixels(person))
        content = scene_jpeg(pixels, 1600, box) if scene else crop_jpeg(pixels, box)
        return Response(content, media_type=JPEG, headers=KEEP)

    @app.get("/")
    def page() -> FileResponse:
        return FileResponse(STATIC / "label.html")

    return app
