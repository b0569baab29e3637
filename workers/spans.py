"""Named spans of the training thread."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

_LEAST_S = 5e-4
"""A shorter wait would last longer than it should."""


class Spans:
    """Exclusive seconds by name since the last `take`: time in a span inside of another counts for the inner one alone.

    `slowdown`: the span "compute" takes so many times as long, for every stretch of it is followed by a wait: simulates a slow host.
    """

    def __init__(self, *, slowdown: float = 1.0, wait: Callable[[float], None] = time.sleep) -> None:
        self._more = slowdown - 1.0
        self._wait = wait
        self._owed_s = 0.0
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
        if self._open and self._open[-1] == "compute":
            now = self._stretched(now, now - self._marked)
        if self._open:
            self._seconds[self._open[-1]] = self._seconds.get(self._open[-1], 0.0) + now - self._marked
        self._marked = now

    def _stretched(self, now: float, compute_s: float) -> float:
        """When what so many seconds of compute, which end `now`, owe has been waited for, as far as it is worth a wait."""
        self._owed_s += compute_s * self._more
        if self._owed_s < _LEAST_S:
            return now
        self._wait(self._owed_s)
        waited = time.perf_counter()
        self._owed_s -= waited - now
        return waited

    def rest(self, name: str) -> None:
        """Counts all time since the last take that belongs to no span as `name`."""
        self._mark()
        if name == "compute":
            self._marked = self._stretched(self._marked, self._unnamed_s)
        self._seconds[name] = self._seconds.get(name, 0.0) + self._unnamed_s

    @property
    def _unnamed_s(self) -> float:
        return self._marked - self._started - sum(self._seconds.values())

    def take(self) -> tuple[float, dict[str, float]]:
        """Seconds since the last take, and those of each span; starts anew, in the middle of spans too."""
        self._mark()
        total, seconds = self._marked - self._started, self._seconds
        self._started, self._seconds = self._marked, {}
        return total, seconds
