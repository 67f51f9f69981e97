# SPDX-License-Identifier: Apache-2.0
"""``person-search serve`` as a program: start, answers, end."""

import importlib.util
import json
import re
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from page_tiny import image_bytes

from person_search.search.page.server import address_of, bind, is_private


@pytest.fixture
def serve_words(tiny_run: Path, search_tool, tmp_path: Path) -> list[str]:
    """Indexes a gallery with the tiny PSDiff; returns the command line that serves it."""
    assert search_tool("index") == 0
    return [
        sys.executable, "-m", "person_search.search", "serve", "--gallery", str(tmp_path / "g"),
        "--config-file", str(tiny_run / "config.yaml"), "--weights", str(tiny_run / "weights.pth"),
    ]  # fmt: skip


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_command(serve_words, tmp_path: Path, child_env, number: int) -> None:
    """A real model, a port that is free, an end in order: no upload stays behind."""
    (tmp_path / "tmp").mkdir()
    run = subprocess.Popen(
        [*serve_words, "--port", "0"],
        env={**child_env, "TMPDIR": str(tmp_path / "tmp")},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    try:
        lines = iter(run.stdout.readline, "")
        line = next(line for line in lines if "is open at" in line)
        address, token = re.search(r"(http://127\.0\.0\.1:\d+/)\?token=([\w-]{32})$", line).groups()
        login = {"Authorization": f"Bearer {token}"}
        sent = urllib.request.Request(address + "api/uploads", image_bytes(), login)
        with urllib.request.urlopen(sent) as answer:
            image = json.load(answer)
        assert image["width"] == 100
        choice = {"image": image["id"], "box": [0, 0, 50, 80]}
        sent = urllib.request.Request(
            address + "api/search",
            data=json.dumps({"persons": [choice]}).encode(),
            headers={**login, "Content-Type": "application/json"},
        )
        with urllib.request.urlopen(sent) as answer:
            assert len(json.load(answer)["matches"]) == 4
        kept = list((tmp_path / "tmp").rglob("*.png"))
        assert len(kept) == 1
    finally:
        run.send_signal(number)
        out, errors = run.communicate()
    assert run.returncode == 0, errors
    assert "Traceback" not in errors
    assert list((tmp_path / "tmp").glob("person-search-*")) == []


@pytest.fixture
def serve(tiny_run: Path, search_tool) -> Callable[..., int]:
    """Returns ``serve(**options)``, which runs the command in this process: it must not start."""
    model = {"config_file": tiny_run / "config.yaml", "weights": tiny_run / "weights.pth"}
    return lambda **options: search_tool("serve", **model, **options)


def test_port_that_is_taken(serve, search_tool, capsys) -> None:
    assert search_tool("index") == 0
    with closing(bind("127.0.0.1", 0)) as taken:
        assert serve(port=taken.getsockname()[1]) == 2
    assert "another program uses it: choose another --port" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"port": 99999}, "--port is 99999; it must be in 0 to 65535"),
        ({"host": "nowhere.invalid"}, "--host 'nowhere.invalid' is not an address of this machine"),
        ({"max_upload": 0}, "--max-upload is 0; it must be above 0"),
        ({"host": "0.0.0.0", "port": 0, "no_token": True}, "--no-token is for loopback addresses"),
        ({"token": "short"}, "has 5 characters; it must have 8 to 200 of A-Z a-z 0-9"),
        ({"token": "with space"}, "has 10 characters; it must have 8 to 200"),
        ({"token": "a-good-one", "no_token": True}, "not allowed with argument"),
        ({"trust_header": "X-User"}, "--trust-header and --trusted-proxy are given together"),
        ({"trust_header": "X:User", "trusted_proxy": "10.0.0.5"}, "letters, digits and - allowed"),
        ({"trusted_proxy": "10.0.0.5"}, "--trust-header and --trusted-proxy are given together"),
        ({"trust_header": "X-User", "trusted_proxy": "proxy"}, "'proxy' does not appear to be an"),
        ({"https": ("no.crt", "no.key")}, "--https: cannot read 'no.crt': No such file"),
    ],
)
def test_wrong_options(serve, search_tool, capsys, options: dict, words: str) -> None:
    assert search_tool("index") == 0
    assert serve(**options) == 2
    assert words in capsys.readouterr().err


def test_a_gallery_must_be_there(serve, capsys) -> None:
    assert serve() == 2
    assert "gallery" in capsys.readouterr().err


def test_what_is_missing_is_named(serve, search_tool, capsys, monkeypatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "uvicorn" else find(name)
    )
    assert serve() == 2
    assert (
        "requires uvicorn, which is not installed: pip install uvicorn" in capsys.readouterr().err
    )


@pytest.mark.parametrize(
    ("host", "address", "private"),
    [
        ("127.0.0.1", "http://127.0.0.1:", True),
        ("localhost", "http://", True),
        ("0.0.0.0", "http://localhost:", False),
    ],
)
def test_addresses(host: str, address: str, private: bool) -> None:
    with closing(bind(host, 0)) as listening:
        assert address_of(listening).startswith(address)
        assert is_private(listening) is private
