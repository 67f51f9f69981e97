# SPDX-License-Identifier: Apache-2.0
"""Who may see the page: a token of this start, or a login at a proxy.

The token arrives in one of three ways:

- ``GET /?token=...``, the printed address: answered by a cookie and a redirect to the same address
  without the token, so that the token stays out of the history and out of screenshots;
- the cookie, which holds another random value, so that it does not reveal the token;
- ``Authorization: Bearer ...``, for scripts.

Cookies of one host reach all of its ports, hence the port in their name. A browser does not send
the cookie (SameSite=Strict) when the user follows a link of another site; the answer is then a page
that opens the same address once more, which counts as a request of this site.
"""

import hmac
import ipaddress
import logging
import re
import secrets
import time
from collections import OrderedDict, deque
from collections.abc import Sequence
from urllib.parse import parse_qsl, quote, urlencode

from fastapi import Request, Response
from fastapi.responses import HTMLResponse, JSONResponse, RedirectResponse

logger = logging.getLogger(__name__)
VARIABLE = "PERSON_SEARCH_TOKEN"
"""Environment variable with the token; unlike ``--token``, no list of processes shows it."""
ATTEMPTS, INTERVAL = 10, 60.0
"""Number of wrong tokens per client in so many seconds; later ones are refused unread."""
MAX_CLIENTS = 1000
"""Number of clients whose wrong tokens are counted; the oldest are dropped."""
OPEN_ADDRESS = "open the complete address that the program printed at its start"
MISSING = f"the token is missing or belongs to an earlier start: {OPEN_ADDRESS}."
WRONG = f"the token is wrong or belongs to an earlier start: {OPEN_ADDRESS}."
LIMITED = f"there were too many wrong tokens; try again in {INTERVAL:.0f} seconds."
FORGED = "the header of the login is accepted from the proxy only."

_STYLE = "body{font:18px/1.5 system-ui,sans-serif;max-width:36em;margin:4em auto;padding:0 1em}"
_PAGE = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark"><link rel="icon" href="data:,">{head}
<style nonce="{nonce}">{style}</style></head>
<body><h1>{title}</h1>{body}</body></html>
"""
_HELP = """<p>{reason}</p>
<p>It ends in <code>?token=&hellip;</code> and is valid until the program ends; the next start
prints another one. Ask the person who started the program if you do not see its terminal.</p>"""


def check_token(token: str) -> str:
    """Returns a token chosen by the user.

    Raises:
        ValueError: If it is short, or has characters that a URL would escape.
    """
    if not re.fullmatch(r"[A-Za-z0-9._~-]{8,200}", token):
        raise ValueError(
            f"the token of --token or {VARIABLE} has {len(token)} characters; it must have 8 to "
            "200 of A-Z a-z 0-9 . _ ~ -, for example the output of 'openssl rand -hex 24'."
        )
    return token


def parse_proxies(values: Sequence[str]) -> list[ipaddress.IPv4Network | ipaddress.IPv6Network]:
    """Parses the addresses of ``--trusted-proxy``.

    Raises:
        ValueError: If a value is neither an IP address nor a network.
    """
    try:
        return [ipaddress.ip_network(value) for value in values]
    except ValueError as e:
        raise ValueError(
            f"--trusted-proxy: {e}; give an IP address or a network, for example 10.0.0.5."
        ) from e


class Access:
    """Decides which requests may see the page.

    Args:
        token: Token that opens the page; "" opens it to every request. Default: a random one.
        port: Port of the page, for the name of the cookie.
        header: Header in which a proxy names its user after the login; "" for none.
        proxies: Addresses from which the header is accepted, see :func:`parse_proxies`.
    """

    def __init__(
        self,
        token: str | None = None,
        port: int = 0,
        header: str = "",
        proxies: Sequence[ipaddress.IPv4Network | ipaddress.IPv6Network] = (),
    ) -> None:
        self.token = secrets.token_urlsafe(24) if token is None else token
        self.cookie = f"person-search-{port}"
        self.header, self.proxies = header, proxies
        self._key = secrets.token_urlsafe(32)
        self._wrong: OrderedDict[str, deque[float]] = OrderedDict()  # client -> times

    def answer(self, request: Request) -> Response | None:
        """Returns the answer to a request that is not served, or that presents the token.

        Args:
            request: The request.

        Returns:
            The answer; None if the request may proceed.
        """
        peer = _address(request)
        if self.header and self.header in request.headers:
            if not any(peer in network for network in self.proxies if peer is not None):
                return self._failed(
                    request,
                    FORGED,
                    f"The header {self.header} from {peer}, which is not the proxy,",
                )
            if request.headers[self.header].strip():
                return None
        if not self.token:
            return None
        query = parse_qsl(request.url.query, keep_blank_values=True)
        given = dict(query).get("token") if request.method == "GET" else None
        if _equal(request.cookies.get(self.cookie, ""), self._key):
            return None if given is None else self._redirect(request, query)
        scheme, _, bearer = request.headers.get("authorization", "").partition(" ")
        if given is None and scheme.lower() == "bearer":
            return self._try(request, bearer.strip())
        if given is not None:
            return self._try(request, given) or self._redirect(request, query)
        if request.method == "GET" and request.headers.get("sec-fetch-site") in (
            "cross-site",
            "same-site",
        ):
            return _open_again()
        return _refuse(request, MISSING)

    def _try(self, request: Request, token: str) -> Response | None:
        """Compares a token; returns the answer if it is wrong."""
        wrong = self._wrong.get(_client_of(request), deque())
        while wrong and time.monotonic() - wrong[0] > INTERVAL:
            wrong.popleft()
        if len(wrong) >= ATTEMPTS:
            return _refuse(request, LIMITED, 429, {"Retry-After": f"{INTERVAL:.0f}"})
        if _equal(token, self.token):
            return None
        return self._failed(request, WRONG, f"A wrong token from {_client_of(request)}")

    def _failed(self, request: Request, reason: str, what: str) -> Response:
        """Refuses a request, and counts and logs it; the log of a client is limited, too."""
        wrong = self._wrong.setdefault(_client_of(request), deque(maxlen=ATTEMPTS))
        self._wrong.move_to_end(_client_of(request))
        if len(wrong) < ATTEMPTS or time.monotonic() - wrong[0] > INTERVAL:
            wrong.append(time.monotonic())
            full = len(wrong) == ATTEMPTS
            further = "; further ones are refused unread for a minute" if full else ""
            logger.warning("%s was refused (%d within a minute)%s.", what, len(wrong), further)
        while len(self._wrong) > MAX_CLIENTS:
            self._wrong.popitem(last=False)
        return _refuse(request, reason)

    def _redirect(self, request: Request, query: list[tuple[str, str]]) -> Response:
        """Sets the cookie, and opens the same address without the token."""
        rest = urlencode([(name, value) for name, value in query if name != "token"])
        # a single slash: "//name" would be another site
        path = quote("/" + request.scope["path"].lstrip("/\\"))
        response = RedirectResponse(path + (f"?{rest}" if rest else ""), status_code=303)
        secure = "https" in (request.url.scheme, request.headers.get("x-forwarded-proto"))
        response.set_cookie(self.cookie, self._key, httponly=True, samesite="strict", secure=secure)
        return response


def _equal(given: str, right: str) -> bool:
    return hmac.compare_digest(given.encode("utf-8", "replace"), right.encode())


def _address(request: Request) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        address = ipaddress.ip_address(request.client.host if request.client else "")
    except ValueError:
        return None
    return getattr(address, "ipv4_mapped", None) or address


def _client_of(request: Request) -> str:
    """Returns what counts as one client: this machine, an IPv4 address, or a /64 of IPv6."""
    address = _address(request)
    if address is not None and address.is_loopback:
        return "this machine"  # whose programs may choose any of 16 million addresses
    if address is not None and address.version == 6:
        return str(ipaddress.ip_network((address, 64), strict=False))
    return str(address or "an unknown address")


def _refuse(
    request: Request, reason: str, status: int = 403, headers: dict[str, str] | None = None
) -> Response:
    """Answers with a page if a browser opens one, otherwise with JSON as all errors."""
    if "text/html" not in request.headers.get("accept", ""):
        return JSONResponse({"error": reason}, status_code=status, headers=headers)
    body = _HELP.format(reason=reason[0].upper() + reason[1:])
    return _page("This page is closed", body, status, headers=headers)


def _open_again() -> Response:
    head = '<meta http-equiv="refresh" content="0">'
    return _page("Opening the page", '<p><a href="">Continue</a></p>', 200, head=head)


def _page(
    title: str, body: str, status: int, head: str = "", headers: dict[str, str] | None = None
) -> Response:
    nonce = secrets.token_urlsafe(16)
    content = _PAGE.format(title=title, head=head, nonce=nonce, style=_STYLE, body=body)
    policy = f"default-src 'none'; style-src 'nonce-{nonce}'; img-src data:; base-uri 'none'; " \
        "form-action 'none'; frame-ancestors 'none'"  # fmt: skip
    headers = {"Content-Security-Policy": policy, **(headers or {})}
    return HTMLResponse(content, status_code=status, headers=headers)
