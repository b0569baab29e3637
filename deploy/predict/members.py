"""A worker and a server of the model of a step: what each does when, as `workers/` and `ps/` do it.

A member stands for all of its class. What one of them sends to every server of a class is dealt in *parts*: the frames that travel at
the same time. Everything is per member: a class of servers takes from a class of workers (workers / servers) frames per server and part.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache, partial
from heapq import heappop, heappush
from itertools import accumulate

from deploy.predict.classes import Frame, ServerClass, WorkerClass
from deploy.predict.costs import DECODE_BYTE_S, ENCODE_BYTE_S, Costs
from deploy.predict.events import Call, Cores, Thread
from deploy.predict.network import Network, Part, Reader, Taker
from deploy.predict.receipts import Held
from deploy.predict.scenario import Layers, Scenario
from deploy.predict.turns import turns
from ps.order import scheduled
from ps.receipts import COPIED_BYTES

MOST_PARTS, ENOUGH_PARTS = 64, 128
"""In which a frame for a class of servers, or its answers to a class of workers, are dealt; all frames of a step together need no more."""
LEAST_IN_FLIGHT = 4
"""Parts that may be on their way at once even if one is as large as the window."""


class Worker:
    """All workers of a class. `landed_s` has the time at which all of each version was there."""

    def __init__(
        self,
        index: int,
        cls: WorkerClass,
        scenario: Scenario,
        layers: Layers,
        servers: Sequence[Taker],
        network: Network,
        cores: Cores,
        device: Cores,
        num_steps: int,
    ) -> None:
        self._index, self._cls, self._scenario, self._layers = index, cls, scenario, layers
        self._servers, self._network, self._num_steps = servers, network, num_steps
        self._costs = scenario.costs
        self._train = Thread(cores, cls.count)
        self._net = Thread(cores, cls.count)
        self._others = Thread(cores, cls.count)
        self._device = self._train if scenario.computes_on_host else Thread(device, cls.count)
        micro_batches = scenario.micro_batches
        self._forward_s, self._backward_s = (cls.slowness * seconds / micro_batches for seconds in (scenario.forward_s, scenario.backward_s))
        """Of one micro-batch."""
        self._rest_s = (micro_batches - 1) * (self._forward_s + self._backward_s)
        """Of all others: between the first one's forward, which may wait, and the last one's backward."""
        self._parts = [parts_of(server.cls.count, server.cls) for server in servers]
        self._turns = turns([server.cls.count for server in servers], self._parts, cls.first // cls.apart, cls.count)
        self._turn = 0
        largest = max(server.cls.count / parts for server, parts in zip(servers, self._parts, strict=True))
        together = max(frame.together for server in servers for frame in server.cls.frames)
        is_endless = scenario.is_shared and scenario.comm.push_format == "fp32"
        windows = (math.inf, math.inf) if is_endless else (scenario.pacing.window_frames, scenario.pacing.wide_frames)
        self._windows = [together * max(window, min(window, LEAST_IN_FLIGHT) * largest) for window in windows]
        """While something is still to become ready, and then."""
        self._stretch = self._windows[0] / windows[0] if math.isfinite(windows[0]) else 1.0
        """A window that is too large for its round trip is made up for by a longer one."""
        made_s, byte_s = _rank_0s_times(scenario, layers, cls.host, [server.cls for server in servers])
        self._places = [_places(server.cls.frames, made_s, byte_s) for server in servers]
        """Of every class's frames in the order in which they leave as soon as they are ready."""
        self._in_flight = 0.0
        self._step = 0
        self._all_landed = True
        self._waiting: int | None = None
        """Layer whose forward waits."""
        self.landed_s: list[float] = []
        self._begin()

    def _begin(self) -> None:
        """Nothing of the next version is there, and nothing of this step is ready."""
        self._unready = [[len(frame.layers) for frame in server.cls.frames] for server in self._servers]
        self._queues: list[list[tuple[int, int]]] = [[] for _ in self._servers]
        self._open: list[tuple[int, int]] = [(0, 0) for _ in self._servers]
        """Of every class of servers: the frame that is being dealt, and how many of its parts are left."""
        self._frames_of: list[list[tuple[int, int]]] = [[] for _ in range(len(self._layers))]
        own = [(b, j, frame) for b, server in enumerate(self._servers) for j, frame in enumerate(server.cls.frames) if frame.stage == self._cls.stage]
        for b, j, frame in own:
            for layer in frame.layers:
                self._frames_of[layer].append((b, j))
        self._missing = list(map(len, self._frames_of))
        self._num_missing = self._num_unready = len(own)

    def start(self) -> None:
        self._device.do(self._costs.step_s, lambda: self._forward(0))

    # -- compute ---------------------------------------------------------------------------------------------

    def _forward(self, layer: int) -> None:
        if layer == len(self._layers):
            self._all_landed = False
            self._begin()
            self._others.do(self._costs.worker_step_s, _nothing)
            if self._rest_s:
                self._device.do(self._rest_s, lambda: self._backward(layer - 1))
            else:
                self._backward(layer - 1)
        elif not self._all_landed and (self._missing[layer] or not self._scenario.overlap):
            self._waiting = layer
        else:
            seconds = self._forward_s * self._layers.shares[layer]
            install_s = self._costs.install_byte_s * self._layers.num_bytes[layer]
            if self._device is self._train or not install_s:
                self._device.do(install_s + seconds, lambda: self._forward(layer + 1))
            else:
                self._train.do(install_s, lambda: self._device.do(seconds, lambda: self._forward(layer + 1)))

    def _backward(self, layer: int) -> None:
        self._device.do(self._backward_s * self._layers.shares[layer], lambda: self._made(layer))

    def _made(self, layer: int) -> None:
        """The layer's gradient is there: it is copied, and leaves with the frames that it completes."""
        on_host = self._device is self._train
        if not on_host and layer:
            self._backward(layer - 1)

        def copied() -> None:
            if self._scenario.overlap:
                self._ready([layer])
            elif not layer:
                self._ready(range(len(self._layers)))
            if on_host and layer:
                self._backward(layer - 1)
            elif not layer:
                self._step += 1
                self._train.do(self._costs.step_s, lambda: self._forward(0) if self._step < self._num_steps else None)

        self._train.do(self._costs.copy_byte_s * self._layers.num_bytes[layer], copied)

    # -- push ------------------------------------------------------------------------------------------------

    def _ready(self, layers: Sequence[int]) -> None:
        for layer in layers:
            for b, j in self._frames_of[layer]:
                self._unready[b][j] -= 1
                if not self._unready[b][j]:
                    self._num_unready -= 1
                    heappush(self._queues[b], (self._places[b][j], j))
        self._pump(self._train)

    def _next(self) -> Part | None:
        """Servers in turn, the earliest layer's frame first."""
        for i in range(len(self._turns)):
            turn = (self._turn + i) % len(self._turns)
            b = self._turns[turn]
            j, left = self._open[b]
            if not left and self._queues[b]:
                j, left = heappop(self._queues[b])[1], self._parts[b]
            if left:
                num_frames = self._servers[b].cls.count / self._parts[b] * self._servers[b].cls.frames[j].together
                if self._in_flight + num_frames > self._windows[not self._num_unready] * (1 + 1e-9):
                    self._open[b] = j, left
                    return None
                self._open[b] = j, left - 1
                self._turn = (turn + 1) % len(self._turns)
                self._in_flight += num_frames
                return Part(b, j, left, num_frames)
        return None

    def _pump(self, thread: Thread) -> None:
        while part := self._next():
            self._encode(thread, part)

    def _encode(self, thread: Thread, part: Part) -> None:
        frame = self._servers[part.server].cls.frames[part.frame]
        byte_s = self._costs.shared_byte_s if self._scenario.is_shared else self._costs.push_byte_s
        seconds = self._costs.push_frame_s + byte_s * frame.push_bytes + _codec_s(ENCODE_BYTE_S, self._scenario.comm.push_format, frame)
        num_bytes = frame.push_bytes * part.num_frames
        received = self._servers[part.server].receive
        thread.do(
            seconds * part.num_frames,
            lambda: self._network.push(self._index, part, num_bytes, lambda: received(self._index, part, lambda: self._receipt(part))),
        )

    def _receipt(self, part: Part) -> None:
        def back() -> None:
            self._in_flight -= part.num_frames
            self._pump(self._net)

        self._network.after((self._stretch - 1) * 2 * self._scenario.latency_s, back)

    # -- land ------------------------------------------------------------------------------------------------

    def land(self, frame: Frame, num_frames: float, done: Call) -> None:
        """Answers have arrived."""
        byte_s = self._costs.shared_byte_s if self._scenario.is_shared else self._costs.land_byte_s
        decode_s = _codec_s(DECODE_BYTE_S, self._scenario.comm.pull_format, frame)
        self._net.do(num_frames * (self._costs.land_frame_s + byte_s * frame.pull_bytes + decode_s), done)

    def landed(self, frame: Frame) -> None:
        """All answers to a frame of a class of servers are in their places."""
        for layer in frame.layers:
            self._missing[layer] -= 1
        self._num_missing -= 1
        self._all_landed = not self._num_missing
        if self._all_landed:
            self.landed_s.append(self._network.now_s)
        waiting = self._waiting
        if waiting is not None and (self._all_landed or (self._scenario.overlap and not self._missing[waiting])):
            self._waiting = None
            self._forward(waiting)


class Server:
    """All servers of a class."""

    def __init__(self, index: int, cls: ServerClass, scenario: Scenario, classes: Sequence[WorkerClass], network: Network, cores: Cores) -> None:
        self.cls = cls
        self._index, self._scenario, self._classes, self._network = index, scenario, classes, network
        self._costs: Costs = scenario.costs
        self.loop = Thread(cores, cls.count)
        """The event loop: frames in, answers out."""
        self._threads = [Thread(cores, cls.count) for _ in cls.frames]
        """Sums and update of a frame, one after the other; those of different frames at the same time."""
        self._arrived = [[0.0] * len(classes) for _ in cls.frames]
        self._next_rank = [0] * len(cls.frames)
        """Of the classes that push each frame: the one whose turn it is in its sum."""
        self._pushers = [[a for a, of in enumerate(classes) if of.stage == frame.stage] for frame in cls.frames]
        self._portion = 0
        self.workers: Sequence[Reader] = ()
        self._held = [Held(network.after, partial(network.receipts, index, a)) for a in range(len(classes))]

    def receive(self, worker: int, part: Part, receipt: Call) -> None:
        """A part has arrived from every worker of a class."""
        frame = self.cls.frames[part.frame]
        per_server = self._classes[worker].count * part.num_frames / self.cls.count
        byte_s = 0.0 if self._scenario.is_shared else self._costs.take_byte_s

        def taken() -> None:
            self._held[worker].hold(receipt)
            self._arrived[part.frame][worker] += part.num_frames / self.cls.count / frame.together
            self._sum(part.frame)

        self.loop.do(self.cls.slowness * per_server * (self._costs.take_frame_s + byte_s * frame.push_bytes), taken)

    def _sum(self, j: int) -> None:
        """Adds what is next in rank order and complete."""
        frame = self.cls.frames[j]
        of_frame_s = self._costs.sum_byte_s * frame.exact_bytes + _codec_s(DECODE_BYTE_S, self._scenario.comm.push_format, frame)
        seconds = self.cls.slowness * frame.together * of_frame_s
        pushers = self._pushers[j]
        while self._next_rank[j] < len(pushers) and self._arrived[j][pushers[self._next_rank[j]]] > 1 - 1e-6:
            count = self._classes[pushers[self._next_rank[j]]].count
            self._next_rank[j] += 1
            is_last = self._next_rank[j] == len(pushers)
            self._threads[j].do(count * seconds, (lambda: self._apply(j)) if is_last else _nothing)

    def _apply(self, j: int) -> None:
        frame = self.cls.frames[j]
        self._arrived[j] = [0.0] * len(self._classes)
        self._next_rank[j] = 0
        if not j:
            self.loop.do(self.cls.slowness * self._costs.server_step_s, _nothing)
        encode_s = _codec_s(ENCODE_BYTE_S, self._scenario.comm.pull_format, frame)
        apply_s = self._costs.work_frame_s + self._costs.apply_byte_s * frame.exact_bytes
        self._threads[j].do(self.cls.slowness * frame.together * (apply_s + encode_s), lambda: self._answer(frame))

    def _answer(self, frame: Frame) -> None:
        """To all workers, each class in as many portions as its size allows; every shard begins with another rank."""
        byte_s = 0.0 if self._scenario.is_shared else self._costs.answer_byte_s
        readers = [a for a, cls in enumerate(self._classes) if cls.stage == frame.stage]
        counts = [self._classes[a].count for a in readers]
        portions = [parts_of(count, self.cls) for count in counts]
        left = dict(zip(readers, portions, strict=True))
        for at in turns(counts, portions, self.cls.first, self.cls.count):
            seconds = self.cls.slowness * frame.together * counts[at] / portions[at] * (self._costs.answer_frame_s + byte_s * frame.pull_bytes)
            self._answer_portion(frame, readers[at], seconds, portions[at], left)

    def _answer_portion(self, frame: Frame, index: int, seconds: float, portions: int, left: dict[int, int]) -> None:
        worker, num_frames = self.workers[index], self.cls.count / portions * frame.together
        portion = self._portion = (self._portion + 1) % portions

        def done() -> None:
            left[index] -= 1
            if not left[index]:
                worker.landed(frame)

        def made() -> None:
            if frame.pull_bytes > COPIED_BYTES:
                self._held[index].go()
            credited = self._held[index].taken()

            def arrived() -> None:
                credited()
                worker.land(frame, num_frames, done)

            self._network.answer(self._index, index, portion, frame.pull_bytes * num_frames, num_frames, arrived)

        self.loop.do(seconds, made)


def _rank_0s_times(scenario: Scenario, layers: Layers, host: int, servers: Sequence[ServerClass]) -> tuple[tuple[float, ...], float]:
    """When the gradient of each layer is ready, since backward has begun, and what a byte to one server takes, as far as rank 0 tells all ranks:
    where gradients wait for its link (`Schedule.pays`). `host`: where it is, with one server of those classes that are there."""
    rate = scenario.pacing.link_bytes_per_s
    if math.isfinite(rate) and scenario.comm.measures_link and scenario.overlap and scenario.pipeline is None:
        backward_s = scenario.stragglers.get(0, 1.0) * scenario.backward_s / scenario.micro_batches
        made_s = [backward_s * share for share in accumulate(reversed(layers.shares))]
        away = [cls.count - (scenario.hosts == "colocated" and cls.host == host) for cls in servers]
        num_bytes = sum(
            num_servers * frame.push_bytes * frame.together for num_servers, cls in zip(away, servers, strict=True) for frame in cls.frames
        )
        if num_bytes > rate * made_s[-1]:
            return tuple(reversed(made_s)), sum(away) / rate
    return (0.0,) * len(layers), 0.0


@lru_cache(maxsize=4096)
def _places(frames: tuple[Frame, ...], made_s: tuple[float, ...], byte_s: float) -> tuple[int, ...]:
    """Of every frame to a server in the order in which they leave: the earliest layer's first, of those that rank 0 has ready then."""
    first = [frame.layers[0] for frame in frames]
    keys = [(layer, j) for j, layer in enumerate(first)]
    order = scheduled(keys, [made_s[layer] for layer in first], [byte_s * frame.push_bytes * frame.together for frame in frames])
    return tuple(sorted(range(len(order)), key=order.__getitem__))


def parts_of(members: int, servers: ServerClass) -> int:
    return min(members, MOST_PARTS, math.ceil(ENOUGH_PARTS / len(servers.frames)))


def _codec_s(byte_s: dict[str, float], wire_format: str, frame: Frame) -> float:
    """Of a frame that travels in the format; one whose bytes are exact is left as it is."""
    return byte_s[wire_format] * frame.exact_bytes


def _nothing() -> None:
    pass
