# SPDX-License-Identifier: Apache-2.0
"""The page in a real browser without a window: mouse, keyboard, phone."""

import json
from pathlib import Path

import numpy as np
import pytest
from page_tiny import BLUE, GREEN, RED
from page_visit import (
    choose_file,
    chromium,
    fingers,
    focused,
    found,
    give,
    images_are_loaded,
    look,
    needs_browser,
    numbers,
    page_server,
    until,
    until_first_is,
    visit,
)

__all__ = ["chromium", "look", "page_server", "visit"]  # fixtures


@needs_browser
def test_pick_a_person_and_search(visit, look) -> None:
    tab = visit()
    choose_file(tab)
    assert tab.locator("#search").is_disabled()
    tab.locator(".person").nth(1).click()
    assert tab.locator(".person[aria-pressed=true]").count() == 1
    assert tab.locator("#chosen li").count() == 1
    tab.click("#search")
    names = found(tab)
    assert len(names) == 4 and set(names[:2]) == {"b.png", "c.png"}
    assert images_are_loaded(tab)
    seen = look(tab, "found", full_page=True)
    for color in (RED, GREEN, BLUE):  # the scenes are to be seen
        assert (abs(seen.astype(int) - color).sum(axis=2) < 40).mean() > 0.01
    assert focused(tab) == "found-title", "where a reader goes on"


@needs_browser
def test_draw_a_box_with_the_mouse(visit, look) -> None:
    """Also across a detected person, whose button must not take the click."""
    tab = visit()
    choose_file(tab, (RED, GREEN))
    stage = tab.locator("#stage").bounding_box()
    at = lambda x, y: (stage["x"] + x * stage["width"], stage["y"] + y * stage["height"])  # noqa: E731
    tab.mouse.move(*at(0.6, 0.1))
    tab.mouse.down()
    tab.mouse.move(*at(0.8, 0.5))
    tab.mouse.move(*at(0.9, 0.8))
    tab.mouse.up()
    assert tab.locator("#drawn").is_visible()
    assert tab.locator(".person[aria-pressed=true]").count() == 0
    assert np.allclose(list(map(float, numbers(tab))), [60, 8, 90, 64], atol=1)
    look(tab, "drawn")
    tab.click("#search")
    assert found(tab)[0] in ("a.png", "b.png")
    tab.locator(".person").first.click()  # another person
    assert tab.locator("#drawn").is_hidden() and tab.locator("#chosen li").count() == 1


@needs_browser
def test_everything_with_the_keyboard(visit) -> None:
    tab = visit()
    choose_file(tab, (RED, GREEN))
    assert focused(tab) == "mark-title"
    tab.keyboard.press("Tab")
    assert focused(tab) == "Person 1 of 2 from the left, score 90 %"
    tab.keyboard.press("Enter")
    assert tab.locator(".person").first.get_attribute("aria-pressed") == "true"
    tab.keyboard.press("Tab")
    tab.keyboard.press("Tab")
    assert focused(tab) == "draw"
    tab.keyboard.press("Space")
    assert focused(tab) == "drawn"
    for key in ("ArrowRight", "ArrowDown", "Shift+ArrowRight", "Shift+ArrowUp"):
        tab.keyboard.press(key)
    assert numbers(tab) == ["42", "22", "64", "60"]
    assert tab.locator(".person[aria-pressed=true]").count() == 0
    tab.locator("#numbers summary").press("Enter")
    tab.locator("#x1").fill("55")
    tab.locator("#x1").press("Enter")
    tab.locator("#search").press("Enter")
    assert found(tab)[0] in ("a.png", "b.png"), "green"
    tab.locator(".images").first.press("Enter")
    assert tab.locator("#large").is_visible()
    first = tab.inner_text("#large-title")
    tab.keyboard.press("ArrowRight")
    assert first.startswith("1. ") and tab.inner_text("#large-title").startswith("2. ")
    tab.keyboard.press("Escape")
    assert tab.locator("#large").is_hidden()


@needs_browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_on_a_phone(visit, look, scheme: str) -> None:
    tab = visit(viewport={"width": 360, "height": 740}, has_touch=True, is_mobile=True,
                device_scale_factor=2, color_scheme=scheme)  # fmt: skip

    def nothing_sticks_out() -> bool:
        return tab.evaluate("document.documentElement.scrollWidth <= window.innerWidth")

    assert nothing_sticks_out()
    choose_file(tab, name="a rather long name of an image from a telephone_2026-05-01.jpg")
    tab.locator(".person").first.tap()
    tab.locator("#filters summary").tap()
    tab.locator("#numbers summary").tap()
    assert nothing_sticks_out()
    small = [
        box
        for one in tab.locator("button:visible:not(.person), .button:visible").all()
        if (box := one.bounding_box()) and min(box["width"], box["height"]) < 36
    ]
    assert small == [], "what a finger has to hit is large enough"
    look(tab, f"phone_{scheme}_marked", full_page=True)
    tab.locator("#search").tap()
    assert len(found(tab)) == 4 and nothing_sticks_out() and images_are_loaded(tab)
    look(tab, f"phone_{scheme}_found", full_page=True)
    tab.locator(".images").first.tap()
    assert tab.locator("#large").is_visible() and nothing_sticks_out()
    look(tab, f"phone_{scheme}_large")


@needs_browser
def test_draw_with_a_finger(visit) -> None:
    """Without "Draw a box" a finger scrolls."""
    tab = visit(viewport={"width": 360, "height": 740}, has_touch=True, is_mobile=True)
    choose_file(tab)
    touch_action = "getComputedStyle(document.getElementById('stage')).touchAction"
    assert tab.evaluate(touch_action) == "auto"
    tab.locator("#draw").tap()
    assert tab.evaluate(touch_action) == "none"
    touch = fingers(tab)
    touch("touchStart", (0.1, 0.2))
    touch("touchMove", (0.3, 0.5))
    touch("touchMove", (0.4, 0.8))
    touch("touchEnd")
    assert np.allclose(list(map(float, numbers(tab))), [10, 16, 40, 64], atol=2)
    assert tab.locator("#chosen li").count() == 1


@needs_browser
def test_images_of_the_gallery_and_several_of_one_person(visit, look) -> None:
    tab = visit()
    tab.click("#browse summary")
    tab.wait_for_selector(".thumbs li")
    assert tab.locator(".thumbs span").all_inner_texts() == ["a.png", "b.png", "c.png", "d.png"]
    tab.select_option("#browse-cameras", "hall")
    tab.wait_for_selector("#shown:has-text('2 of 2')")
    tab.select_option("#browse-cameras", "")
    tab.wait_for_selector("#shown:has-text('4 of 4')")
    look(tab, "browse")
    tab.click(".thumbs button[title='a.png']")
    tab.wait_for_selector("#hint:has-text('a.png')")
    tab.locator(".person").first.click()
    tab.click("#another")
    tab.click(".thumbs button[title='b.png']")
    tab.wait_for_selector("#hint:has-text('b.png')")
    tab.locator(".person").first.click()
    assert tab.locator("#chosen li").count() == 2 and tab.locator("#same").is_visible()
    tab.click("#search")
    assert found(tab)[0] == "d.png", "between red and green"
    tab.locator("#chosen button").nth(1).click()
    assert tab.locator("#chosen li").count() == 1
    tab.click("#search")
    until_first_is(tab, "c.png")
    tab.click(".thumbs button[title='d.png']")  # another search begins
    tab.wait_for_selector("#hint:has-text('d.png')")
    assert tab.locator("#chosen li").count() == 0 and tab.locator("#search").is_disabled()


@needs_browser
def test_search_again_filter_and_save(visit, tmp_path: Path) -> None:
    tab = visit(accept_downloads=True)
    choose_file(tab)
    tab.locator(".person").first.click()
    tab.click("#filters summary")
    tab.get_by_role("checkbox", name="gate").uncheck()
    tab.click("#search")
    assert found(tab) == ["c.png", "d.png"]
    tab.get_by_role("checkbox", name="hall").uncheck()
    tab.click("#search")
    assert tab.inner_text("#error") == "No camera is selected in the filters."
    tab.get_by_role("checkbox", name="hall").check()
    tab.get_by_role("checkbox", name="gate").check()
    tab.locator(".again").first.click()
    until_first_is(tab, "a.png")
    assert "c.png" not in tab.locator(".matches dd:nth-of-type(1)").all_inner_texts()
    for button, name in (("#save-report", "report.html"), ("#save-lines", "results.jsonl")):
        with tab.expect_download() as download:
            tab.click(button)
        assert download.value.suggested_filename == name
        download.value.save_as(tmp_path / name)
    assert (tmp_path / "report.html").read_text().startswith("<!DOCTYPE html>")
    lines = (tmp_path / "results.jsonl").read_text().splitlines()
    assert json.loads(lines[1])["image"].endswith("a.png") and len(lines) == 4


@needs_browser
def test_minimum_similarity(visit, tmp_path: Path) -> None:
    tab = visit()
    choose_file(tab)
    tab.locator(".person").first.click()
    tab.click("#filters summary")
    tab.get_by_label("Minimum similarity").fill("0.99")
    tab.screenshot(path=tmp_path / "filters.png", full_page=True)
    tab.click("#search")
    alike = found(tab)
    tab.get_by_label("Minimum similarity").fill("")
    tab.click("#search")
    until(tab, f"document.querySelectorAll('.matches > li').length > {len(alike)}")
    assert 0 < len(alike) < len(found(tab)) and found(tab)[: len(alike)] == alike


@needs_browser
def test_errors_are_shown(visit) -> None:
    tab = visit(expect="Failed to load resource")
    tab.set_input_files("#file", {"name": "me.png", "mimeType": "image/png", "buffer": b"no"})
    tab.wait_for_selector("#error:has-text('The file is not a readable image')")
    assert tab.locator("#mark").is_hidden()
    tab.route("**/api/uploads", lambda route: route.abort())
    tab.set_input_files("#file", {"name": "me.png", "mimeType": "image/png", "buffer": b"no"})
    tab.wait_for_selector("#error:has-text('does not answer')")
    tab.unroute("**/api/uploads")
    choose_file(tab)
    assert tab.locator("#error").is_hidden()


@needs_browser
def test_drop_and_paste(visit) -> None:
    tab = visit()
    for event in ("drop", "paste"):
        give(tab, event, f"{event}.png")
        tab.wait_for_selector(f"#hint:has-text('{event}.png')")
    give(tab, "drop", "first.png", "second.png")
    tab.wait_for_selector("#status:has-text('The first of 2 files; add the others one by one.')")
    assert "first.png" in tab.inner_text("#hint")
