import queue
import threading
from collections.abc import Iterator

import pytest

from ps.errors import Unreachable
from ps.transport.delay import delayed


class Clock:
    """Time that passes when somebody waits."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now

    def wait(self, seconds: float) -> None:
        self.now += seconds


def taken_by_now() -> None:
    """Returns when the threads that take have ended."""
    for thread in threading.enumerate():
        if thread.name == "delayed":
            thread.join(5)


def test_many_items_are_on_their_way_at_once() -> None:
    clock = Clock()

    def wait(seconds: float) -> None:
        taken_by_now()  # time stands still until all are on their way
        clock.wait(seconds)

    items = delayed(range(1000), 0.5, clock=clock, wait=wait)
    assert [(item, clock.now) for item in items] == [(item, 100.5) for item in range(1000)]


def test_each_item_comes_so_much_after_it_was_there() -> None:
    clock, source = Clock(), queue.SimpleQueue[int]()
    items = delayed(iter(source.get, 0), 0.5, clock=clock, wait=clock.wait)
    source.put(1)
    assert (next(items), clock.now) == (1, 100.5)
    clock.now = 200.0
    source.put(2)
    assert (next(items), clock.now) == (2, 200.5)
    source.put(0)
    assert list(items) == []


def test_an_error_comes_after_what_came_before_it() -> None:
    def broken() -> Iterator[bytes]:
        yield b"frame"
        raise Unreachable("gone")

    items = delayed(broken(), 0.001)
    assert next(items) == b"frame"
    with pytest.raises(Unreachable, match="gone"):
        next(items)
