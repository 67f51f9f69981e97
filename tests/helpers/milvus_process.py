# SPDX-License-Identifier: Apache-2.0
"""A Milvus server of the wheel ``milvus`` in a network namespace of its own.

The server listens on all interfaces, so it gets a namespace in which only the loopback interface
exists. This program, its parent, forwards connections to one port of 127.0.0.1 outside of it. It
knows one user, root with the password Milvus, if the second argument is ``authorize``.

    python milvus_process.py FOLDER [authorize]

It prints ``port N`` twice, first that of 127.0.0.1 and then that in the namespace, and ``ready``
when the server answers. It reads ``kill`` (SIGKILL) and ``start`` as lines, ``cut`` and ``join``
(connections), and ends the server when its input ends.
"""

import ctypes
import fcntl
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

NEWUSER, NEWNET = 0x10000000, 0x40000000
IF_UP, SET_FLAGS = 1, 0x8914
SECONDS_TO_START = 180


class MilvusProcess:
    """The server as the tests see it; a context manager.

    Args:
        folder: Folder for its data.
        options: "authorize": requests need a user.
    """

    def __init__(self, folder: Path, *options: str) -> None:
        self.folder, self.options = folder, options

    def __enter__(self) -> "MilvusProcess":
        self._process = subprocess.Popen(
            [sys.executable, __file__, self.folder, *self.options],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        try:
            self.port, self._inner = (int(self._read().removeprefix("port ")) for _ in range(2))
            self._expect("ready")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(BrokenPipeError):
            self._process.stdin.close()
        self._process.wait()

    def enter(self) -> None:
        """Moves this thread, and what it starts, into the namespace: no one forwards. For root."""
        with open(f"/proc/{self._process.pid}/ns/net") as network:
            libc = ctypes.CDLL(None, use_errno=True)
            if libc.setns(network.fileno(), NEWNET):
                raise OSError(ctypes.get_errno(), "only root may enter the network of the server")
        self.port = self._inner

    def kill(self) -> None:
        """Ends the server with SIGKILL and waits for its end."""
        self._send("kill")
        self._expect("killed")

    def start(self) -> None:
        """Starts it again and waits until it answers."""
        self._send("start")
        self._expect("ready")

    @contextmanager
    def away(self) -> Iterator[None]:
        """Without a connection: ended, and refused meanwhile."""
        self._send("cut")
        self._expect("ready")
        yield
        self._send("join")
        self._expect("ready")

    def _send(self, line: str) -> None:
        print(line, file=self._process.stdin, flush=True)

    def _expect(self, line: str) -> None:
        if (found := self._read()) != line:
            raise RuntimeError(f"the server said {found!r}, not {line!r}.")

    def _read(self) -> str:
        line = self._process.stdout.readline().strip()
        if not line:
            raise RuntimeError(self._process.stderr.read().strip().splitlines()[-1:] or "ended")
        return line


def main(folder: Path, authorize: bool) -> None:
    """Runs the server until the input ends."""
    listening = socket.create_server(("127.0.0.1", 0))  # outside, so before the next line
    _enter_namespace()
    _check_loopback_only()
    command, environment = _prepare(folder)
    inner = int(environment.pop("PROXY_PORT"))
    environment["COMMON_SECURITY_AUTHORIZATIONENABLED"] = str(authorize).lower()
    print(f"port {listening.getsockname()[1]}\nport {inner}", flush=True)
    server, forwarder = None, Forwarder(listening, inner)
    try:
        server = _start(folder, command, environment)
        threading.Thread(target=forwarder.run, daemon=True).start()
        print("ready", flush=True)
        for line in sys.stdin:
            if line.strip() == "kill":
                server.kill()
                server.wait()
                print("killed", flush=True)
            elif line.strip() in ("cut", "join"):
                forwarder.set_cut(line.strip() == "cut")
                print("ready", flush=True)
            else:
                server = _start(folder, command, environment)
                print("ready", flush=True)
    finally:
        if server is not None:
            server.kill()
            server.wait()


def _enter_namespace() -> None:
    """Enters a new network namespace, as root or in a user namespace, and starts its loopback."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(NEWNET) and libc.unshare(NEWUSER | NEWNET):
        raise OSError(ctypes.get_errno(), "this machine allows no network namespace")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        fcntl.ioctl(any_socket, SET_FLAGS, struct.pack("16sh22x", b"lo", IF_UP))


def _check_loopback_only() -> None:
    names = [line.split(":")[0].strip() for line in Path("/proc/net/dev").read_text().splitlines()]
    if others := [name for name in names[2:] if name != "lo"]:
        raise OSError(f"the namespace has the interfaces {others}")


def _prepare(folder: Path) -> tuple[list[str], dict[str, str]]:
    """Unpacks the server where the wheel would, once, and writes its configuration."""
    import milvus

    unpacked = Path(milvus.MilvusServerConfig.get_default_data_dir())
    with unpacked.parent.mkdir(parents=True, exist_ok=True) or open(f"{unpacked}.lock", "w") as f:
        fcntl.flock(f, fcntl.LOCK_EX)
        milvus._initialize_data_files(unpacked)
    config = milvus.MilvusServerConfig(data_dir=str(folder))
    config.resolve()
    # the tests name a proxy that does not exist, so that nothing reaches the network
    environment = {
        **{name: v for name, v in os.environ.items() if not name.lower().endswith("_proxy")},
        "DEPLOY_MODE": "STANDALONE",
        "METRICS_PORT": "9091",
        "MILVUS_RUN_DIR": str(folder / "run"),
        "LD_LIBRARY_PATH": str(unpacked / "bin"),
        "PROXY_PORT": str(config.get("proxy_port")),
    }
    return [str(unpacked / "bin" / "milvus"), "run", "standalone"], environment


def _start(folder: Path, command: list[str], environment: dict[str, str]) -> subprocess.Popen:
    """Starts the server and waits until it answers."""
    with open(folder / "logs" / "output.log", "ab") as log:
        server = subprocess.Popen(command, env=environment, cwd=folder, stdout=log, stderr=log,
                                  preexec_fn=_end_with_parent)  # fmt: skip
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    end = time.monotonic() + SECONDS_TO_START
    while server.poll() is None and time.monotonic() < end:
        with suppress(OSError):
            with direct.open("http://127.0.0.1:9091/healthz", timeout=10) as answer:
                if b"OK" in answer.read():
                    return server
        time.sleep(0.2)
    server.kill()
    text = (folder / "logs" / "output.log").read_text(errors="replace")
    raise RuntimeError(f"the server does not start: {text[-300:]}")


def _end_with_parent() -> None:
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


class Forwarder:
    """Forwards connections, unless it is cut.

    Args:
        listening: Where they arrive.
        port: Where they go.
    """

    def __init__(self, listening: socket.socket, port: int) -> None:
        self._listening, self._port = listening, port
        self._cut, self._lock = False, threading.Lock()
        self._open: list[socket.socket] = []

    def set_cut(self, cut: bool) -> None:
        """Ends all connections and refuses new ones, or no longer does."""
        with self._lock:
            self._cut = cut
            for one in self._open if cut else ():
                with suppress(OSError):
                    one.shutdown(socket.SHUT_RDWR)

    def run(self) -> None:
        """Forwards for good."""
        while True:
            outside, _ = self._listening.accept()
            with self._lock:
                try:
                    if self._cut:
                        raise ConnectionRefusedError
                    inside = socket.create_connection(("127.0.0.1", self._port))
                except OSError:  # the server is away
                    outside.close()
                    continue
                self._open += [outside, inside]
            for pair in ((outside, inside), (inside, outside)):
                threading.Thread(target=_pump, args=pair, daemon=True).start()


def _pump(source: socket.socket, target: socket.socket) -> None:
    with suppress(OSError):
        while block := source.recv(1 << 18):
            target.sendall(block)
    for one in (source, target):
        with suppress(OSError):
            one.shutdown(socket.SHUT_RDWR)


if __name__ == "__main__":
    main(Path(sys.argv[1]), "authorize" in sys.argv[2:])
