"""The step of a scenario, as a simulation of discrete events: deterministic, in seconds and bytes."""

import math
import random
from collections import defaultdict, deque
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from deploy.predict.classes import EVERY, Classes, Parts, RackClass, ServerClass, WorkerClass, classes_of, coarse, fine_parts
from deploy.predict.events import Call, Clock, Cores, Machine
from deploy.predict.links import Direction, Links
from deploy.predict.members import Server, Worker
from deploy.predict.network import Part, Taker
from deploy.predict.pipeline import StageWorker, bubble_s, connect
from deploy.predict.racks import AnswersToRacks, aggregators_of, contributors
from deploy.predict.scenario import Scenario, layers_of

NUM_STEPS, NUM_UNFAIR_STEPS = 5, 15
"""Simulated, the latter where steps differ; the first two get the pipeline going, and in the last nobody begins the next: the others count."""


@dataclass(frozen=True)
class Prediction:
    """One step, when steps follow each other."""

    step_s: float
    compute_s: float
    """Of the slowest rank alone: a step that hides all communication takes so long."""
    num_samples: float
    """Of all workers."""
    busy: Mapping[str, float]
    """How much of its capacity each resource used: links of a direction, cores, event loops; 0 to 1."""
    worker_bytes: float
    """On the wire of one worker up to servers in a step, mean."""
    num_events: int
    bubble_s: float = 0.0
    """What a rank's stages lose by waiting for each other, as the verdict has it: by how much longer the first one computes and waits for
    the second than the busiest computes."""

    @property
    def samples_per_s(self) -> float:
        return self.num_samples / self.step_s

    @property
    def efficiency(self) -> float:
        """Compute over step."""
        return self.compute_s / self.step_s

    @property
    def exposed_s(self) -> float:
        return self.step_s - self.compute_s


def simulate(scenario: Scenario, parts: Parts | None = None) -> Prediction:
    """`parts`: into how many classes equal members are divided; None: what is fine enough."""
    parts = parts or fine_parts(scenario)
    layers = layers_of(scenario.specs)
    num_steps = NUM_UNFAIR_STEPS if scenario.costs.unfairness else NUM_STEPS
    classes = classes_of(scenario, layers, parts)
    if parts != EVERY:
        classes = coarse(classes)
    clock = Clock()
    machine = Machine(scenario.machine_cores) if math.isfinite(scenario.machine_cores) else None
    cores = [Cores(clock, per_host, count, machine) for per_host, count in zip(classes.cores, classes.hosts, strict=True)]
    network = _Wires(scenario, classes, clock, cores)
    device = Cores(clock, math.inf)
    aggregators = aggregators_of(scenario, classes, network, [Cores(clock, scenario.cores_per_host, rack.count, machine) for rack in classes.racks])
    pushing, wires = (contributors(classes), AnswersToRacks(network)) if aggregators else (classes.workers, network)
    servers = [Server(b, cls, scenario, pushing, wires, cores[cls.host]) for b, cls in enumerate(classes.servers)]
    takers: dict[int, Sequence[Taker]] = {worker: its.counters for its in aggregators for worker in its.rack.workers}
    make = StageWorker if scenario.pipeline else Worker
    workers = [
        make(a, cls, scenario, layers, takers.get(a, servers), network, cores[cls.host], device, num_steps) for a, cls in enumerate(classes.workers)
    ]
    stages = [worker for worker in workers if isinstance(worker, StageWorker)]
    connect(stages, scenario.num_stages)
    for b, server in enumerate(servers):
        server.workers = [its.counters[b] for its in aggregators] or workers
    for its in aggregators:
        its.servers, its.workers = servers, workers
    for worker in workers:
        worker.start()
    clock.run()
    ends = [max(worker.landed_s[step] for worker in workers) for step in range(num_steps)]
    slowness = max(cls.slowness for cls in classes.workers)
    return Prediction(
        step_s=(ends[-2] - ends[1]) / (num_steps - 3),
        compute_s=scenario.compute_s * slowness,
        num_samples=scenario.samples * scenario.num_workers,
        busy=_busy(network, classes, cores, servers, ends[-1]),
        worker_bytes=network.pushed_bytes / num_steps / scenario.num_members,
        num_events=clock.num_events,
        bubble_s=bubble_s(stages[:: scenario.num_stages], scenario),
    )


def _busy(network: "_Wires", classes: Classes, cores: list[Cores], servers: list[Server], time_s: float) -> dict[str, float]:
    found: dict[str, float] = {}
    kinds: list[tuple[str, Sequence[WorkerClass | ServerClass | RackClass]]] = [*_kinds(classes), ("rack", classes.racks)]
    for kind, members in kinds:
        for i, cls in enumerate(members):
            for way, directions in (("up", network.ups), ("down", network.downs)):
                direction = directions[kind, i]
                if math.isfinite(direction.bytes_per_s):
                    found[f"{_name(kind, cls)} {way}"] = direction.bytes / direction.bytes_per_s / time_s
    if math.isfinite(network.machine_cores):
        found["cores of the machine"] = sum(its.busy_s for its in cores) / network.machine_cores / time_s
    for host, its in enumerate(cores):
        if its.num_cores < network.machine_cores:
            names = [_name(kind, cls) for kind, members in _kinds(classes) for cls in members if cls.host == host]
            found[f"cores of {' and '.join(names)}"] = its.busy_s / its.num_cores / time_s
    for server in servers:
        found[f"event loop of {_name('server', server.cls)}"] = server.loop.busy_s / time_s
    return found


def _kinds(classes: Classes) -> list[tuple[str, Sequence[WorkerClass | ServerClass]]]:
    return [("worker", classes.workers), ("server", classes.servers)]


def _name(kind: str, cls: WorkerClass | ServerClass | RackClass) -> str:
    if cls.count == 1:
        return f"{kind} {cls.first}"
    apart = cls.apart if isinstance(cls, WorkerClass) else 1
    return f"{kind}s {cls.first}-{cls.first + (cls.count - 1) * apart}{f' (stage {cls.first % apart})' if apart > 1 else ''}"


def _drawn(name: str, sigma: float, times: int) -> Iterator[float]:
    """Log-normal numbers without end, each so many times; always the same for a name."""
    rng = random.Random(name)
    while True:
        share = math.exp(rng.gauss(0.0, sigma))
        for _ in range(times):
            yield share


def _nothing() -> None:
    pass


class _Wires:
    """Who is connected to whom by what."""

    def __init__(self, scenario: Scenario, classes: Classes, clock: Clock, cores: Sequence[Cores]) -> None:
        self._clock = clock
        self._cores = cores
        self._scenario = scenario
        self._classes = classes
        self._links = Links(clock, has_racks=scenario.racks is not None)
        self.ups: dict[tuple[str, int], Direction] = {}
        self.downs: dict[tuple[str, int], Direction] = {}
        self._streams: defaultdict[Hashable, deque[Call]] = defaultdict(deque)
        """Frames of one stream travel one after the other: the first is on its way."""
        self._shares: dict[Hashable, Iterator[float]] = {}
        self.pushed_bytes = 0.0
        racks = scenario.racks
        self._rack_of = {("worker", worker): a for a, rack in enumerate(classes.racks) for worker in rack.workers}
        for a, rack in enumerate(classes.racks):
            assert racks
            self._rack_of["aggregator", a] = a
            for ways in (self.ups, self.downs):
                ways["rack", a] = self._links.direction(racks.uplink_bytes_per_s, rack.count)
                ways["aggregator", a] = self._links.direction(racks.aggregator_bytes_per_s or math.inf, rack.count)
        for kind, members in _kinds(classes):
            for i, cls in enumerate(members):
                owner = next((a for a, worker in enumerate(classes.workers) if worker.host == cls.host), None)
                if kind == "server" and scenario.hosts == "colocated" and owner is not None:
                    self.ups[kind, i], self.downs[kind, i] = self.ups["worker", owner], self.downs["worker", owner]
                else:
                    self.ups[kind, i], self.downs[kind, i] = (self._links.direction(cls.link_bytes_per_s, cls.count) for _ in range(2))

    @property
    def machine_cores(self) -> float:
        return self._scenario.machine_cores

    @property
    def now_s(self) -> float:
        return self._clock.now_s

    def after(self, delay_s: float, call: Call) -> None:
        self._clock.after(delay_s, call)

    def push(self, worker: int, part: Part, num_bytes: float, arrived: Call) -> None:
        away = num_bytes * self._away(worker, part.server)
        self.pushed_bytes += away * self._classes.workers[worker].count * self._scenario.costs.wire_overhead
        aggregated = self._scenario.racks and self._scenario.racks.aggregator_bytes_per_s
        to = ("aggregator", self._rack_of["worker", worker]) if aggregated else ("server", part.server)
        stream = ("push", worker, part.server, part.turn)
        self._send(stream, ("worker", worker), to, away, self._classes.workers[worker].count, part.num_frames, arrived)

    def answer(self, server: int, worker: int, portion: int, num_bytes: float, num_frames: float, arrived: Call) -> None:
        stream = ("answer", server, worker, portion)
        away, replicas = num_bytes * self._away(worker, server), self._classes.workers[worker].count
        self._send(stream, ("server", server), ("worker", worker), away, replicas, num_frames, arrived)

    def up(self, rack: int, part: Part, num_bytes: float, arrived: Call) -> None:
        stream = ("push", -1 - rack, part.server, part.turn)
        replicas = self._classes.racks[rack].count
        self._send(stream, ("aggregator", rack), ("server", part.server), num_bytes, replicas, part.num_frames, arrived)

    def answer_rack(self, server: int, rack: int, portion: int, num_bytes: float, num_frames: float, arrived: Call) -> None:
        stream = ("answer", server, -1 - rack, portion)
        self._send(stream, ("server", server), ("aggregator", rack), num_bytes, self._classes.racks[rack].count, num_frames, arrived)

    def spread(self, rack: int, worker: int, server: int, portion: int, num_bytes: float, num_frames: float, arrived: Call) -> None:
        stream = ("spread", server, worker, portion)
        self._send(stream, ("aggregator", rack), ("worker", worker), num_bytes, self._classes.workers[worker].count, num_frames, arrived)

    def receipts(self, server: int, worker: int, arrived: Call) -> None:
        waiting = self._streams["answer", server, worker, 0]
        if waiting:
            waiting.append(partial(self._passed, waiting, arrived))
        else:
            self._clock.after(self._scenario.latency_s if self._away(worker, server) else 0.0, arrived)

    def pass_on(self, worker: int, to: int, num_bytes: float, arrived: Call) -> None:
        away = 0.0 if self._scenario.hosts == "one" and self._scenario.comm.bandwidth is None else num_bytes
        self._send(("pass", worker, to, 0), ("worker", worker), ("worker", to), away, self._classes.workers[worker].count, 1.0, arrived)

    def _send(
        self,
        stream: tuple[str, int, int, int],
        sender: tuple[str, int],
        receiver: tuple[str, int],
        num_bytes: float,
        replicas: float,
        weight: float,
        arrived: Call,
    ) -> None:
        if not num_bytes:
            self._clock.after(0.0, arrived)
            return
        waiting, via = self._streams[stream], None
        if sender in self._rack_of and receiver[0] == "server":
            via = self.ups["rack", self._rack_of[sender]]
        elif receiver in self._rack_of and sender[0] == "server":
            via = self.downs["rack", self._rack_of[receiver]]
        passed = partial(self._passed, waiting, arrived)

        def begin() -> None:
            wire_bytes = num_bytes * self._scenario.costs.wire_overhead
            kernel_s = wire_bytes * self._scenario.costs.kernel_byte_s
            if kernel_s and receiver[0] != "aggregator":
                kind, index = receiver
                cls = self._classes.workers[index] if kind == "worker" else self._classes.servers[index]
                self._cores[cls.host].work(kernel_s, replicas, _nothing)
            share = weight * self._share(stream[:3], weight)
            self._links.send(wire_bytes, self.ups[sender], self.downs[receiver], passed, via=via, replicas=replicas, weight=share)

        waiting.append(begin)
        if len(waiting) == 1:
            begin()

    def _passed(self, waiting: deque[Call], arrived: Call) -> None:
        """The first message of a stream has left its link: the next one begins."""
        waiting.popleft()
        if waiting:
            waiting[0]()
        self._clock.after(self._scenario.latency_s, arrived)

    def _share(self, connection: tuple[str, int, int], num_frames: float) -> float:
        """How much more than a fair share the connection's next frames get."""
        sigma = self._scenario.costs.unfairness
        if not sigma or connection[0] == "pass":
            return 1.0
        if connection not in self._shares:
            way, sender, receiver = connection
            server = receiver if way == "push" else sender
            frames = len(self._classes.servers[server].frames) * self._classes.servers[server].count / num_frames
            self._shares[connection] = _drawn(repr(connection), sigma, max(1, round(frames)))
        return next(self._shares[connection])

    def _away(self, worker: int, server: int) -> float:
        """Part of what goes between two classes that leaves the host."""
        if self._scenario.hosts == "one":
            return 0.0 if self._scenario.is_shared or self._scenario.comm.bandwidth is None else 1.0
        is_here = self._classes.workers[worker].host == self._classes.servers[server].host
        return 1.0 - 1.0 / self._classes.servers[server].count if is_here else 1.0
