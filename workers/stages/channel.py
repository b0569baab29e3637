"""What travels between two neighbouring stages, in one direction."""

import threading
from collections import deque
from typing import Generic, TypeVar

from ps.errors import Stopped

T = TypeVar("T")


class Channel(Generic[T]):
    """A bounded queue between threads; any thread may `end` it."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        # guards what follows
        self._changed = threading.Condition()
        self._items: deque[T] = deque()
        self._reason: str | None = None

    def put(self, item: T) -> None:
        """Waits for room. Raises Stopped once the channel has ended."""
        with self._changed:
            self._changed.wait_for(lambda: self._reason is not None or len(self._items) < self._capacity)
            self._check()
            self._items.append(item)
            self._changed.notify_all()

    def take(self) -> T:
        """Waits for an item; they come in the order in which they were put. Raises Stopped once the channel has ended."""
        with self._changed:
            self._changed.wait_for(lambda: self._reason is not None or bool(self._items))
            self._check()
            self._changed.notify_all()
            return self._items.popleft()

    def end(self, reason: str) -> None:
        """Who waits at either side, now or later, raises Stopped with the first reason."""
        with self._changed:
            self._reason = self._reason or reason
            self._changed.notify_all()

    def _check(self) -> None:
        if self._reason is not None:
            raise Stopped(self._reason)
