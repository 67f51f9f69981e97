# SPDX-License-Identifier: Apache-2.0
"""The page in a real browser: where the focus goes, and what is said beside a field."""

import pytest
from page_tiny import make_gallery, paint_halves, running, searcher
from page_visit import (
    choose_file,
    chromium,
    focused,
    found,
    look,
    needs_browser,
    numbers,
    page_server,
    until,
    visit,
)

from person_search.search import find_sources, index_pictures

__all__ = ["chromium", "look", "page_server", "visit"]  # fixtures


@needs_browser
def test_the_focus_after_a_person_is_removed(visit) -> None:
    """The next one, the one before the last, and the choice of a picture when none is left."""
    tab = visit()
    tab.click("#browse summary")
    for name in ("a.png", "b.png", "c.png"):
        tab.click(f".thumbs button[title='{name}']")
        tab.wait_for_selector(f"#hint:has-text('{name}')")
        tab.locator(".person").first.click()
        tab.click("#another")
    assert focused(tab) == "file"
    tab.locator("#chosen button").nth(1).focus()
    for left in ("Remove the person in c.png", "Remove the person in a.png", "file"):
        tab.keyboard.press("Enter")
        assert focused(tab) == left
        until(tab, "(r => r.top >= 0 && r.bottom <= innerHeight)"
                   "(document.activeElement.getBoundingClientRect())")  # fmt: skip
    assert tab.inner_text("#status") == "The person in a.png is removed."
    assert tab.locator("#chosen li").count() == 0 and tab.locator("#search").is_disabled()


@needs_browser
def test_who_points_is_not_carried_away(visit) -> None:
    tab = visit(viewport={"width": 360, "height": 740}, has_touch=True, is_mobile=True)
    choose_file(tab)
    tab.locator(".person").first.tap()
    tab.locator("#chosen button").tap()
    assert focused(tab) == "file"
    seen = tab.locator("#ask-title").bounding_box()
    assert 0 <= seen["y"] < 740


@needs_browser
def test_the_focus_when_a_button_has_done_its_work(visit) -> None:
    tab = visit()
    choose_file(tab)
    tab.locator(".person").first.click()
    tab.locator("#search").press("Enter")
    count = len(found(tab))
    tab.locator(".pictures").first.press("Enter")
    tab.locator("#next").focus()
    for _ in range(count - 1):
        tab.keyboard.press("Enter")
    assert focused(tab) == "previous", "the last one is shown"
    tab.keyboard.press("ArrowLeft")
    assert tab.inner_text("#large-title").startswith(f"{count - 1}. ")
    for _ in range(count - 2):
        tab.keyboard.press("Enter")
    assert focused(tab) == "next" and tab.inner_text("#large-title").startswith("1. ")
    tab.keyboard.press("Escape")
    assert tab.evaluate("document.activeElement.className") == "pictures"


@needs_browser
def test_the_focus_after_the_rest_is_listed(chromium, tmp_path) -> None:
    gallery = make_gallery(tmp_path)
    for i in range(22):
        paint_halves(tmp_path / "pictures" / f"e{i:02d}.png", ((9 * i, 0, 9), (0, 9 * i, 9)))
    index_pictures(searcher(), gallery, find_sources([tmp_path / "pictures"]))
    with running(gallery) as page:
        tab = chromium.new_page()
        tab.goto(page.address)
        tab.click("#browse summary")
        tab.wait_for_selector("#shown:has-text('24 of 26')")
        tab.locator("#more").press("Enter")
        tab.wait_for_selector("#shown:has-text('26 of 26')")
        assert tab.locator("#more").is_hidden() and focused(tab) == "e20.png"
        tab.close()


@needs_browser
@pytest.mark.parametrize(
    ("typed", "note", "wrong"),
    [
        ({"x2": "5"}, "“right” (5) must be at least 2 more than “left” (50).", ["x1", "x2"]),
        ({"x2": "51"}, "“right” (51) must be at least 2 more than “left” (50).", ["x1", "x2"]),
        ({"y1": "80"}, "“bottom” (80) must be at least 2 more than “top” (80).", ["y1", "y2"]),
        ({"x2": "500"}, "“right” is 500; the picture reaches from 0 to 100.", ["x2"]),
        ({"y1": "-3"}, "“top” is -3; the picture reaches from 0 to 80.", ["y1"]),
        ({"y2": "1e"}, "“bottom” is no number.", ["y2"]),
        ({"x1": "", "y2": ""}, "Still missing: left, bottom.", []),
    ],
)
def test_numbers_that_are_no_box(visit, typed: dict, note: str, wrong: list[str]) -> None:
    """Said beside them, kept as typed, and not searched with; the mark stays."""
    tab = visit()
    choose_file(tab)
    tab.locator(".person").nth(1).click()
    tab.click("#numbers summary")
    before = dict(zip(("x1", "y1", "x2", "y2"), numbers(tab), strict=True))
    for field, value in typed.items():
        tab.locator(f"#{field}").press("Control+a")
        tab.keyboard.press("Delete")
        tab.keyboard.type(value)
    tab.keyboard.press("Tab")
    told = tab.locator("#numbers-note")
    assert told.inner_text().startswith(note) and told.get_attribute("aria-live") == "polite"
    marked = [one.get_attribute("id") for one in tab.locator("[aria-invalid=true]").all()]
    assert marked == wrong
    kept = dict(zip(before, numbers(tab), strict=True))  # what is no number cannot be read
    assert kept == {**before, **typed, **({"y2": ""} if "1e" in typed.values() else {})}
    assert tab.evaluate("document.getElementById('y2').validity.badInput") == (
        "1e" in typed.values()
    )
    assert tab.locator(".person").nth(1).get_attribute("aria-pressed") == "true"
    assert tab.locator("#drawn").is_hidden()
    tab.click("#numbers summary")
    tab.click("#search")
    assert note in tab.inner_text("#error") and tab.locator("#found").is_hidden()
    assert focused(tab) == (wrong[0] if wrong else next(iter(typed)))
    tab.locator(".person").first.click()  # a mark that is whole takes their place
    assert told.inner_text() == "" and tab.locator("[aria-invalid]").count() == 0
    tab.click("#search")
    found(tab)


@needs_browser
def test_a_box_is_typed_from_nothing(visit, look) -> None:
    tab = visit()
    choose_file(tab)
    tab.click("#numbers summary")
    tab.locator("#x1").focus()
    notes = []
    for value in ("60", "10", "40", "70"):
        tab.keyboard.type(value)
        tab.keyboard.press("Tab")
        notes.append(tab.inner_text("#numbers-note"))
    assert notes[:2] == ["Still missing: top, right, bottom.", "Still missing: right, bottom."]
    assert notes[2] == notes[3] and "must be at least 2 more" in notes[3]
    assert tab.locator("#chosen li").count() == 0 and numbers(tab) == ["60", "10", "40", "70"]
    look(tab, "numbers")
    tab.locator("#x2").press("Control+a")
    tab.keyboard.type("90")
    assert tab.inner_text("#numbers-note") == "", "as soon as it is right"
    tab.keyboard.press("Enter")
    assert tab.locator("#chosen li").count() == 1 and tab.locator("#drawn").is_visible()


@needs_browser
def test_what_is_under_way_can_be_seen_wherever_one_is(visit, look) -> None:
    tab = visit(viewport={"width": 360, "height": 740}, has_touch=True, is_mobile=True)
    choose_file(tab)
    tab.locator(".person").first.tap()
    tab.route("**/api/search", lambda route: held.append(route))
    held: list = []
    tab.locator("#search").tap()
    assert tab.evaluate("scrollY > document.getElementById('status').parentElement.offsetTop")
    seen = tab.locator("#status").bounding_box()
    assert tab.inner_text("#status") == "Searching …" and 0 <= seen["y"] < 740
    look(tab, "phone_busy")
    held[0].continue_()
    found(tab)
