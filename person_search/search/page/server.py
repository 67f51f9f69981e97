# SPDX-License-Identifier: Apache-2.0
"""Serves the page at one address and port until Ctrl-C."""

import errno
import importlib.util
import ipaddress
import logging
import signal
import socket
import threading
import webbrowser
from collections.abc import Collection, Iterator
from contextlib import contextmanager

from person_search.search.errors import GalleryError
from person_search.search.page.session import PageSession

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


def address_of(listening: socket.socket) -> str:
    """Returns the URL of the page for a browser on this machine."""
    host, port = listening.getsockname()[:2]
    address = ipaddress.ip_address(host)
    if address.is_unspecified:
        return f"http://localhost:{port}/"
    return f"http://[{host}]:{port}/" if address.version == 6 else f"http://{host}:{port}/"


def is_private(listening: socket.socket) -> bool:
    """Returns whether only this machine can reach the socket."""
    return ipaddress.ip_address(listening.getsockname()[0]).is_loopback


def serve(
    session: PageSession,
    listening: socket.socket,
    names: Collection[str] = (),
    open_browser: bool = False,
) -> None:
    """Serves until Ctrl-C or SIGTERM, then closes the socket and the session.

    Args:
        session: Session, closed at the end.
        listening: Socket from :func:`bind`.
        names: Host names under which the page may be opened, see safety.py.
        open_browser: Open the page in the user's browser.
    """
    import uvicorn

    from person_search.search.page.app import create_app

    address = address_of(listening)
    facts = session.describe()
    if not is_private(listening):
        logger.warning("Anyone who can reach %s can see all images of the gallery: there is no "
                       "login.", address)  # fmt: skip
    config = uvicorn.Config(
        create_app(session, names), log_level="warning", server_header=False, lifespan="off"
    )
    server = uvicorn.Server(config)
    print(
        f"The gallery '{facts['name']}' ({facts['images']} images, {facts['persons']} persons) "
        f"is open at {address}\nPress Ctrl-C to stop.",
        flush=True,
    )
    if open_browser:
        webbrowser.open(address)
    try:
        with _terminate_like_interrupt():
            server.run(sockets=[listening])
    except KeyboardInterrupt:  # uvicorn has shut down and re-raises it
        print()
    finally:
        listening.close()
        session.close()


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
