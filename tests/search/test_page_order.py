# SPDX-License-Identifier: Apache-2.0
"""The page in a real browser when things come in another order than usual, or half."""

import re
from collections.abc import Callable

import pytest
from page_tiny import Page
from page_visit import (
    choose_file,
    chromium,
    fingers,
    found,
    give,
    needs_browser,
    numbers,
    page_server,
    until,
    until_first_is,
    until_open,
    visit,
)

__all__ = ["chromium", "page_server", "visit"]  # fixtures


def browse(tab) -> None:
    tab.click("#browse summary")
    tab.wait_for_selector("#shown:has-text('4 of 4')")


def hold(tab, address) -> Callable[[], None]:
    """Keeps the next request to an address waiting; returns what lets it go and waits for it."""
    held: list = []
    tab.route(address, lambda route: held.append(route), times=1)

    def release() -> None:
        assert len(held) == 1
        with tab.expect_response(address):
            held[0].continue_()
        until(tab, "!document.getElementById('status').classList.contains('busy')")

    return release


@needs_browser
def test_the_last_choice_counts(visit) -> None:
    tab = visit()
    browse(tab)
    release = hold(tab, re.compile(r"/api/images/g-[0-9a-f]+-0$"))
    tab.click(".thumbs button[title='a.png']")
    tab.click(".thumbs button[title='b.png']")
    tab.wait_for_selector("#hint:has-text('b.png')")
    assert "busy" in tab.get_attribute("#status", "class"), "the other is still under way"
    release()
    assert "b.png" in tab.inner_text("#hint")


@needs_browser
def test_the_last_list_counts(visit) -> None:
    tab = visit()
    browse(tab)
    release = hold(tab, re.compile("camera=hall"))
    tab.select_option("#browse-cameras", "hall")
    tab.select_option("#browse-cameras", "gate")
    tab.wait_for_selector("#shown:has-text('2 of 2')")
    release()
    assert tab.locator(".thumbs span").all_inner_texts() == ["a.png", "b.png"]


@needs_browser
def test_what_is_saved_is_what_is_shown(visit) -> None:
    """The last search is shown, whichever answer comes first; one that fails changes nothing."""
    tab = visit(expect="Failed to load resource")
    choose_file(tab)
    tab.locator(".person").first.click()
    tab.click("#filters summary")
    release = hold(tab, "**/api/search")
    tab.click("#search")
    tab.get_by_role("checkbox", name="gate").uncheck()
    tab.click("#search")
    until_first_is(tab, "c.png")
    release()
    assert tab.locator(".matches li").count() == 2
    tab.route("**/api/search", lambda route: route.fulfill(status=422, json={"error": "no."}))
    tab.get_by_role("checkbox", name="gate").check()
    tab.click("#search")
    tab.wait_for_selector("#error:has-text('No.')")
    with tab.expect_request("**/results.jsonl") as request:
        tab.click("#save-lines")
    assert request.value.post_data_json["cameras"] == ["hall"]
    tab.wait_for_selector("#status:has-text('saved to your downloads')")


@needs_browser
@pytest.mark.parametrize(("field", "keys"), [("since", "5"), ("top", "0"), ("score", "7")])
def test_a_filter_that_is_half_written_is_not_passed_over(visit, field: str, keys: str) -> None:
    tab = visit()
    choose_file(tab)
    tab.locator(".person").first.click()
    tab.click("#filters summary")
    if field != "since":
        tab.fill(f"#{field}", "")
    tab.locator(f"#{field}").press(keys)
    tab.click("#filters summary")
    tab.click("#search")
    assert tab.locator("#error").is_visible() and tab.locator("#found").is_hidden()
    assert tab.evaluate("document.activeElement.id") == field


@needs_browser
def test_a_drag_that_ends_outside(visit) -> None:
    tab = visit()
    choose_file(tab)
    box = tab.locator("#stage").bounding_box()
    tab.mouse.move(box["x"] + 2, box["y"] + 50)
    tab.mouse.down()
    tab.mouse.move(box["x"] - 9, box["y"] + 50)
    tab.mouse.up()
    tab.mouse.move(box["x"] + 80, box["y"] + 90)
    tab.mouse.move(box["x"] + 120, box["y"] + 150)
    assert tab.locator("#drawn").is_hidden() and tab.locator("#chosen li").count() == 0


@needs_browser
def test_the_box_that_is_seen_is_the_one_that_is_searched_for(visit) -> None:
    tab = visit()
    choose_file(tab)
    tab.locator(".person").first.click()
    tab.click("#draw")
    assert tab.locator("#drawn").is_visible()
    assert tab.locator(".person[aria-pressed=true]").count() == 0
    before = tab.locator("#drawn").get_attribute("style")
    stage = tab.locator("#stage").bounding_box()
    tab.mouse.move(stage["x"] + 20, stage["y"] + 20)
    tab.mouse.down()
    tab.mouse.move(stage["x"] + 90, stage["y"] + 20)  # a line is not a box
    tab.mouse.up()
    assert tab.locator("#drawn").get_attribute("style") == before
    with tab.expect_request("**/api/search") as request:
        tab.click("#search")
    assert request.value.post_data_json["persons"][0]["box"] == [40, 20, 60, 60]
    found(tab)


@needs_browser
def test_marking_another_person_before_another_image_is_added(visit) -> None:
    tab = visit()
    browse(tab)
    tab.click(".thumbs button[title='a.png']")
    tab.wait_for_selector("#hint:has-text('a.png')")
    tab.locator(".person").first.click()
    tab.click("#another")
    tab.locator(".person").nth(1).click()
    tab.click(".thumbs button[title='b.png']")
    tab.wait_for_selector("#hint:has-text('b.png')")
    assert tab.locator("#chosen li").count() == 1
    tab.locator(".person").first.click()
    assert tab.locator("#chosen li").count() == 2


@needs_browser
@pytest.mark.parametrize("event", ["drop", "paste"])
def test_an_image_that_comes_before_the_gallery_is_open(visit, event: str) -> None:
    """It waits; of several the last one is taken."""
    release: list[Callable[[], None]] = []
    tab = visit(early=lambda tab: release.append(hold(tab, "**/api/gallery")))
    sent: list[str] = []
    tab.on("request", lambda request: sent.append(request.url))
    give(tab, event, "one.png")
    give(tab, event, "two.png")
    assert tab.locator("#error").is_hidden()
    assert "busy" in tab.get_attribute("#status", "class")
    release[0]()
    tab.wait_for_selector("#hint:has-text('two.png')")
    assert [url for url in sent if url.endswith("/uploads")] == [f"{tab.url}api/uploads"]
    tab.locator(".person").first.click()
    assert tab.locator("#chosen li").count() == 1


@needs_browser
def test_an_image_of_the_gallery_before_it_is_open(visit) -> None:
    """The list is there, the facts are not yet; as long as a large gallery is reread."""
    release: list[Callable[[], None]] = []
    tab = visit(early=lambda tab: release.append(hold(tab, "**/api/gallery")))
    browse(tab)
    answered: list[str] = []
    tab.on("response", lambda response: answered.append(response.url.split("/api/")[-1]))
    tab.click(".thumbs button[title='a.png']")
    tab.wait_for_timeout(200)
    release[0]()
    tab.wait_for_selector("#hint:has-text('a.png')")
    image = next(url for url in answered if re.fullmatch("images/g-[0-9a-f]+-0", url))
    assert answered.index("gallery") < answered.index(image), "no person can be chosen before"
    tab.locator(".person").first.click()
    assert tab.locator("#another").is_visible()


@needs_browser
def test_a_damaged_gallery_is_told_and_opened_once_it_is_whole(visit, page_server: Page) -> None:
    log = page_server.session.folder / "segments" / "0001" / "entries.log"
    whole = log.read_bytes()
    log.write_bytes(b"x" + whole[1:])
    try:
        tab = visit("status of 503", early=lambda _: None)
        tab.wait_for_selector("#error:has-text('Line 1 of')")
        assert "is damaged. 'person-search verify' lists" in tab.inner_text("#error")
        assert tab.inner_text("#gallery") == "The gallery is not open."
        give(tab, "drop", "me.png")
        tab.wait_for_selector("#error:has-text('Line 1 of')")
    finally:
        log.write_bytes(whole)
    give(tab, "drop", "me.png")
    until_open(tab)
    tab.wait_for_selector("#hint:has-text('me.png')")
    assert tab.locator("#error").is_hidden()


@needs_browser
def test_drawing_that_the_system_breaks_off(visit) -> None:
    """A call, a gesture of the system: what was marked before is marked again."""
    tab = visit(viewport={"width": 360, "height": 740}, has_touch=True, is_mobile=True)
    choose_file(tab)
    tab.locator("#draw").tap()
    tab.locator(".person").nth(1).tap()
    before = numbers(tab)
    assert before == ["50", "0", "100", "80"]
    touch = fingers(tab)
    for end in ("touchCancel", "touchEnd"):
        touch("touchStart", (0.1, 0.2))
        touch("touchMove", (0.3, 0.5))
        assert tab.locator("#drawn").is_visible()
        if end == "touchEnd":  # a line is not a box
            touch("touchMove", (0.3, 0.2))
        touch(end)
        until(tab, "document.getElementById('drawn').hidden")
        assert numbers(tab) == before
        assert tab.locator(".person").nth(1).get_attribute("aria-pressed") == "true"
    assert tab.locator("#chosen li").count() == 1
    touch("touchStart", (0.1, 0.2))
    touch("touchMove", (0.4, 0.8))
    touch("touchEnd")
    assert numbers(tab) == ["10", "16", "40", "64"], "and drawing goes on"


@needs_browser
def test_a_second_finger_while_drawing(visit) -> None:
    tab = visit(viewport={"width": 360, "height": 740}, has_touch=True, is_mobile=True)
    choose_file(tab)
    tab.locator("#draw").tap()
    touch = fingers(tab)
    touch("touchStart", (0.1, 0.2))
    touch("touchMove", (0.3, 0.5))
    touch("touchStart", (0.3, 0.5), (0.9, 0.9))
    touch("touchMove", (0.4, 0.8))  # the second one is gone
    touch("touchEnd")
    assert numbers(tab) == ["10", "16", "40", "64"]
    with tab.expect_request("**/api/search") as request:
        tab.click("#search")
    assert request.value.post_data_json["persons"][0]["box"] == [10, 16, 40, 64]
    found(tab)
