# SPDX-License-Identifier: Apache-2.0
"""Starts the page: one address, one port, until Ctrl-C."""

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
    """
    Raises:
        GalleryError: FastAPI or uvicorn is not installed.
    """
    absent = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if absent:
        raise GalleryError(
            f"the page needs {' and '.join(absent)}, which is not installed: pip install "
            f"{' '.join(absent)} (or this package with the extra 'page'). 'person-search query' "
            "works without."
        )


def bind(host: str, port: int) -> socket.socket:
    """Takes the port; 0 for any that is free.

    Raises:
        ValueError: the address is not one of this machine, or the port is taken or forbidden.
    """
    if not 0 <= port <= 65535:
        raise ValueError(f"--port is {port}; it must lie in 0 to 65535 (0: any that is free).")
    try:
        ((family, kind, protocol, _, address), *_) = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
        taken = socket.socket(family, kind, protocol)
    except OSError as e:
        raise ValueError(f"--host '{host}' is no address of this machine: {e}.") from e
    taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        taken.bind(address)
        taken.listen(128)
    except OSError as e:
        taken.close()
        other = "; another program uses it: choose another --port, or 0 for any that is free"
        reason = other if e.errno == errno.EADDRINUSE else ""
        raise ValueError(f"cannot use port {port} of '{host}': {e.strerror}{reason}.") from e
    return taken


def address_of(listening: socket.socket) -> str:
    """What to type into a browser on this machine."""
    host, port = listening.getsockname()[:2]
    address = ipaddress.ip_address(host)
    if address.is_unspecified:
        return f"http://localhost:{port}/"
    return f"http://[{host}]:{port}/" if address.version == 6 else f"http://{host}:{port}/"


def is_private(listening: socket.socket) -> bool:
    """Whether only this machine can reach it."""
    return ipaddress.ip_address(listening.getsockname()[0]).is_loopback


def serve(
    session: PageSession,
    listening: socket.socket,
    names: Collection[str] = (),
    open_browser: bool = False,
) -> None:
    """Answers until Ctrl-C or SIGTERM, then closes the port and the session.

    Args:
        session: is closed at the end.
        listening: see :func:`bind`.
        names: by which the page may be called, see safety.py.
        open_browser: show the page in the user's browser.
    """
    import uvicorn

    from person_search.search.page.app import create_app

    address = address_of(listening)
    facts = session.describe()
    if not is_private(listening):
        logger.warning("Everybody who can reach %s can see all images of the gallery: there is "
                       "no login.", address)  # fmt: skip
    config = uvicorn.Config(
        create_app(session, names), log_level="warning", server_header=False, lifespan="off"
    )
    server = uvicorn.Server(config)
    print(
        f"The gallery '{facts['name']}' ({facts['pictures']} images, {facts['persons']} persons) "
        f"is open at {address}\nCtrl-C ends.",
        flush=True,
    )
    if open_browser:
        webbrowser.open(address)
    try:
        with _terminate_like_interrupt():
            server.run(sockets=[listening])
    except KeyboardInterrupt:  # uvicorn has ended everything in order, and passes it on
        print()
    finally:
        listening.close()
        session.close()


@contextmanager
def _terminate_like_interrupt() -> Iterator[None]:
    """SIGTERM, which uvicorn passes on too, would else end the process before it has cleaned up."""
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
