# SPDX-License-Identifier: Apache-2.0
"""The session behind the page: several threads, a gallery that changes, what is in memory."""

import threading
import weakref
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from page_tiny import embedder, image_bytes, make_gallery

from person_search.search import Gallery, IndexOptions, find_sources, index_images
from person_search.search.page.rendering import Decoded
from person_search.search.page.session import Choice, PageSession, SearchRequest
from person_search.search.page.uploads import UnknownImageError, UploadLimits
from person_search.search.results import report_html
from person_search.utils.model_card import ModelCard


@pytest.fixture
def session(tmp_path: Path) -> Iterator[PageSession]:
    with closing(PageSession(make_gallery(tmp_path), embedder())) as session:
        yield session


def first_key(session: PageSession) -> str:
    return session.list_images(0, 1)["images"][0]["id"]


def test_an_answer_keeps_to_one_state_of_the_gallery(session: PageSession, tmp_path: Path) -> None:
    """The gallery changes between two steps of an answer; its image 0 becomes another one."""
    key = first_key(session)
    old = session._resolve(key)
    result = session.search(SearchRequest([Choice(key, 0)]))
    (tmp_path / "images" / "a.png").unlink()
    listing = find_sources([tmp_path / "images"])
    index_images(embedder(), session.folder, listing, IndexOptions(prune=True))
    assert session.describe()["images"] == 3
    assert first_key(session)[-2:] == key[-2:] == "-0", "the same number, now of b.png"
    assert session._persons(old).feats[0].argmax() == 0, "red, as in a.png"
    with pytest.raises(FileNotFoundError, match=r"a\.png"):
        session._pixels(old)
    with pytest.raises(UnknownImageError, match="has changed"):
        session.match_facts(result)


def test_the_card_of_the_model_and_a_misfit_are_shown(session: PageSession) -> None:
    facts = session.describe()
    assert facts["model"] == "unknown (the weights have no model card)" and not facts["warning"]
    session.embedder.card = ModelCard("Colors", kind="photographs")
    facts = session.describe()
    assert facts["model"] == "Colors, trained on photographs"
    assert "these images seem to be drawn" in facts["warning"], "uniform colors"


def test_only_who_needs_the_model_waits_for_it(session: PageSession) -> None:
    at_work, done = threading.Event(), threading.Event()
    detect = session.embedder.detect

    def slow(image: np.ndarray):
        at_work.set()
        assert done.wait()
        return detect(image)

    session.embedder.detect = slow  # type: ignore[method-assign]

    def others() -> tuple[int, int, int]:
        key = first_key(session)
        found = session.search(SearchRequest([Choice(key, 0)])).matches
        return session.describe()["images"], len(found), len(session.describe_image(key)["persons"])

    with ThreadPoolExecutor(2) as threads:
        upload = threads.submit(session.upload, image_bytes(), "me.png")
        try:
            assert at_work.wait()
            assert threads.submit(others).result() == (4, 3, 2)
            assert not upload.done()
        finally:
            done.set()
        assert len(upload.result()["persons"]) == 2


def test_decoded_images_are_kept_up_to_a_number_of_pixels() -> None:
    decoded, read = Decoded(pixels=250), []

    def get(key: str) -> None:
        decoded.get(key, lambda: read.append(key) or np.zeros((10, 10, 3), np.uint8))

    for key in "aabacab":
        get(key)
    assert "".join(read) == "abcb"


def test_an_image_that_two_ask_for_is_decoded_once() -> None:
    """A scene and its crop come at the same time."""
    decoded, read, two = Decoded(), [], threading.Event()

    def slow() -> np.ndarray:
        read.append(1)
        if len(read) == 2:
            two.set()
        two.wait(0.5)  # time enough for the other thread to read as well
        return np.zeros((10, 10, 3), np.uint8)

    with ThreadPoolExecutor(2) as threads:
        first, second = [threads.submit(decoded.get, "a", slow) for _ in range(2)]
        assert first.result() is second.result()
    assert read == [1]


def test_a_report_has_one_scene_at_a_time_in_memory(session: PageSession, monkeypatch) -> None:
    result = session.search(SearchRequest([Choice(first_key(session), 0)]))
    scenes, most = [], 0

    read_image = Gallery.read_image

    def read(gallery: Gallery, image: int) -> np.ndarray:
        nonlocal most
        scene = read_image(gallery, image)
        scenes.append(weakref.ref(scene))
        most = max(most, sum(one() is not None for one in scenes))
        return scene

    monkeypatch.setattr(Gallery, "read_image", read)
    assert report_html(result, 3).count("Rank ") == 3
    assert len(scenes) == 3 and most <= 2, "the one before may still have a name"


def test_embeddings_of_an_upload_are_forgotten_with_it(tmp_path: Path) -> None:
    """Also those that are found while it is being forgotten."""
    size = len(image_bytes())
    for limits in (UploadLimits(count=2), UploadLimits(total_bytes=2 * size)):
        gallery = make_gallery(tmp_path / str(limits.count))
        with closing(PageSession(gallery, embedder(), limits)) as session:
            keys = [session.upload(image_bytes(), name)["id"] for name in "abc"]
            assert len(session._detected) == 2
            session.uploads.remove(keys[-1][2:])
            assert len(session._detected) == 1
            detect = session.embedder.detect

            def forgetting(image: np.ndarray, session=session, detect=detect):
                session.uploads.close()
                return detect(image)

            session.embedder.detect = forgetting  # type: ignore[method-assign]
            session.upload(image_bytes(), "d")
            assert len(session._detected) == 0
