"""How far another host's clock is ahead of ours, from messages and their answers. Pure.

As NTP does it (Mills, RFC 5905): a message leaves at t1 by our clock and comes at t2 by theirs, the answer leaves at t3 by theirs and comes at t4
by ours. If both took equally long, theirs is ahead by ((t2 − t1) + (t3 − t4)) / 2; however the way was divided, ±
((t4 − t1) − (t3 − t2)) / 2.
The quickest exchange is the surest, until clocks have drifted since.
"""

import threading
from dataclasses import dataclass

DRIFT = 1e-4
"""Seconds per second by which two clocks may part: what two crystals of the usual 50 ppm may."""


@dataclass(frozen=True)
class _Exchange:
    at_s: float
    """By our clock."""
    offset_s: float
    error_s: float

    def error_at(self, now_s: float) -> float:
        return self.error_s + DRIFT * abs(now_s - self.at_s)


class ClockOffset:
    """Their clock less ours. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()  # guards _kept
        self._kept: list[_Exchange] = []
        """Those that are surer than all later ones, until drift has made them less so."""

    def add(self, left_s: float, came_s: float, answered_s: float, back_s: float) -> None:
        """An exchange: `left_s` and `back_s` by our clock, the others by theirs. One that cannot have been is left out: a clock was set meanwhile."""
        delay_s = (back_s - left_s) - (answered_s - came_s)
        if delay_s < 0 or back_s < left_s:
            return
        new = _Exchange(back_s, ((came_s - left_s) + (answered_s - back_s)) / 2, delay_s / 2)
        with self._lock:
            kept = self._kept
            if kept and abs(kept[-1].offset_s - new.offset_s) > kept[-1].error_at(back_s) + new.error_s:
                kept = []  # one of the clocks has been set
            self._kept = [*(one for one in kept if one.error_at(back_s) < new.error_s), new]

    def at(self, now_s: float) -> tuple[float | None, float | None]:
        """The offset at `now_s` by our clock, and the most that it is off; None before the first exchange."""
        with self._lock:
            if not self._kept:
                return None, None
            best = min(self._kept, key=lambda one: one.error_at(now_s))
        return best.offset_s, best.error_at(now_s)
