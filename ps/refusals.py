"""How long strangers wait until they are told that they are: a few at once not at all, more the longer the more come."""

import contextlib
import threading
from collections.abc import Callable, Iterator

PER_S = 10.0
"""Refusals a second, each of which takes a millisecond or two; whoever asks again as soon as it is refused takes no more of the processor."""
AT_ONCE = 20
"""Of them without a wait."""
MOST_S = 2.0
"""Nobody waits longer."""


class Refusals:
    """Thread-safe. At most `most_waiting` wait at the same time: the next ones are refused at once, for what waits takes memory."""

    def __init__(self, most_waiting: int, clock: Callable[[], float]) -> None:
        self._most_waiting = most_waiting
        self._clock = clock
        self._lock = threading.Lock()  # guards everything below
        self._due_s = 0.0
        """When the next one would have its turn, if none were taken before its time."""
        self._waiting = 0

    @contextlib.contextmanager
    def wait_s(self) -> Iterator[float]:
        """Seconds until the refusal of now; the caller sleeps in the block."""
        with self._lock:
            now = self._clock()
            ahead = AT_ONCE / PER_S
            self._due_s = min(max(self._due_s, now) + 1 / PER_S, now + ahead + MOST_S)
            wait_s = max(0.0, self._due_s - ahead - now)
            waits = wait_s > 0 and self._waiting < self._most_waiting
            self._waiting += waits
        try:
            yield wait_s if waits else 0.0
        finally:
            with self._lock:
                self._waiting -= waits
