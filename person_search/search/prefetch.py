# SPDX-License-Identifier: Apache-2.0
"""Reads ahead in a thread while the model computes."""

import queue
import threading
from collections.abc import Generator, Iterable
from typing import TypeVar

T = TypeVar("T")
_END = object()


def read_ahead(items: Iterable[T], ahead: int = 4) -> Generator[T, None, None]:
    """Yields the items in their order while a thread fetches the next ones.

    An error of the source is raised here, after the items before it. When the consumer stops early,
    the thread ends with the item that it is fetching.

    Args:
        items: evaluated in the thread.
        ahead: how many items wait at most.
    """
    waiting: queue.Queue = queue.Queue(ahead)
    stop = threading.Event()

    def put(thing: object) -> bool:
        while not stop.is_set():
            try:
                waiting.put(thing, timeout=0.1)
                return True
            except queue.Full:
                continue
        return False

    def fetch() -> None:
        try:
            for item in items:
                if not put((item, None)):
                    return
            put(_END)
        except BaseException as e:  # handed over, not swallowed
            put((None, e))

    thread = threading.Thread(target=fetch, daemon=True)
    thread.start()
    try:
        while (thing := waiting.get()) is not _END:
            item, error = thing
            if error is not None:
                raise error
            yield item
    finally:
        stop.set()
        thread.join()
