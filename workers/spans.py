"""Named spans of the training thread."""

import time
from collections.abc import Iterator
from contextlib import contextmanager


class Spans:
    """Seconds by name since the last `take`."""

    def __init__(self) -> None:
        self._seconds: dict[str, float] = {}
        self._started = time.perf_counter()

    @contextmanager
    def span(self, name: str) -> Iterator[None]:
        started = time.perf_counter()
        try:
            yield
        finally:
            self._seconds[name] = self._seconds.get(name, 0.0) + time.perf_counter() - started

    def rest(self, name: str) -> None:
        """Counts all time since the last take that belongs to no span as `name`."""
        elapsed = time.perf_counter() - self._started
        self._seconds[name] = self._seconds.get(name, 0.0) + elapsed - sum(self._seconds.values())

    def take(self) -> tuple[float, dict[str, float]]:
        """Seconds since the last take, and those of each span; starts anew."""
        now = time.perf_counter()
        total, seconds = now - self._started, self._seconds
        self._started, self._seconds = now, {}
        return total, seconds
