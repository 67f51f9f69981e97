# SPDX-License-Identifier: Apache-2.0
"""Serves the page at one address and port until Ctrl-C."""

import errno
import importlib.util
import ipaddress
import logging
import signal
import socket
import ssl
import tempfile
import threading
import webbrowser
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from person_search.search.errors import GalleryError

if TYPE_CHECKING:
    from fastapi import FastAPI

logger = logging.getLogger(__name__)
NEEDED = ("fastapi", "uvicorn")


def check_installed() -> None:
    """Checks the extra packages of the page.

    Raises:
        GalleryError: If FastAPI or uvicorn is not installed.
    """
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise GalleryError(
            f"the page requires {' and '.join(missing)}, which is not installed: pip install "
            f"{' '.join(missing)} (or this package with the extra 'page'). 'person-search query' "
            "works without it."
        )


def bind(host: str, port: int) -> socket.socket:
    """Binds a socket and listens.

    Args:
        host: Address of this machine.
        port: Port; 0 selects a free one.

    Raises:
        ValueError: If the address does not belong to this machine, or the port is in use or not
            permitted.
    """
    if not 0 <= port <= 65535:
        raise ValueError(f"--port is {port}; it must be in 0 to 65535 (0 selects a free port).")
    try:
        ((family, kind, protocol, _, address), *_) = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
        taken = socket.socket(family, kind, protocol)
    except OSError as e:
        raise ValueError(f"--host '{host}' is not an address of this machine: {e}.") from e
    taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        taken.bind(address)
        taken.listen(128)
    except OSError as e:
        taken.close()
        other = "; another program uses it: choose another --port, or 0 for a free one"
        reason = other if e.errno == errno.EADDRINUSE else ""
        raise ValueError(f"cannot use port {port} of '{host}': {e.strerror}{reason}.") from e
    return taken


def check_certificate(certificate: Path, key: Path) -> None:
    """Checks the files of ``--https``.

    Args:
        certificate: PEM file with the certificate, followed by those that signed it.
        key: PEM file with its private key, without a password.

    Raises:
        ValueError: If a file is unreadable, or the key does not belong to the certificate.
    """
    try:
        for path in (certificate, key):
            path.open("rb").close()
        # a callback, or OpenSSL would ask for the password of an encrypted key on the terminal
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate, key, lambda: "-")
    except ssl.SSLError as e:  # a subclass of OSError
        reason = (
            "the key does not belong to the certificate"
            if e.reason == "KEY_VALUES_MISMATCH"
            else "expected a certificate and its key without a password, both in PEM format "
            f"({(e.reason or str(e)).replace('_', ' ').lower()})"
        )
        raise ValueError(f"--https '{certificate}' '{key}': {reason}.") from e
    except OSError as e:
        raise ValueError(f"--https: cannot read '{path}': {e.strerror}.") from e


def address_of(listening: socket.socket, scheme: str = "http") -> str:
    """Returns the URL of the page for a browser on this machine."""
    host, port = listening.getsockname()[:2]
    address = ipaddress.ip_address(host)
    if address.is_unspecified:
        return f"{scheme}://localhost:{port}/"
    return f"{scheme}://[{host}]:{port}/" if address.version == 6 else f"{scheme}://{host}:{port}/"


def is_private(listening: socket.socket) -> bool:
    """Returns whether only this machine can reach the socket."""
    return ipaddress.ip_address(listening.getsockname()[0]).is_loopback


def serve(
    app: "FastAPI",
    listening: socket.socket,
    opened: str,
    token: str = "",
    *,
    show_token: bool = True,
    https: Sequence[Path] = (),
    open_browser: bool = False,
) -> None:
    """Serves until Ctrl-C or SIGTERM, then closes the socket.

    Args:
        app: The page.
        listening: Socket from :func:`bind`.
        opened: Printed name of what the page shows.
        token: Token that opens the page; "" if it is open to every request.
        show_token: Print the token; not one that the user has chosen and kept secret.
        https: Files for :func:`check_certificate`; empty for HTTP.
        open_browser: Open the page in the user's browser.
    """
    import uvicorn

    address = address_of(listening, "https" if https else "http")
    if not is_private(listening) and not https:
        logger.warning("Anyone on the way to %s can read the token and the images, which are not "
                       "encrypted: use --https, or a proxy that encrypts.", address)  # fmt: skip
    config = uvicorn.Config(
        app,
        log_level="warning",
        server_header=False,
        lifespan="off",
        proxy_headers=False,  # or every program of this machine could claim any address
        ssl_certfile=https[0] if https else None,
        ssl_keyfile=https[1] if https else None,
    )
    server = uvicorn.Server(config)
    link = f"{address}?token={token}" if token else address
    hint = "" if show_token or not token else " (append ?token= and your token)"
    print(
        f"{opened} is open at {link if show_token else address}{hint}\nPress Ctrl-C to stop.",
        flush=True,
    )
    with tempfile.TemporaryDirectory(prefix="person-search-") as folder:
        if open_browser:
            # a file that only this user can read, because lists of processes show the address
            way = Path(folder) / "open.html"
            way.write_text(
                f'<meta charset="utf-8"><meta http-equiv="refresh" content="0;url={link}">', "utf-8"
            )
            webbrowser.open(way.as_uri() if token else address)
        try:
            with _terminate_like_interrupt():
                server.run(sockets=[listening])
        except KeyboardInterrupt:  # uvicorn has shut down and re-raises it
            print()
        finally:
            listening.close()


@contextmanager
def _terminate_like_interrupt() -> Iterator[None]:
    """Turns SIGTERM, which uvicorn re-raises too, into KeyboardInterrupt, so that we clean up."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
