"""How the training thread waits for what the receiving threads bring: it is woken for what it waits for, not for every frame."""

import threading
import time
from collections.abc import Callable


class Waiter:
    """One thread waits, any may bring news; all of it under `changed`.

    `count` takes every stretch of the wait between two pieces of news, in seconds, and whether frames waited to leave at its
    start, as `is_blocked` says.
    """

    def __init__(
        self,
        changed: threading.Condition,
        count: Callable[[float, bool], None],
        is_blocked: Callable[[], bool],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._changed = changed
        self._count = count
        self._is_blocked = is_blocked
        self._clock = clock
        self._done: Callable[[], bool] | None = None
        """What is waited for."""
        self._since: tuple[float, bool] | None = None
        """Start of the stretch that is not counted yet, and whether frames waited to leave."""

    def wait(self, done: Callable[[], bool], limit_s: float) -> None:
        """Returns when news makes `done` true, at the latest after `limit_s`; perhaps earlier."""
        self._done, self._since = done, (self._clock(), self._is_blocked())
        self._changed.wait(limit_s)
        self._end_stretch()
        self._done = self._since = None

    def news(self) -> None:
        """Something has come: wakes the one in `wait` if it is what that waits for; without one, everybody."""
        self._end_stretch()
        if self._done is None or self._done():
            self._changed.notify_all()

    def _end_stretch(self) -> None:
        if self._since is not None:
            started, blocked = self._since
            now = self._clock()
            self._count(now - started, blocked)
            self._since = now, self._is_blocked()
