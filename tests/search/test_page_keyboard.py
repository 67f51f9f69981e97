# SPDX-License-Identifier: Apache-2.0
"""The page in a real browser: focus, and messages beside the fields."""

from page_tiny import embedder, make_gallery, paint_halves, running
from page_visit import (
    choose_file,
    chromium,
    focused,
    found,
    look,
    needs_browser,
    numbers,
    page_server,
    visit,
)

from person_search.search import find_sources, index_images

__all__ = ["chromium", "look", "page_server", "visit"]  # fixtures


def is_in_view(tab) -> bool:
    """Whether what has the focus can be seen without scrolling."""
    return tab.evaluate(
        "(r => r.top >= 0 && r.bottom <= innerHeight)"
        "(document.activeElement.getBoundingClientRect())"
    )


@needs_browser
def test_the_focus_after_a_person_is_removed(visit) -> None:
    """The next one, the one before the last, and the choice of an image when none is left."""
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
        assert is_in_view(tab)
    assert tab.inner_text("#status") == "The person in a.png is removed."
    assert tab.locator("#chosen li").count() == 0 and tab.locator("#search").is_disabled()


@needs_browser
def test_a_tap_does_not_scroll_away(visit) -> None:
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
    tab.locator(".images").first.press("Enter")
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
    assert tab.evaluate("document.activeElement.className") == "images"


@needs_browser
def test_the_focus_after_the_rest_is_listed(chromium, tmp_path) -> None:
    gallery = make_gallery(tmp_path)
    for i in range(22):
        paint_halves(tmp_path / "images" / f"e{i:02d}.png", ((9 * i, 0, 9), (0, 9 * i, 9)))
    index_images(embedder(), gallery, find_sources([tmp_path / "images"]))
    with running(gallery) as page:
        tab = chromium.new_page()
        tab.goto(page.address)
        tab.click("#browse summary")
        tab.wait_for_selector("#shown:has-text('24 of 26')")
        tab.locator("#more").press("Enter")
        tab.wait_for_selector("#shown:has-text('26 of 26')")
        assert tab.locator("#more").is_hidden() and focused(tab) == "e20.png"
        tab.close()


WRONG = [
    ({"x2": "5"}, "“right” (5) must exceed “left” (50) by at least 2.", ["x1", "x2"]),
    ({"x2": "51"}, "“right” (51) must exceed “left” (50) by at least 2.", ["x1", "x2"]),
    ({"y1": "80"}, "“bottom” (80) must exceed “top” (80) by at least 2.", ["y1", "y2"]),
    ({"x2": "500"}, "“right” is 500; the image extends from 0 to 100.", ["x2"]),
    ({"y1": "-3"}, "“top” is -3; the image extends from 0 to 80.", ["y1"]),
    ({"y2": "1e"}, "“bottom” is not a number.", ["y2"]),
    ({"x1": "", "y2": ""}, "Missing: left, bottom.", []),
]
"""What is typed over the box 50, 0, 100, 80; what is said; which fields are marked."""


@needs_browser
def test_invalid_coordinates(visit) -> None:
    """Said beside them, kept as typed, and not searched with; the mark stays."""
    tab = visit()
    choose_file(tab)
    tab.click("#numbers summary")
    told, right = tab.locator("#numbers-note"), tab.locator(".person").nth(1)
    assert told.get_attribute("aria-live") == "polite"
    for typed, note, wrong in WRONG:
        right.click()  # a mark that is whole takes the place of what was typed
        assert told.inner_text() == "" and tab.locator("[aria-invalid]").count() == 0
        for field, value in typed.items():
            tab.locator(f"#{field}").press("Control+a")
            tab.keyboard.press("Delete")
            tab.keyboard.type(value)
        tab.keyboard.press("Tab")
        assert told.inner_text().startswith(note)
        marked = [one.get_attribute("id") for one in tab.locator("[aria-invalid=true]").all()]
        assert marked == wrong
        expected = {"x1": "50", "y1": "0", "x2": "100", "y2": "80", **typed}
        unread = typed.get("y2") == "1e"  # such a text is there, but is not given out
        assert numbers(tab) == list({**expected, **({"y2": ""} if unread else {})}.values())
        assert tab.evaluate("document.getElementById('y2').validity.badInput") == unread
        assert right.get_attribute("aria-pressed") == "true" and tab.locator("#drawn").is_hidden()
        tab.click("#search")
        assert note in tab.inner_text("#error") and tab.locator("#found").is_hidden()
        assert focused(tab) == (wrong[0] if wrong else next(iter(typed)))
    right.click()
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
    assert notes[:2] == ["Missing: top, right, bottom.", "Missing: right, bottom."]
    assert notes[2] == notes[3] and "by at least 2" in notes[3]
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


@needs_browser
def test_a_wrong_field_is_in_view(visit) -> None:
    """Where its keyboard opens on a phone."""
    tab = visit(viewport={"width": 360, "height": 740}, has_touch=True, is_mobile=True)
    choose_file(tab)
    tab.locator(".person").first.tap()
    tab.locator("#filters summary").tap()
    tab.fill("#top", "0")
    tab.locator("#search").tap()
    assert focused(tab) == "top" and is_in_view(tab)
    assert "Matches" in tab.inner_text("#error")


@needs_browser
def test_enter_in_a_filter_searches(visit) -> None:
    tab = visit()
    choose_file(tab)
    tab.locator("#filters summary").press("Enter")
    tab.locator("#top").fill("2")
    tab.locator("#top").press("Enter")
    assert tab.locator("#found").is_hidden() and tab.locator("#error").is_hidden(), (
        "no person is marked"
    )
    tab.locator(".person").first.press("Enter")
    tab.locator("#top").press("Enter")
    assert len(found(tab)) == 2


@needs_browser
def test_the_focus_is_seen_on_persons_at_the_edge_of_the_image(visit, look) -> None:
    """On all four sides, on a picked one, too."""
    tab = visit()
    choose_file(tab)
    for pressed in (False, True):
        tab.locator("#draw").focus()
        before = look(tab, "unfocused").astype(int)
        tab.keyboard.press("Shift+Tab")
        tab.keyboard.press("Shift+Tab")
        assert focused(tab).startswith("Person 1 of 2")
        box = tab.locator(".person").first.bounding_box()
        x1, y1 = round(box["x"]), round(box["y"])
        x2, y2 = round(box["x"] + box["width"]), round(box["y"] + box["height"])
        changed = (abs(look(tab, "focused").astype(int) - before).max(axis=2) > 60)[y1:y2, x1:x2]
        for side in (changed[:8], changed[-8:], changed[:, :8], changed[:, -8:]):
            assert side.mean() > 0.25, pressed
        tab.keyboard.press("Enter")


@needs_browser
def test_what_is_told_about_a_box_that_is_moved(visit) -> None:
    tab = visit()
    choose_file(tab)
    tab.locator("#draw").press("Enter")
    tab.keyboard.press("ArrowRight")
    assert tab.inner_text("#status") == "Box from 42, 20 to 62, 60."


@needs_browser
def test_long_names_are_wrapped(visit) -> None:
    tab = visit(viewport={"width": 320, "height": 640}, has_touch=True, is_mobile=True)
    choose_file(tab, name="x" * 96 + ".png")
    assert tab.evaluate("document.documentElement.scrollWidth") == 320
