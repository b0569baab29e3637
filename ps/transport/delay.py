"""A longer way in place of the one that there is: what comes out has come in so many seconds before, and may be as much as ever."""

import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")
_END = object()


def delayed(
    items: Iterable[T], delay_s: float, *, clock: Callable[[], float] = time.monotonic, wait: Callable[[float], None] = time.sleep
) -> Iterator[T]:
    """The items, each `delay_s` after it was there; an error likewise. A thread takes them meanwhile, which ends when they do."""
    taken: queue.SimpleQueue[tuple[float, object]] = queue.SimpleQueue()

    def take() -> None:
        end: object = _END
        try:
            for item in items:
                taken.put((clock() + delay_s, item))
        except Exception as error:  # noqa: BLE001 - whatever it is, it is the reader's
            end = _Raised(error)
        taken.put((clock() + delay_s, end))

    threading.Thread(target=take, name="delayed", daemon=True).start()
    while True:
        due, item = taken.get()
        if (left_s := due - clock()) > 0:
            wait(left_s)
        if item is _END:
            return
        if isinstance(item, _Raised):
            raise item.error
        yield item  # type: ignore[misc]


class _Raised:
    def __init__(self, error: Exception) -> None:
        self.error = error
