"""A rank that is split over stages in the model of a step: how its compute and bytes are divided, and what each stage does when, as
`workers/stages/` does it."""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Sequence
from typing import Any

from deploy.predict.members import Worker
from deploy.predict.scenario import Scenario
from ps.layout import Rule
from ps.stages.messages import FRAME_BYTES
from workers.stages.schedule import Op, passes


class StageWorker(Worker):
    """One stage of the ranks of a class. It begins a step when all of its version has landed, computes micro-batches one forward, one backward,
    and pushes during its last backward. `neighbours` are set before it starts."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        pipeline = self._scenario.pipeline
        assert pipeline
        self._pipeline = pipeline
        stage, specs = self._cls.stage, self._scenario.specs
        of_stage = {layer for layer, spec in zip(self._layers.of_tensor, specs, strict=True) if spec.stage == stage}
        self._own = sorted(of_stage)
        self._ops: Sequence[Op] = passes(pipeline.schedule, stage, pipeline.num_stages, pipeline.micro_batches)
        self._at = 0
        self._came: dict[str, deque[None]] = {"forward": deque(), "backward": deque()}
        """What has come from the stage before, and the one after, and is not computed yet."""
        self._awaits: str | None = None
        self.neighbours: tuple[StageWorker | None, StageWorker | None] = (None, None)
        """The stage before, and the one after."""
        self.bubble_s: list[float] = []
        """Of every step: waited for neighbours."""

    def start(self) -> None:
        self._device.do(self._costs.step_s, lambda: self._forward(0))

    def _forward(self, layer: int) -> None:
        """A step, once everything has landed."""
        if not self._all_landed:
            self._waiting = layer
            return
        self.bubble_s.append(0.0)
        self._at = 0
        self._train.do(self._costs.install_byte_s * sum(self._layers.num_bytes[own] for own in self._own), self._go_on)

    def _go_on(self) -> None:
        if self._at == len(self._ops):
            self._end()
            return
        op = self._ops[self._at]
        before, after = self.neighbours
        if (before if op.kind == "forward" else after) is None:
            self._compute(op)
        elif self._came[op.kind]:
            self._came[op.kind].popleft()
            self._compute(op)
        else:
            self._awaits, self._since_s = op.kind, self._network.now_s

    def come(self, kind: str) -> None:
        """A message has arrived, and is taken by the thread that receives."""
        num_bytes = self._message_bytes(self._cls.stage - 1 if kind == "forward" else self._cls.stage)

        def taken() -> None:
            self._came[kind].append(None)
            if self._awaits == kind:
                self._awaits = None
                self.bubble_s[-1] += self._network.now_s - self._since_s
                self._go_on()

        frames = max(1, math.ceil(num_bytes / FRAME_BYTES))
        self._net.do(frames * self._costs.land_frame_s + num_bytes * self._costs.land_byte_s, taken)

    def _message_bytes(self, cut: int) -> float:
        """Of a micro-batch, behind stage `cut`."""
        return self._pipeline.passed_bytes[cut] / self._pipeline.micro_batches

    def _compute(self, op: Op) -> None:
        whole = self._scenario.forward_s if op.kind == "forward" else self._scenario.backward_s
        shares = self._pipeline.forward_shares if op.kind == "forward" else self._pipeline.backward_shares
        seconds = whole * shares[self._cls.stage] * self._cls.slowness / self._pipeline.micro_batches
        if op.kind == "backward" and op.micro + 1 == self._pipeline.micro_batches:
            self._begin()
            self._others.do(self._costs.worker_step_s, lambda: None)
            self._all_landed = not self._num_missing
            self._last_backward(seconds)
        else:
            self._device.do(seconds, lambda: self._done(op))

    def _done(self, op: Op) -> None:
        """The pass is over: what it has made goes to the neighbour."""
        before, after = self.neighbours
        to, cut = (after, self._cls.stage) if op.kind == "forward" else (before, self._cls.stage - 1)
        if to:
            num_bytes = self._message_bytes(cut)
            frames = max(1, math.ceil(num_bytes / FRAME_BYTES))
            neighbour = to
            self._net.do(
                frames * self._costs.push_frame_s + num_bytes * self._costs.push_byte_s,
                lambda: self._network.pass_on(self._index, neighbour._index, num_bytes, lambda: neighbour.come(op.kind)),
            )
        self._at += 1
        self._go_on()

    def _last_backward(self, seconds: float) -> None:
        """Layer by layer, the last one first: their gradients are copied, and leave with the frames that they complete."""
        total = sum(self._layers.shares[layer] for layer in self._own)
        parts = [(layer, self._layers.shares[layer] / total if total else 1 / len(self._own)) for layer in reversed(self._own)]

        def next_one(at: int) -> None:
            if at == len(parts):
                if not self._scenario.overlap:
                    self._ready(self._own)
                self._done(self._ops[self._at])
                return
            layer, share = parts[at]
            self._device.do(seconds * share, lambda: copy(at, layer))

        def copy(at: int, layer: int) -> None:
            def copied() -> None:
                if self._scenario.overlap:
                    self._ready([layer])
                next_one(at + 1)

            self._train.do(self._costs.copy_byte_s * self._layers.num_bytes[layer], copied)

        if parts:
            next_one(0)
        else:
            self._device.do(seconds, lambda: next_one(0))

    def _end(self) -> None:
        if not any(self._frames_of):
            self.landed_s.append(self._network.now_s)
        self._step += 1
        self._train.do(self._costs.step_s, lambda: self._forward(0) if self._step < self._num_steps else None)


def connect(workers: Sequence[StageWorker], num_stages: int) -> None:
    """All of them: the stages of each class of ranks follow each other."""
    for number, worker in enumerate(workers):
        is_first, is_last = number % num_stages == 0, (number + 1) % num_stages == 0
        worker.neighbours = None if is_first else workers[number - 1], None if is_last else workers[number + 1]


def bubble_s(first_stages: Sequence[StageWorker], scenario: Scenario) -> float:
    """See Prediction; 0 without stages."""
    pipeline = scenario.pipeline
    if pipeline is None:
        return 0.0
    computes_s = pipeline.forward_shares[0] * scenario.forward_s + pipeline.backward_shares[0] * scenario.backward_s
    waits_s = statistics.fmean(s for worker in first_stages for s in worker.bubble_s[2:-1])
    return max(0.0, computes_s + waits_s - scenario.compute_s)


def stages_floor_s(scenario: Scenario) -> float:
    """What the bytes need on these links: each stage pushes its own blocks' gradients, and passes on activations or their gradients. What is
    on one host is left out, where servers are on the hosts of workers."""
    pipeline, overhead = scenario.pipeline, scenario.costs.wire_overhead
    assert pipeline
    colocated = scenario.hosts == "colocated"
    own = [
        sum(spec.num_bytes for spec in scenario.specs if spec.stage == stage and spec.rule is not Rule.FROZEN) for stage in range(scenario.num_stages)
    ]
    shard = scenario.model_bytes / scenario.num_servers
    found = []
    for number in range(scenario.num_members):
        stage = number % scenario.num_stages
        passed = (pipeline.passed_bytes[stage - 1] if stage else 0.0) + (pipeline.passed_bytes[stage] if stage + 1 < scenario.num_stages else 0.0)
        has_server = colocated and number < scenario.num_servers
        here = own[stage] / scenario.num_servers if has_server else 0.0
        answers = scenario.num_workers * shard - here if has_server else 0.0
        found.append(overhead * (own[stage] - here + passed + answers) / scenario.worker_link(number))
    if not colocated:
        found += [overhead * scenario.num_workers * shard / scenario.server_link(server) for server in range(scenario.num_servers)]
    return max(found)
