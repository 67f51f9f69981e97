# SPDX-License-Identifier: Apache-2.0
"""Who may ask the page, and what a browser may do with its answers.

There is no login: whoever reaches the port sees the gallery. Some doors are shut nevertheless,
also on loopback, where every web site that the user visits could knock:

- a foreign *name* in the Host header (a site that points its own name at this machine),
- a request *sent by another site* (Origin, Sec-Fetch-Site), which could otherwise search,
- *showing or framing* our images within another site (CORP, CSP),
- a request that is *no upload and yet long*, which would be read into memory as a whole.
"""

import ipaddress
from collections.abc import Awaitable, Callable, Collection
from urllib.parse import urlsplit

from fastapi import Request, Response
from fastapi.responses import JSONResponse

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
"""Takes long requests; it counts while it reads."""
MAX_BODY = 64_000
"""Bytes of any other request."""


def guard(
    names: Collection[str] = (),
) -> Callable[[Request, Callable[[Request], Awaitable[Response]]], Awaitable[Response]]:
    """Returns the middleware.

    Args:
        names: by which the page may be called, besides ``localhost`` and any IP address.
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
            else await proceed(request)
        )
        return protect(response)

    return middleware


def protect(response: Response) -> Response:
    """Tells the browser what it may do with an answer; only what comes from outside our
    middleware, as the answer to an error of our own, has to be given to it by hand."""
    for name, value in HEADERS.items():
        response.headers.setdefault(name, value)
    response.headers.setdefault("Cache-Control", "no-store")
    return response


def why_refused(request: Request, allowed: Collection[str]) -> str:
    """Why a request is not answered; "" if it is."""
    host = request.headers.get("host", "")
    name = host_name(host)
    if name is None or not (is_address(name) or name in allowed):
        return (
            f"this page does not answer to the name '{name or host}'; start it with "
            "--allow-host NAME if that is right."
        )
    if request.headers.get("sec-fetch-site") in ("cross-site", "same-site"):
        if request.method == "GET" and request.headers.get("sec-fetch-mode") == "navigate":
            return ""  # somebody has followed a link
        return "requests from other sites are not answered."
    origin = request.headers.get("origin")
    if origin is not None and origin.lower().partition("://")[2] != host.lower():
        return f"requests from '{origin}' are not answered."
    return ""


def too_long(request: Request) -> tuple[int, str]:
    """Status and reason if a request is longer than it may be, or does not say; 200 and "" else."""
    length = request.headers.get("content-length", "0")
    if request.url.path == UPLOADS:
        return 200, ""
    if "transfer-encoding" in request.headers or not length.isdecimal():
        return 411, "the request does not say how long it is."
    if int(length) > MAX_BODY:
        return 413, f"the request is longer than {MAX_BODY // 1000} kB."
    return 200, ""


def host_name(host: str) -> str | None:
    """The name in a Host header, without the port; None if it is none."""
    try:
        return urlsplit(f"//{host}").hostname
    except ValueError:
        return None


def is_address(name: str) -> bool:
    """Whether it is an IP address: no name server can have pointed that here."""
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
