"""Named spans of the training thread."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

COMPUTE = ("forward", "backward")
"""Spans in which the rank computes."""
_UNNAMED = ""
"""What is in no span."""
_LEAST_S = 5e-4
"""A shorter wait would last longer than it should."""


class Spans:
    """Exclusive seconds by name since the last `take`: time in a span inside of another counts for the inner one alone.

    `slowdown`: the spans of COMPUTE take so many times as long, for every stretch of it is followed by a wait: simulates a slow host.
    """

    def __init__(self, *, slowdown: float = 1.0, wait: Callable[[float], None] = time.sleep, clock: Callable[[], float] = time.perf_counter) -> None:
        self._more = slowdown - 1.0
        self._wait = wait
        self._clock = clock
        self._owed_s = 0.0
        self._seconds: dict[str, float] = {}
        self._cpu_s: dict[str, float] = {}
        """Of those seconds, what the thread had of a processor."""
        self._started = self._marked = clock()
        self._cpu_marked = time.thread_time()
        self._open: list[str] = []
        self.compute_cpu_s = 0.0
        """Of the spans of COMPUTE in the last `take`: seconds in which the thread had a processor."""

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
        """Counts the time since the last mark for the innermost open span, or as unnamed."""
        now, cpu_now = self._clock(), time.thread_time()
        name = self._open[-1] if self._open else _UNNAMED
        if name in COMPUTE:
            now = self._stretched(now, now - self._marked)
        self._seconds[name] = self._seconds.get(name, 0.0) + now - self._marked
        self._cpu_s[name] = self._cpu_s.get(name, 0.0) + cpu_now - self._cpu_marked
        self._marked, self._cpu_marked = now, cpu_now

    def _stretched(self, now: float, compute_s: float) -> float:
        """When what so many seconds of compute, which end `now`, owe has been waited for, as far as it is worth a wait."""
        self._owed_s += compute_s * self._more
        if self._owed_s < _LEAST_S:
            return now
        self._wait(self._owed_s)
        waited = self._clock()
        self._owed_s -= waited - now
        return waited

    def rest(self, name: str) -> None:
        """Counts all time since the last take, or rest, that belongs to no span as `name`."""
        self._mark()
        seconds, cpu_s = self._seconds.pop(_UNNAMED, 0.0), self._cpu_s.pop(_UNNAMED, 0.0)
        if name in COMPUTE:
            seconds += (waited := self._stretched(self._marked, seconds)) - self._marked
            self._marked = waited
        self._seconds[name] = self._seconds.get(name, 0.0) + seconds
        self._cpu_s[name] = self._cpu_s.get(name, 0.0) + cpu_s

    def take(self) -> tuple[float, dict[str, float]]:
        """Seconds since the last take, and those of each span; starts anew, in the middle of spans too."""
        self._mark()
        total, seconds = self._marked - self._started, self._seconds
        seconds.pop(_UNNAMED, None)
        self.compute_cpu_s = sum(self._cpu_s.get(name, 0.0) for name in COMPUTE)
        self._started, self._seconds, self._cpu_s = self._marked, {}, {}
        return total, seconds
