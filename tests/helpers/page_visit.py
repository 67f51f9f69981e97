# SPDX-License-Identifier: Apache-2.0
"""Visiting the page with a real browser without a window.

Chromium is looked for on the machine (Debian: ``apt install chromium``); PERSON_SEARCH_CHROMIUM
names another. The images that are taken lie in the folder of PERSON_SEARCH_SCREENSHOTS, if set.
Test modules that use ``visit`` or ``look`` import all four fixtures.
"""

import io
import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from page_tiny import BLUE, RED, Page, image_bytes, make_gallery, running
from PIL import Image

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
BROWSER = os.environ.get("PERSON_SEARCH_CHROMIUM") or next(
    filter(None, map(shutil.which, NAMES)), ""
)
needs_browser = pytest.mark.skipif(not BROWSER, reason="no Chromium on this machine")


@pytest.fixture(scope="module")
def page_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    with running(make_gallery(tmp_path_factory.mktemp("browser"))) as page:
        yield page


@pytest.fixture(scope="module")
def chromium() -> Iterator[object]:
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(
            executable_path=BROWSER, args=["--no-sandbox", "--disable-dev-shm-usage"]
        )
        yield browser
        browser.close()


@pytest.fixture
def visit(chromium, page_server: Page) -> Iterator[Callable]:
    """Returns ``visit(**options of the browser)``, which opens the page.

    Any message in the browser's console that is not asked for (``expect``) fails the test.
        ``early(tab)`` is called before the page is loaded, which is then not awaited.
    """
    contexts, complaints, expected = [], [], []

    def open_page(expect: str = "", early: Callable | None = None, **options):
        context = chromium.new_context(**{"viewport": {"width": 1280, "height": 800}, **options})
        context.set_default_timeout(60_000)
        contexts.append(context)
        expected.append(expect)
        tab = context.new_page()
        tab.on("console", lambda message: complaints.append(message.text))
        tab.on("pageerror", lambda error: complaints.append(str(error)))
        if early is not None:
            early(tab)
        tab.goto(page_server.address)
        if early is None:
            until_open(tab)
        return tab

    yield open_page
    for context in contexts:
        context.close()
    wanted = [text for text in expected if text]
    assert [text for text in complaints if not any(w in text for w in wanted)] == []


@pytest.fixture
def look(tmp_path: Path) -> Callable:
    """Returns ``look(tab, name)``, which takes an image of the tab and gives it back."""
    folder = Path(os.environ.get("PERSON_SEARCH_SCREENSHOTS") or tmp_path)

    def take(tab, name: str, **options) -> np.ndarray:
        folder.mkdir(parents=True, exist_ok=True)
        content = tab.screenshot(path=folder / f"{name}.png", **options)
        return np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))

    return take


def choose_file(tab, colors=(RED, BLUE), name: str = "me.png") -> None:
    tab.set_input_files("#file", {"name": name, "mimeType": "image/png",
                                  "buffer": image_bytes(colors)})  # fmt: skip
    tab.wait_for_selector(f"#hint:has-text('{name}')")


def give(tab, event: str, *names: str) -> None:
    """Drops or pastes images."""
    tab.evaluate(
        """([event, names, bytes]) => {
          const given = new DataTransfer();
          for (const name of names) given.items.add(new File([new Uint8Array(bytes)], name));
          const options = {bubbles: true, cancelable: true};
          document.dispatchEvent(event === "drop"
            ? new DragEvent(event, {dataTransfer: given, ...options})
            : new ClipboardEvent(event, {clipboardData: given, ...options}));
        }""",
        [event, names, list(image_bytes())],
    )


def fingers(tab) -> Callable:
    """Returns ``touch(kind, *points)``: fingers on the stage, as shares of its width and height;
    no points at the end of all."""
    devtools = tab.context.new_cdp_session(tab)

    def touch(kind: str, *points: tuple[float, float]) -> None:
        box = tab.locator("#stage").bounding_box()
        found = [
            {"x": box["x"] + x * box["width"], "y": box["y"] + y * box["height"], "id": i}
            for i, (x, y) in enumerate(points)
        ]
        devtools.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": found})

    return touch


def numbers(tab) -> list[str]:
    """What stands in the four fields of the box."""
    return [tab.input_value(f"#{name}") for name in ("x1", "y1", "x2", "y2")]


def until_open(tab) -> None:
    tab.wait_for_selector("#gallery:has-text('4 images, 8 detected persons')")


def focused(tab) -> str:
    """Id of the element that has the focus, or its name for a reader."""
    return tab.evaluate(
        "(one => one.id || one.ariaLabel || one.title || one.tagName)(document.activeElement)"
    )


def found(tab) -> list[str]:
    """Names of the images found, once they are there."""
    tab.wait_for_selector("#status:has-text('found.')")
    return tab.locator(".matches dd:nth-of-type(1)").all_inner_texts()


def until(tab, true: str) -> None:
    """Waits for an expression in the page; the browser's own waiting is against the page's CSP."""
    deadline = time.monotonic() + 60
    while not tab.evaluate(true):
        assert time.monotonic() < deadline, true
        time.sleep(0.02)


def until_first_is(tab, name: str) -> None:
    until(tab, f"document.querySelector('.matches dd')?.innerText === '{name}'")


def images_are_loaded(tab) -> bool:
    """Whether no image that is to be seen is broken. Those further down are brought into view."""
    for image in tab.locator("img:visible").all():
        image.scroll_into_view_if_needed()
    until(tab, "[...document.images].every(i => !i.offsetParent || i.complete)")
    return tab.evaluate("[...document.images].every(i => !i.offsetParent || i.naturalWidth > 0)")
