"""A clock of events, and cores that threads share. Times in seconds. No thread, no real clock: the same calls give the same times."""

import heapq
import math
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


class Machine:
    """The processors of a machine that plays several hosts, shared equally by all threads that work; no host has more than its own."""

    def __init__(self, num_cores: float) -> None:
        self.num_cores = num_cores
        self.hosts: list[Cores] = []

    def speed(self) -> float:
        """Of a thread that its host lets work at full speed: that at which all cores are busy, at most 1."""
        left, working = self.num_cores, sorted((host for host in self.hosts if host.replicas), key=lambda host: host.limit)
        threads = sum(host.replicas for host in working)
        for host in working:
            if host.limit * threads >= left:
                return left / threads
            left -= host.limit * host.replicas
            threads -= host.replicas
        return 1.0


class Cores:
    """The processors of `num_hosts` equal hosts, `per_host` each (infinite: no limit), shared equally by all threads that work.

    A task stands for `replicas` threads that do the same at the same time, spread evenly over the hosts; one thread uses at most one core.
    """

    def __init__(self, clock: Clock, per_host: float, num_hosts: int = 1, machine: Machine | None = None) -> None:
        """`machine`: plays these hosts among others."""
        self._clock = clock
        self._machine = machine
        if machine:
            machine.hosts.append(self)
        self.num_cores = per_host * num_hosts
        self.busy_s = 0.0
        """Core seconds used."""
        self._tasks: list[tuple[float, int, float, Call]] = []
        self._sequence = count()
        self.replicas = 0.0
        """Threads that work."""
        self._done_s = 0.0
        """Seconds of work that a thread which never paused has done."""
        self._speed = 1.0
        self._since_s = 0.0
        self._version = 0

    def work(self, seconds: float, replicas: float, done: Call) -> None:
        """Calls `done` when a thread has worked for `seconds`."""
        if self.num_cores == math.inf and not self._machine:
            self.busy_s += seconds * replicas
            self._clock.after(seconds, done)
            return
        self._advance()
        heapq.heappush(self._tasks, (self._done_s + seconds, next(self._sequence), replicas, done))
        self.replicas += replicas
        self._change()

    @property
    def limit(self) -> float:
        """Speed of each thread as far as its own hosts allow."""
        return min(1.0, self.num_cores / self.replicas)

    def _change(self) -> None:
        for cores in self._machine.hosts if self._machine else [self]:
            self._clock.changed(cores)

    def _advance(self) -> None:
        passed_s = self._clock.now_s - self._since_s
        self._done_s += passed_s * self._speed
        self.busy_s += passed_s * self._speed * self.replicas
        self._since_s = self._clock.now_s

    def plan(self) -> None:
        self._advance()
        self._version += 1
        if self._tasks:
            self._speed = min(self.limit, self._machine.speed()) if self._machine else self.limit
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
            self.replicas = self.replicas - replicas if self._tasks else 0.0
            finished.append(done)
        self._version += 1
        self._change()
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
