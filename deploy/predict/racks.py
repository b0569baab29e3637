"""Hosts in racks, and aggregators in the model of a step: a host in each rack sums its workers' contributions, pushes one to the servers, and
hands out what they answer.

A class of racks is simulated as one rack, as workers and servers are. An aggregator pushes a frame when all of its rack have contributed to it,
and passes every answer on at once; it has no credit window.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from deploy.predict.classes import Classes, Frame, RackClass, ServerClass, WorkerClass
from deploy.predict.costs import DECODE_BYTE_S, ENCODE_BYTE_S
from deploy.predict.events import Call, Cores, Thread
from deploy.predict.members import Server, parts_of
from deploy.predict.network import Part, Reader
from deploy.predict.scenario import Scenario


class RackNetwork(Protocol):
    """How bytes get into a class of racks, out of it, and about in it."""

    def up(self, rack: int, part: Part, num_bytes: float, arrived: Call) -> None:
        """From every aggregator to a class of servers."""

    def after(self, delay_s: float, call: Call) -> None: ...

    def spread(self, rack: int, worker: int, server: int, portion: int, num_bytes: float, num_frames: float, arrived: Call) -> None:
        """From the aggregators to each worker of a class in their racks."""


@dataclass(frozen=True)
class Counter:
    """What the workers of a rack push to in place of a class of servers, and what answers these in place of the workers."""

    aggregator: Aggregator
    index: int
    cls: ServerClass

    def receive(self, worker: int, part: Part, receipt: Call) -> None:
        self.aggregator.take(worker, part, receipt)

    def land(self, frame: Frame, num_frames: float, done: Call) -> None:
        self.aggregator.land(self.index, frame, num_frames)
        done()

    def landed(self, frame: Frame) -> None:
        """Nothing: each worker knows what has landed at its own."""


class Aggregator:
    """All aggregators of a class of racks."""

    def __init__(self, index: int, rack: RackClass, scenario: Scenario, classes: Classes, network: RackNetwork, cores: Cores) -> None:
        self._index, self.rack, self._scenario, self._classes, self._network = index, rack, scenario, classes, network
        self._costs = scenario.costs
        self.loop = Thread(cores, rack.count)
        """Its end to the workers."""
        self._net = Thread(cores, rack.count)
        """Its end to the servers."""
        self._threads = [[Thread(cores, rack.count * cls.count) for _ in cls.frames] for cls in classes.servers]
        self._arrived: dict[tuple[int, int], dict[int, float]] = defaultdict(lambda: defaultdict(float))
        self._next = defaultdict[tuple[int, int], int](int)
        """Of the rack's classes of workers: the one whose turn it is in the sum of a frame."""
        self._left: dict[tuple[int, int], float] = {}
        """Of a frame's answers, those that a class of workers still has to land."""
        self.servers: Sequence[Server] = ()
        self.workers: Sequence[Reader] = ()
        self.counters = [Counter(self, b, cls) for b, cls in enumerate(classes.servers)]

    def take(self, worker: int, part: Part, receipt: Call) -> None:
        """A part has arrived from every worker of a class."""
        cls = self._classes.servers[part.server]
        frame, key = cls.frames[part.frame], (part.server, part.frame)

        def taken() -> None:
            self._network.after(self._scenario.latency_s, receipt)
            self._arrived[key][worker] += part.num_frames / cls.count / frame.together
            self._sum(*key)

        seconds = self._costs.take_frame_s + self._costs.take_byte_s * frame.push_bytes
        self.loop.do(self._per_rack(worker) * part.num_frames * seconds, taken)

    def _per_rack(self, worker: int) -> float:
        return self._classes.workers[worker].count / self.rack.count

    def _sum(self, b: int, j: int) -> None:
        """Adds what is next in rank order and complete."""
        frame, thread, members = self._classes.servers[b].frames[j], self._threads[b][j], self.rack.workers
        byte_s = self._costs.sum_byte_s + DECODE_BYTE_S[self._scenario.comm.push_format]
        while self._next[b, j] < len(members) and self._arrived[b, j][members[self._next[b, j]]] > 1 - 1e-6:
            worker = members[self._next[b, j]]
            self._next[b, j] += 1
            is_last = self._next[b, j] == len(members)
            seconds = self._per_rack(worker) * frame.together * byte_s * frame.exact_bytes
            thread.do(seconds, (lambda: self._push(b, j)) if is_last else _nothing)

    def _push(self, b: int, j: int) -> None:
        """The rack's contribution is whole."""
        self._next[b, j] = 0
        self._arrived[b, j].clear()
        cls = self._classes.servers[b]
        frame, parts = cls.frames[j], parts_of(cls.count, cls)
        num_frames = cls.count / parts * frame.together
        byte_s = self._costs.push_byte_s * frame.push_bytes + ENCODE_BYTE_S[self._scenario.comm.push_format] * frame.exact_bytes
        for turn in range(parts):
            part = Part(b, j, turn, num_frames)
            self._net.do(num_frames * (self._costs.push_frame_s + byte_s), lambda part=part: self._leave(part, frame))  # type: ignore[misc]

    def _leave(self, part: Part, frame: Frame) -> None:
        receive = self.servers[part.server].receive
        self._network.up(self._index, part, part.num_frames * frame.push_bytes, lambda: receive(self._index, part, _nothing))

    def land(self, b: int, frame: Frame, num_frames: float) -> None:
        """Answers of a class of servers have arrived."""
        seconds = num_frames * (self._costs.land_frame_s + self._costs.land_byte_s * frame.pull_bytes)
        self._net.do(seconds, lambda: self._spread(b, frame, num_frames))

    def _spread(self, b: int, frame: Frame, num_frames: float) -> None:
        """To the rack's workers, one after the other."""
        answers = parts_of(self.rack.count, self._classes.servers[b])
        for worker in self.rack.workers:
            count = self._per_rack(worker)
            portions = max(1, min(int(count), parts_of(self._classes.workers[worker].count, self._classes.servers[b]) // answers))
            seconds = count / portions * num_frames * (self._costs.answer_frame_s + self._costs.answer_byte_s * frame.pull_bytes)
            self._left.setdefault((id(frame), worker), float(answers * portions))
            for portion in range(portions):
                self._portion(b, frame, worker, seconds, portion, num_frames / portions)

    def _portion(self, b: int, frame: Frame, worker: int, seconds: float, portion: int, num_frames: float) -> None:
        key, reader = (id(frame), worker), self.workers[worker]

        def done() -> None:
            self._left[key] -= 1
            if not self._left[key]:
                del self._left[key]
                reader.landed(frame)

        num_bytes = frame.pull_bytes * num_frames
        landed = lambda: reader.land(frame, num_frames, done)  # noqa: E731
        self.loop.do(seconds, lambda: self._network.spread(self._index, worker, b, portion, num_bytes, num_frames, landed))


class AnswersToRacks:
    """The network as servers see it that answer aggregators."""

    def __init__(self, network: Any) -> None:
        self._network = network

    def answer(self, server: int, worker: int, portion: int, num_bytes: float, num_frames: float, arrived: Call) -> None:
        self._network.answer_rack(server, worker, portion, num_bytes, num_frames, arrived)

    def receipts(self, server: int, worker: int, arrived: Call) -> None:
        self._network.after(0.0, arrived)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._network, name)


def contributors(classes: Classes) -> tuple[WorkerClass, ...]:
    """As the servers see them: an aggregator is a worker."""
    return tuple(replace(classes.workers[rack.workers[0]], first=rack.first, count=rack.count, slowness=1.0) for rack in classes.racks)


def aggregators_of(scenario: Scenario, classes: Classes, network: RackNetwork, cores: Sequence[Cores]) -> list[Aggregator]:
    """None where workers push to servers; `cores`: of each class of racks."""
    if not scenario.racks or scenario.racks.aggregator_bytes_per_s is None:
        return []
    return [Aggregator(a, rack, scenario, classes, network, cores[a]) for a, rack in enumerate(classes.racks)]


def _nothing() -> None:
    pass
