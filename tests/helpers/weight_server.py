# SPDX-License-Identifier: Apache-2.0
"""A local web server with weight files, which also answers as the Hugging Face hub does."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

REVISION = "a" * 40


class WeightServer(ThreadingHTTPServer):
    """Serves ``files`` by path.

    Attributes:
        files: Content by path; ``/owner/name/resolve/main/FILE`` is a file of a repository.
        requests: Paths that were requested, in order.
    """

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files: dict[str, bytes] = {}
        self.requests: list[str] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    server: WeightServer

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        self.server.requests.append(path)
        content, status, headers = self.server.files.get(path), 200, {}
        parts = path.split("/")
        if content is None and parts[1:3] == ["api", "models"]:
            folder = f"/{parts[3]}/{parts[4]}/resolve/main/"
            names = [name for name in self.server.files if name.startswith(folder)]
            content = json.dumps(
                [{"type": "file", "path": name.removeprefix(folder), "size": 1, "oid": "0" * 40}
                 for name in names]
            ).encode()  # fmt: skip
        elif content is not None:
            headers = {"ETag": f'"{hash(content)}"', "X-Repo-Commit": REVISION}
        else:
            repositories = {tuple(name.split("/")[1:3]) for name in self.server.files}
            known = tuple(parts[1:3]) in repositories
            kind = "Entry" if "/main/" in path else "Revision"
            headers = {"X-Error-Code": f"{kind if known else 'Repo'}NotFound"}
            content, status = b"", 404
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def weight_server() -> Iterator[WeightServer]:
    """Runs a server for the duration of a block."""
    with WeightServer() as server:
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
