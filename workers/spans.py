"""Named spans of the training thread."""

import time
from collections.abc import Iterator
from contextlib import contextmanager


class Spans:
    """Exclusive seconds by name since the last `take`: time in a span inside of another counts for the inner one alone."""

    def __init__(self) -> None:
        self._seconds: dict[str, float] = {}
        self._started = self._marked = time.perf_counter()
        self._open: list[str] = []

    @contextmanager
    def span(self, name: str) -> Iterator[None]:
        self._mark()
        self._open.append(name)
        try:
            yield
        finally:
            self._mark()
            self._open.pop()

    def _mark(self) -> None:
        """Counts the time since the last mark for the innermost open span."""
        now = time.perf_counter()
        if self._open:
            self._seconds[self._open[-1]] = self._seconds.get(self._open[-1], 0.0) + now - self._marked
        self._marked = now

    def rest(self, name: str) -> None:
        """Counts all time since the last take that belongs to no span as `name`."""
        self._mark()
        self._seconds[name] = self._seconds.get(name, 0.0) + self._marked - self._started - sum(self._seconds.values())

    def take(self) -> tuple[float, dict[str, float]]:
        """Seconds since the last take, and those of each span; starts anew, in the middle of spans too."""
        self._mark()
        total, seconds = self._marked - self._started, self._seconds
        self._started, self._seconds = self._marked, {}
        return total, seconds
