# SPDX-License-Identifier: Apache-2.0
"""Which requests the page answers, and what a browser may do with the answers.

Even on loopback, other users of the machine and every web site that the user visits could send
requests. The page refuses

- a request *without the token* of this start, see access.py,
- a foreign *name* in the Host header (a site that resolves its own name to this machine),
- a request *sent by another site* (Origin, Sec-Fetch-Site), which could otherwise search,
- *embedding* of our images in another site (CORP, CSP),
- a *long request* other than an upload, which would be read into memory as a whole.
"""

import ipaddress
from collections.abc import Awaitable, Callable, Collection
from urllib.parse import urlsplit

from fastapi import Request, Response
from fastapi.responses import JSONResponse

from person_search.search.page.access import Access

HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "img-src 'self' blob:; connect-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}
UPLOADS = "/api/uploads"
"""Accepts long requests; it counts bytes while reading."""
EDITS, MAX_EDIT = "/api/label", 512_000
"""An edit may name all persons that can be labeled; see labeling.py."""
MAX_BODY = 64_000
"""Maximum length of any other request in bytes."""


def guard(
    access: Access, names: Collection[str] = ()
) -> Callable[[Request, Callable[[Request], Awaitable[Response]]], Awaitable[Response]]:
    """Returns the middleware that refuses requests and protects answers.

    Args:
        access: Decides who may see the page.
        names: Host names under which the page may be opened, besides ``localhost`` and any IP
            address.
    """
    allowed = {"localhost", *(name.lower() for name in names)}

    async def middleware(
        request: Request, proceed: Callable[[Request], Awaitable[Response]]
    ) -> Response:
        status, reason = 403, why_refused(request, allowed)
        if not reason:
            status, reason = too_long(request)
        response = (
            JSONResponse({"error": reason}, status_code=status)
            if reason
            else access.answer(request) or await proceed(request)
        )
        return protect(response)

    return middleware


def protect(response: Response) -> Response:
    """Adds the security headers to an answer.

    The middleware calls it; an answer that bypasses the middleware, such as that to a defect of
    ours, needs an explicit call.
    """
    for name, value in HEADERS.items():
        response.headers.setdefault(name, value)
    response.headers.setdefault("Cache-Control", "no-store")
    return response


def why_refused(request: Request, allowed: Collection[str]) -> str:
    """Returns why a request is refused; "" if it is answered."""
    host = request.headers.get("host", "")
    try:
        name = urlsplit(f"//{host}").hostname
    except ValueError:
        name = None
    if name is None or not (_is_address(name) or name in allowed):
        return (
            f"this page does not answer to the name '{name or host}'; start it with "
            "--allow-host NAME to allow a name."
        )
    if request.headers.get("sec-fetch-site") in ("cross-site", "same-site"):
        if request.method == "GET" and request.headers.get("sec-fetch-mode") == "navigate":
            return ""  # the user has followed a link
        return "requests from other sites are not answered."
    origin = request.headers.get("origin")
    if origin is not None and origin.lower().partition("://")[2] != host.lower():
        return f"requests from '{origin}' are not answered."
    return ""


def too_long(request: Request) -> tuple[int, str]:
    """Returns status and reason if the length of a request is refused; (200, "") otherwise."""
    length = request.headers.get("content-length", "0")
    if request.url.path == UPLOADS:
        return 200, ""
    if "transfer-encoding" in request.headers or not length.isdecimal():
        return 411, "the request does not state its length."
    most = MAX_EDIT if request.url.path == EDITS else MAX_BODY
    if int(length) > most:
        return 413, f"the request is longer than {most // 1000} kB."
    return 200, ""


def _is_address(name: str) -> bool:
    """Whether the name is an IP address, which no name server can redirect to this machine."""
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
