"""A clock of events, and cores that threads share. Times in seconds. No thread, no real clock: the same calls give the same times."""

import heapq
from collections import deque
from collections.abc import Callable
from itertools import count
from typing import Protocol

SAME = 1e-9
"""Relative: events that close together happen at once, so that equal members stay equal in spite of rounding."""

Call = Callable[[], None]


class Shared(Protocol):
    """Something whose users change each other's speed."""

    def plan(self) -> None:
        """Works out the speeds from now on, and when the first user is done."""


class Clock:
    """Runs calls in the order of their times; those of one time in the order in which they were asked for."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self._heap: list[tuple[float, int, Call]] = []
        self._sequence = count()
        self._changed: dict[int, Shared] = {}
        self.num_events = 0

    def after(self, delay_s: float, call: Call) -> None:
        heapq.heappush(self._heap, (self.now_s + delay_s, next(self._sequence), call))

    def changed(self, shared: Shared) -> None:
        """Its users are not the same any more: it plans anew before time goes on."""
        self._changed[id(shared)] = shared

    def run(self) -> None:
        """Until nothing is left to happen."""
        while self._heap or self._changed:
            if self._changed and (not self._heap or self._heap[0][0] > self.now_s * (1 + SAME)):
                changed, self._changed = self._changed, {}
                for shared in changed.values():
                    shared.plan()
                continue
            time_s, _, call = heapq.heappop(self._heap)
            self.now_s = max(self.now_s, time_s)
            self.num_events += 1
            call()


class Cores:
    """The processors of `num_hosts` equal hosts, `per_host` each (infinite: no limit), shared equally by all threads that work.

    A task stands for `replicas` threads that do the same at the same time, spread evenly over the hosts; one thread uses at most one core.
    """

    def __init__(self, clock: Clock, per_host: float, num_hosts: int = 1) -> None:
        self._clock = clock
        self.num_cores = per_host * num_hosts
        self.busy_s = 0.0
        """Core seconds used."""
        self._tasks: list[tuple[float, int, float, Call]] = []
        self._sequence = count()
        self._replicas = 0.0
        self._done_s = 0.0
        """Seconds of work that a thread which never paused has done."""
        self._speed = 1.0
        self._since_s = 0.0
        self._version = 0

    def work(self, seconds: float, replicas: float, done: Call) -> None:
        """Calls `done` when a thread has worked for `seconds`."""
        self._advance()
        heapq.heappush(self._tasks, (self._done_s + seconds, next(self._sequence), replicas, done))
        self._replicas += replicas
        self._clock.changed(self)

    def _advance(self) -> None:
        passed_s = self._clock.now_s - self._since_s
        self._done_s += passed_s * self._speed
        self.busy_s += passed_s * self._speed * self._replicas
        self._since_s = self._clock.now_s

    def plan(self) -> None:
        self._advance()
        self._version += 1
        if self._tasks:
            self._speed = min(1.0, self.num_cores / self._replicas)
            version = self._version
            delay_s = max(0.0, self._tasks[0][0] - self._done_s) / self._speed
            self._clock.after(delay_s, lambda: self._finish(version))

    def _finish(self, version: int) -> None:
        if version != self._version:
            return
        self._advance()
        reached = max(self._done_s, self._tasks[0][0]) + SAME * self._done_s
        finished = []
        while self._tasks and self._tasks[0][0] <= reached:
            _, _, replicas, done = heapq.heappop(self._tasks)
            self._replicas = self._replicas - replicas if self._tasks else 0.0
            finished.append(done)
        self._version += 1
        self._clock.changed(self)
        for done in finished:
            done()


class Thread:
    """`replicas` equal threads, each of which does one thing after the other."""

    def __init__(self, cores: Cores, replicas: float) -> None:
        self._cores = cores
        self._replicas = replicas
        self._queue: deque[tuple[float, Call]] = deque()
        self.busy_s = 0.0
        """Seconds of work given to each of them."""

    def do(self, seconds: float, done: Call) -> None:
        """After what it has to do already; calls `done` at the end."""
        self.busy_s += seconds
        self._queue.append((seconds, done))
        if len(self._queue) == 1:
            self._start()

    def _start(self) -> None:
        seconds, _ = self._queue[0]
        self._cores.work(seconds, self._replicas, self._finish)

    def _finish(self) -> None:
        _, done = self._queue.popleft()
        if self._queue:
            self._start()
        done()
