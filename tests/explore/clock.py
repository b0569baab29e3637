"""Simulated time and the processes that live in it."""

import heapq
import random
from collections.abc import Callable
from itertools import count

Action = Callable[[], object]


class Killed(BaseException):
    """The process dies here. Not an Exception: no handler of ours may survive it."""


class Process:
    """What may be stopped and killed."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.is_dead = False
        self.stopped_until = 0.0


class Clock:
    """Events in the order of their times; those of a stopped process wait, those of a dead one never happen."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.now = 0.0
        self.num_events = 0
        self._events: list[tuple[float, int, Process | None, Action]] = []
        self._number = count()

    def at(self, time: float, process: Process | None, action: Action) -> None:
        heapq.heappush(self._events, (time, next(self._number), process, action))

    def after(self, delay: float, process: Process | None, action: Action) -> None:
        self.at(self.now + delay, process, action)

    def delay(self) -> float:
        """Of a message: milliseconds mostly, sometimes seconds."""
        chance = self.rng.random()
        longest = 0.01 if chance < 0.9 else 0.5 if chance < 0.995 else 15.0
        return self.rng.uniform(0.0, longest)

    def step(self) -> bool:
        """Lets the next event happen; False if there is none."""
        while self._events:
            time, number, process, action = heapq.heappop(self._events)
            if process and process.is_dead:
                continue
            if process and process.stopped_until > time:
                heapq.heappush(self._events, (process.stopped_until, number, process, action))
                continue
            self.now = max(self.now, time)
            self.num_events += 1
            action()
            return True
        return False
