# SPDX-License-Identifier: Apache-2.0
"""Who may see the page: the token, the cookie, a proxy with a login, https."""

import http.client
import ipaddress
import json
import logging
import re
import shutil
import ssl
import subprocess
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from page_tiny import TOKEN, Page, image_bytes, make_gallery, running
from page_visit import chromium, look, needs_browser, page_server

from person_search.search.page import server
from person_search.search.page.access import ATTEMPTS, INTERVAL, Access

__all__ = ["chromium", "look", "page_server"]  # fixtures

ROUTES = [
    ("GET", "/"),
    ("HEAD", "/"),
    ("GET", "/static/page.js"),
    ("GET", "/api/gallery"),
    ("GET", "/api/images"),
    ("GET", "/api/images/{key}"),
    ("GET", "/api/images/{key}/image"),
    ("GET", "/api/images/{key}/crop?box=0,0,9,9"),
    ("POST", "/api/uploads"),
    ("POST", "/api/search"),
    ("POST", "/api/search/report.html"),
    ("POST", "/api/search/results.jsonl"),
    ("GET", "/nothing"),
]


@pytest.fixture
def page(page_server: Page, monkeypatch) -> Page:
    """A page whose wrong tokens are counted from the start of the test."""
    page_server.access._wrong.clear()
    return page_server


def without(page: Page, path: str, **headers: str):
    return page.get(path, authorization="", **headers)


def cookie_of(page: Page) -> str:
    return without(page, f"/?token={TOKEN}").headers["set-cookie"].partition(";")[0]


# ---- token and cookie ----------------------------------------------------------------------------


@pytest.mark.parametrize(("method", "path"), ROUTES)
def test_every_route_is_closed(page: Page, method: str, path: str) -> None:
    key = page.get("/api/images").json["images"][0]["id"]
    body = {"persons": [{"image": key, "person": 0}]} if "search" in path else image_bytes()
    for login in ("", "Bearer ", f"Bearer {TOKEN}x", f"Basic {TOKEN}"):
        answer = page.ask(
            method, path.format(key=key), body if method == "POST" else None, authorization=login
        )
        assert answer.status == 403
        if method != "HEAD":
            assert answer.json["error"].startswith("the token is ") and len(answer.json) == 1
    assert len(page.session.uploads) == 0


def test_the_address_is_exchanged_for_a_cookie(page: Page) -> None:
    answer = without(page, f"/?token={TOKEN}")
    assert (answer.status, answer.headers["location"]) == (303, "/")
    assert answer.headers["cache-control"] == "no-store"
    cookie, *attributes = answer.headers["set-cookie"].split("; ")
    assert sorted(attributes) == ["HttpOnly", "Path=/", "SameSite=strict"], "until the browser ends"
    name, _, value = cookie.partition("=")
    assert name == page.access.cookie and TOKEN not in value
    for path in ("/", "/api/gallery", "/static/page.js"):
        assert without(page, path, cookie=f"other=1; {cookie}").status == 200
        assert without(page, path, cookie=f"{name}=x{value}").status == 403
        assert without(page, path, cookie=f"person-search-1={value}").status == 403, "another port"


def test_the_rest_of_the_address_is_kept(page: Page) -> None:
    def location(path: str) -> str:
        return without(page, path).headers["location"]

    assert location(f"/api/images?offset=1&token={TOKEN}&camera=a%26b") == (
        "/api/images?offset=1&camera=a%26b"
    )
    for path in ("//evil.example/", "/\\evil.example/", "/%5Cevil.example/", "///evil.example/"):
        assert location(f"{path}?token={TOKEN}") == "/evil.example/", "on this site"
    assert "\n" not in location(f"/%0d%0aX-Bad:%201?token={TOKEN}")


def test_a_browser_that_is_in_may_open_any_address_again(page: Page) -> None:
    answer = without(page, "/?token=of-an-earlier-start", cookie=cookie_of(page))
    assert (answer.status, answer.headers["location"]) == (303, "/")


def test_a_token_in_the_address_of_a_post(page: Page) -> None:
    """Logs and histories hold addresses; a form of another site may not log in."""
    answer = page.post(f"/api/uploads?token={TOKEN}", image_bytes(), authorization="")
    assert answer.status == 403


def test_the_refused_page(page: Page) -> None:
    for path in ("/", "/?token=wrong"):
        answer = without(page, path, accept="text/html,*/*")
        assert answer.status == 403 and answer.headers["content-type"].startswith("text/html")
        assert b"This page is closed" in answer.body
        assert b"open the complete address that the program printed" in answer.body.lower()
        assert b"gallery" not in answer.body, "it does not tell what it closes"
        nonce = re.search(rb'nonce="([^"]+)"', answer.body)[1].decode()
        assert f"style-src 'nonce-{nonce}'" in answer.headers["content-security-policy"]
        assert answer.headers["x-frame-options"] == "DENY"


def test_a_random_token_per_start() -> None:
    first, second = Access(), Access()
    assert first.token != second.token and len(first.token) == 32


# ---- wrong tokens --------------------------------------------------------------------------------


def test_wrong_tokens_are_limited_and_logged(page: Page, caplog, monkeypatch) -> None:
    cookie = cookie_of(page)
    now = [1000.0]
    monkeypatch.setattr("person_search.search.page.access.time.monotonic", lambda: now[0])
    for number in range(ATTEMPTS):
        assert without(page, f"/?token=guess-{number}").status == 403
    for login in (f"/?token={TOKEN}", "/?token=guess"):
        answer = without(page, login)
        assert answer.status == 429 and "too many wrong tokens" in answer.json["error"]
        assert answer.headers["retry-after"] == "60"
    assert page.get("/api/gallery").status == 429, "a script, too"
    assert without(page, "/api/gallery", cookie=cookie).status == 200, "who is in stays in"
    assert without(page, "/").status == 403, "a request without a token is not an attempt"
    lines = [record.message for record in caplog.records]
    assert len(lines) == ATTEMPTS and "guess" not in caplog.text and TOKEN not in caplog.text
    assert lines[0] == "A wrong token from this machine was refused (1 within a minute)."
    assert lines[-1].endswith("; further ones are refused unread for a minute.")
    now[0] += INTERVAL + 1
    assert page.get("/api/gallery").status == 200


def test_the_right_token_is_not_an_attempt(page: Page) -> None:
    for _ in range(2 * ATTEMPTS):
        assert page.get("/api/gallery").status == 200
        assert without(page, "/api/gallery").status == 403
    assert not page.access._wrong


# ---- links of other sites ------------------------------------------------------------------------


def test_a_link_of_another_site_is_opened_once_more(page: Page) -> None:
    """The browser does not send the cookie then; the second request counts as ours."""
    link = {"sec_fetch_site": "cross-site", "sec_fetch_mode": "navigate"}
    answer = without(page, "/", **link)
    assert answer.status == 200 and b'http-equiv="refresh" content="0"' in answer.body
    assert without(page, "/", **{**link, "sec_fetch_site": "same-origin"}).status == 403
    assert without(page, "/?token=wrong", **link).status == 403
    assert without(page, "/", sec_fetch_site="cross-site", sec_fetch_mode="no-cors").status == 403


# ---- a proxy with a login ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def behind_proxy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    proxies = [ipaddress.ip_network("127.0.0.1")]
    gallery = make_gallery(tmp_path_factory.mktemp("proxy"))
    with running(gallery, header="X-Remote-User", proxies=proxies) as page:
        yield page


def test_a_trusted_proxy(behind_proxy: Page, monkeypatch, caplog) -> None:
    page = behind_proxy
    assert without(page, "/api/gallery", x_remote_user="ada").status == 200
    assert without(page, "/api/gallery").status == 403
    assert without(page, "/api/gallery", x_remote_user="ada", host="evil.example").status == 403
    assert page.get("/api/gallery").status == 200, "the token still opens the page"
    secure = without(page, f"/?token={TOKEN}", x_forwarded_proto="https").headers["set-cookie"]
    assert "Secure" in secure
    monkeypatch.setattr(page.access, "proxies", [ipaddress.ip_network("10.0.0.0/8")])
    for claims in ({}, {"x_forwarded_for": "10.0.0.5"}):
        answer = page.get("/api/gallery", x_remote_user="ada", **claims)
        assert answer.status == 403 and "from the proxy only" in answer.json["error"]
    assert "The header X-Remote-User from 127.0.0.1, which is not the proxy, was" in caplog.text


def test_an_empty_header_is_not_a_login(behind_proxy: Page) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", behind_proxy.port)
    with closing(connection):
        connection.request("GET", "/api/gallery", headers={"X-Remote-User": " "})
        assert connection.getresponse().status == 403


# ---- https and the start -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with ``a.crt``, ``a.key``, ``b.key`` and ``locked.key``."""
    if shutil.which("openssl") is None:
        pytest.skip("no openssl on this machine")
    folder = tmp_path_factory.mktemp("certificates")

    def openssl(*words: str) -> None:
        subprocess.run(["openssl", *words], cwd=folder, check=True, capture_output=True)

    curve = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1")
    openssl("req", "-x509", *curve, "-nodes", "-keyout", "a.key", "-out", "a.crt", "-days", "2",
            "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost")  # fmt: skip
    openssl("ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", "b.key")
    openssl("ec", "-in", "a.key", "-aes128", "-passout", "pass:secret", "-out", "locked.key")
    (folder / "empty.crt").touch()
    return folder


@pytest.mark.parametrize(
    ("certificate", "key", "words"),
    [
        ("a.crt", "b.key", "the key does not belong to the certificate"),
        ("empty.crt", "a.key", "expected a certificate and its key without a password"),
        ("a.crt", "locked.key", "expected a certificate and its key without a password"),
        ("a.crt", "a.crt", "expected a certificate and its key without a password"),
        ("a.crt", "none.key", "none.key': No such file or directory"),
    ],
)
def test_wrong_certificates(certificates: Path, certificate: str, key: str, words: str) -> None:
    with pytest.raises(ValueError, match=words) as caught:
        server.check_certificate(certificates / certificate, certificates / key)
    assert "\n" not in str(caught.value) and str(caught.value).startswith("--https")


def test_https_and_the_printed_address(
    certificates: Path, page: Page, capsys, monkeypatch, caplog
) -> None:
    """The server of the command in a thread, with the app of the running page."""
    opened: list[str] = []
    monkeypatch.setattr(server.webbrowser, "open", opened.append)
    files = (certificates / "a.crt", certificates / "a.key")
    server.check_certificate(*files)
    listening = server.bind("localhost", 0)
    port = listening.getsockname()[1]
    started: list = []
    monkeypatch.setattr("uvicorn.Server.startup", recorded(started))
    thread = threading.Thread(
        target=server.serve,
        args=(page.app, listening, "The test", TOKEN),
        kwargs={"https": files, "open_browser": True},
    )
    thread.start()
    try:
        trusted = ssl.create_default_context(cafile=str(files[0]))
        while not started:
            thread.join(0.01)
        login = {"Authorization": f"Bearer {TOKEN}"}
        sent = urllib.request.Request(f"https://localhost:{port}/api/gallery", headers=login)
        with urllib.request.urlopen(sent, context=trusted) as answer:
            assert json.load(answer)["images"] == 4
        connection = http.client.HTTPSConnection("localhost", port, context=trusted)
        with closing(connection):
            connection.request("GET", f"/?token={TOKEN}")
            assert "; Secure" in connection.getresponse().getheader("set-cookie")
        way = Path(opened[0].removeprefix("file://"))
        assert TOKEN not in opened[0] and f"?token={TOKEN}" in way.read_text()
        assert way.parent.stat().st_mode & 0o077 == 0
    finally:
        started[0].should_exit = True
        thread.join()
    assert not way.exists()
    assert (
        f"The test is open at https://127.0.0.1:{port}/?token={TOKEN}\n" in capsys.readouterr().out
    )
    assert TOKEN not in caplog.text


def recorded(started: list):
    """Returns ``uvicorn.Server.startup`` that appends the started server to a list."""
    import uvicorn

    startup = uvicorn.Server.startup

    async def start(one, sockets=None) -> None:
        await startup(one, sockets=sockets)
        started.append(one)

    return start


@pytest.mark.parametrize(
    ("options", "printed"),
    [
        ({"token": TOKEN}, "/ (append ?token= and your token)\n"),
        ({"variable": TOKEN}, "/ (append ?token= and your token)\n"),
        ({"no_token": True}, "/\n"),
    ],
)
def test_chosen_tokens(
    tiny_run: Path, search_tool, monkeypatch, capsys, caplog, options: dict, printed: str
) -> None:
    """The program in this process, which ends as soon as it would serve."""
    assert search_tool("index") == 0
    seen: list = []
    monkeypatch.setattr("uvicorn.Server.run", lambda one, sockets: seen.append(one.config.app))
    if "variable" in options:
        monkeypatch.setenv("PERSON_SEARCH_TOKEN", options.pop("variable"))
    model = {"config_file": tiny_run / "config.yaml", "weights": tiny_run / "weights.pth"}
    with caplog.at_level(logging.WARNING):
        assert search_tool("serve", **model, port=0, **options) == 0
    out = capsys.readouterr().out
    assert printed in out and TOKEN not in out and len(seen) == 1
    assert ("--no-token: all users of this machine" in caplog.text) is ("no_token" in options)


# ---- a real browser ------------------------------------------------------------------------------


@needs_browser
def test_in_a_browser(chromium, page: Page, look) -> None:
    context = chromium.new_context(viewport={"width": 1280, "height": 800})
    context.set_default_timeout(60_000)
    tab = context.new_page()
    root = f"http://127.0.0.1:{page.port}/"
    assert tab.goto(root).status == 403
    assert tab.inner_text("h1") == "This page is closed"
    assert tab.evaluate("getComputedStyle(document.body).maxWidth") == "648px", "its own style"
    look(tab, "refused")
    assert tab.goto(f"{root}?token=wrong").status == 403
    # a link of another site: the redirect is without the cookie, the page opens itself once more
    tab.goto("data:text/html,<a href='" + page.address + "'>the page</a>")
    tab.click("a")
    tab.wait_for_selector("#gallery:has-text('4 images, 8 detected persons')")
    assert tab.url == root, "without the token"
    assert tab.evaluate("document.cookie") == "", "no script can read it"
    look(tab, "opened")
    tab.goto("data:text/html,<a href='" + root + "'>the page</a>")
    tab.click("a")
    tab.wait_for_selector("#gallery:has-text('4 images, 8 detected persons')")
    page.access._key, before = "after a restart", page.access._key
    try:
        tab.click("#browse summary")
        tab.wait_for_selector("#error:has-text('The token is missing or belongs to an earlier')")
    finally:
        page.access._key = before
    context.close()
