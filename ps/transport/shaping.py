"""A token bucket that stands in for a thin link where none can be made."""

import asyncio
import threading
import time
from collections.abc import Callable


class TokenBucket:
    """Lets bytes pass at `bytes_per_s`, with bursts of at most `burst_bytes`. Thread-safe: takers queue up.

    `clock` gives seconds, `wait` waits for so many.
    """

    def __init__(
        self,
        bytes_per_s: float,
        burst_bytes: int = 1 << 16,
        clock: Callable[[], float] = time.monotonic,
        wait: Callable[[float], None] = time.sleep,
    ) -> None:
        self._rate = bytes_per_s
        self._burst_s = burst_bytes / bytes_per_s
        self._clock = clock
        self._wait = wait
        self._lock = threading.Lock()  # guards _free_at
        self._free_at = clock()

    def take(self, num_bytes: int) -> None:
        """Returns when the bytes have passed."""
        if (delay_s := self.reserve(num_bytes)) > 0:
            self._wait(delay_s)

    def reserve(self, num_bytes: int) -> float:
        """Lets the bytes pass next; seconds until they have."""
        with self._lock:
            now = self._clock()
            self._free_at = max(self._free_at, now - self._burst_s) + num_bytes / self._rate
            return max(0.0, self._free_at - now)


class Link:
    """Both directions of a process's link; unshaped without a rate."""

    def __init__(self, bytes_per_s: float | None, clock: Callable[[], float] = time.monotonic, wait: Callable[[float], None] = time.sleep) -> None:
        self._up = TokenBucket(bytes_per_s, clock=clock, wait=wait) if bytes_per_s else None
        self._down = TokenBucket(bytes_per_s, clock=clock, wait=wait) if bytes_per_s else None

    def send(self, num_bytes: int) -> None:
        if self._up:
            self._up.take(num_bytes)

    def receive(self, num_bytes: int) -> None:
        if self._down:
            self._down.take(num_bytes)

    async def sending(self, num_bytes: int) -> None:
        """`send` on an event loop."""
        await _pass(self._up, num_bytes)

    async def receiving(self, num_bytes: int) -> None:
        """`receive` on an event loop."""
        await _pass(self._down, num_bytes)


async def _pass(bucket: TokenBucket | None, num_bytes: int) -> None:
    if bucket and (delay_s := bucket.reserve(num_bytes)) > 0:
        await asyncio.sleep(delay_s)
