"""A worker process: the models' member (the real Exchange and NormRelay), with memory and streams."""

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from protos import pserver_pb2 as pb
from ps import frame
from ps.errors import VersionGone
from ps.frame import Bytes
from ps.layout import Layout, Run
from tests.explore.clock import Killed, Process
from tests.explore.group import Group
from tests.explore.member_memory import MemberMemory
from tests.explore.wire import Wire
from tests.ps.models.core import Violation
from tests.ps.models.member import END, INIT, JOIN, PULL, READY, STEP, Habits, MemberModel

if TYPE_CHECKING:
    from tests.explore.world import World

REPORT, AGREE, PIPE = "report", "agree", "pipe"
AGAIN_S = 0.1
"""Until a server that is away is asked again."""


class Member(MemberModel, Process):
    """One incarnation of one rank, or of one of its stages, which has a group."""

    def __init__(self, world: "World", rank: int, incarnation: int, stage: int = 0, group: Group | None = None) -> None:
        job = world.job
        self.world = world
        self.stage = stage
        self.group = group
        self.has_agreed = False
        self.met_at = -1
        """Newest version that all stages of the rank have landed."""
        Process.__init__(self, f"rank {rank}.{incarnation}" if group is None else f"rank {rank} stage {stage}.{incarnation}")
        self.memory = MemberMemory(job, rank, world.residuals[rank])
        self.members = [pb.Member(rank=rank, stage=stage, incarnation=incarnation, generation=1) for _ in job.layout.shards]
        self.wires: list[Wire | None] = [None] * job.num_servers
        self.asked: set[Any] = set()
        """Calls in progress."""
        self.skipped = [False] * job.num_servers
        self.sequences: list[dict[int, int]] = [{} for _ in job.layout.shards]
        """Frames by sequence, of the present streams."""
        self.reported = -1
        MemberModel.__init__(self, Habits(window=job.window), job.layout, rank, job.steps, stage)

    def _cut(self, layout: Layout, habits: Habits) -> list[list[Run]]:
        return [shard.frames(self.world.job.frame_bytes, self.stage) for shard in layout.shards]

    def _own(self, layout: Layout) -> list[npt.NDArray[np.bool_]]:
        return [shard.stage == self.stage for shard in layout.shards]

    @property
    def number(self) -> int:
        return self.rank * self.world.job.num_stages + self.stage

    # -- what can be done now --------------------------------------------------------------------------------

    def go_on(self, happens: Callable[[], object] = lambda: None) -> None:
        """Something happens in this process, which may die of it; then all that has become possible."""
        self.world.actors.append(self)
        try:
            happens()
            self._go_on()
        except Killed:
            return
        finally:
            self.world.actors.pop()

    def _go_on(self) -> None:
        if self.mode == JOIN:
            for shard, version in enumerate(self.joined):
                if version is None:
                    self._ask_to_join(shard)
            return
        broken = [shard for shard, wire in enumerate(self.wires) if wire is None]
        if self.mode in (INIT, READY, STEP, AGREE, PIPE) and broken:
            for shard in broken:
                self._ask_to_join(shard)
        elif self.mode in (INIT, PULL):
            for shard, chunk in self.todo[:2]:
                self._ask_for_chunk(shard, chunk)
        elif self.mode == REPORT:
            self._report()
        elif self.mode == STEP:
            self._pump()
        elif self.mode == END and "end" not in self.asked:
            self.asked.add("end")
            self.world.finish(self)

    def _later(self, what: Any) -> None:
        """Asks again after a while."""

        def again() -> None:
            self.asked.discard(what)
            self.go_on()

        self.world.clock.after(AGAIN_S, self, again)

    def _call(self, what: Any, shard: int, execute: Any, answered: Any) -> None:
        if what in self.asked:
            return
        self.asked.add(what)
        server = self.world.locate(shard)
        if server is None:
            self._later(what)
            return

        def done(result: Any) -> None:
            self.asked.discard(what)
            self.go_on(lambda: answered(server, result))

        self.world.calls.call(
            self, server, lambda answer: execute(server, answer), done, lambda: self._later(what), is_cut=lambda: self.world.is_cut(self, shard)
        )

    # -- join, init, pull ------------------------------------------------------------------------------------

    def _ask_to_join(self, shard: int) -> None:
        segment = self.memory.gradients if self.world.job.shared else None
        member = pb.Member.FromString(self.members[shard].SerializeToString())
        self._call(("join", shard), shard, lambda server, answer: server.join(member, segment, answer), lambda *got: self._has_joined(shard, *got))

    def _has_joined(self, shard: int, server: Any, result: Any) -> None:
        if isinstance(result, Exception):  # fenced: a newer incarnation has joined
            self.world.give_up(self)
            return
        version, session, self.skipped[shard] = result
        self.members[shard].session = session
        if wire := self.wires[shard]:
            wire.close()
        wire = self.wires[shard] = Wire(self.world.clock, self, server, pb.Member.FromString(self.members[shard].SerializeToString()))
        self.sequences[shard] = {}
        wire.cut_until = self.world.cut_until(self, shard)
        wire.open()
        if self.mode == JOIN:
            self.join_answered(shard, version)
            return
        for target, message in self.rejoined(shard, version):
            self._send_norms(target, message)

    def _start_version(self, versions: list[int]) -> int:
        version = super()._start_version(versions)
        self.world.has_joined(self)
        self.memory.resume(max(version, 0), skipped=any(s for s, v in zip(self.skipped, self.joined, strict=True) if v == version))
        return version

    # -- with the other stages of the rank -------------------------------------------------------------------

    def _go_on_from(self) -> None:
        if self.group and self.version >= 0 and not self.has_agreed:
            self.mode = AGREE
            self.group.found(self, self.version)
        else:
            super()._go_on_from()

    def agreed_on(self, version: int) -> None:
        """All stages of the rank begin there."""
        self.has_agreed, self.version = True, version
        super()._go_on_from()

    def _has_landed(self) -> None:
        if self.group and self.met_at < self.version:
            self.mode = PIPE
            self.group.landed(self, self.version)
        else:
            super()._has_landed()

    def met(self, version: int) -> None:
        """All stages of the rank have landed it."""
        self.met_at = version
        self._has_landed()

    def rejoined(self, shard: int, version: int) -> Any:
        if self.mode == REPORT:  # its step is over, its credits come back all the same
            self.exchange.stream_ended(shard)
            return ()
        if self.mode in (AGREE, PIPE):
            self.exchange.stream_ended(shard)
            return tuple((shard, ("norms", self.exchange.step, source, squares)) for source, squares in sorted(self.relay.known().items()))
        return super().rejoined(shard, version)

    def _ask_for_chunk(self, shard: int, chunk: int) -> None:
        if self.mode == INIT:
            run, job = Run(chunk, chunk + 1), self.world.job
            payload = np.frombuffer(job.bytes_of(shard, run, 0), np.uint8)
            self._call(
                (INIT, shard, chunk), shard, lambda server, answer: server.init(chunk, payload, answer), lambda *_: self._brought(shard, chunk)
            )
        else:
            version = self.version
            self._call(
                (PULL, shard, chunk),
                shard,
                lambda server, answer: server.read(version, chunk, answer),
                lambda _, data: self._has_pulled(version, shard, chunk, data),
            )

    def _brought(self, shard: int, chunk: int) -> None:
        if self.mode == INIT:
            self.brought(shard, chunk)

    def _has_pulled(self, version: int, shard: int, chunk: int, data: Any) -> None:
        if self.mode != PULL or version != self.version:
            return
        if isinstance(data, VersionGone):
            self.world.count("pull: gone")
            if self.group:
                raise Violation(f"{self.name} cannot read version {version}, which its rank has agreed on")
            self.give_up_streams()
            self.pulled(shard, chunk, None)
            return
        self.world.count("pull")
        self.memory.land(shard, version, Run(chunk, chunk + 1), frame.decode(data)[1])
        self.pulled(shard, chunk, version)

    def give_up_streams(self) -> None:
        for shard, wire in enumerate(self.wires):
            if wire:
                wire.close()
            self.wires[shard] = None

    # -- a step ----------------------------------------------------------------------------------------------

    def _begin(self) -> None:
        """A version has landed: the step before is settled, its epoch reported, and then the next one begins."""
        if self.group and self.met_at < self.version:
            self._has_landed()
            return
        self.memory.settle(self.version, self.relay.known().values())
        if self.world.job.plan.decides(self.version) and self.reported < self.version:
            self.mode = REPORT
            return
        self.mode = STEP
        self.exchange.begin(self.version)
        self.relay.begin()
        self.memory.compute(self.version)
        for tensor in range(len(self.layout.specs)):
            ready = partial(self._is_ready, self.version, tensor)
            self.world.clock.after(self.world.rng.uniform(0, self.world.compute_s[self.rank]), self, ready)

    def _is_ready(self, step: int, tensor: int) -> None:
        """Backward has come to a tensor."""
        if self.mode == STEP and self.exchange.step == step:
            self.go_on(lambda: self.exchange.ready([tensor]))

    def _pump(self) -> None:
        while self.mode == STEP and (found := self.send()):
            shard, index, _, receipt_may_wait = found
            run, wire = self.frames[shard][index], self.wires[shard]
            assert wire
            for kind, part in self.memory.parts(shard, run):
                sequence = len(self.sequences[shard]) + 1
                self.sequences[shard][sequence] = index if part.stop == run.stop else -1
                data = self.memory.encode(self.members[shard], shard, kind, part, sequence, receipt_may_wait=receipt_may_wait)
                self.world.push(wire, data)
        for shard in self.exchange.overdue() if self.mode == STEP else ():
            wire = self.wires[shard]
            assert wire
            self.world.count("receipts asked")
            wire.up(frame.encode(pb.FrameHeader(kind=pb.PROBE)))

    def receive_frame(self, wire: Wire, data: bytes) -> None:
        """A frame from a shard, unless the stream has been given up."""
        if self.wires[wire.server.index] is wire:
            self.go_on(lambda: self._take(wire.server.index, data))

    def _take(self, shard: int, data: bytes) -> None:
        header, payload = frame.decode(data)
        if header.kind == pb.READY:
            self.receive(shard, ("ready",))
        elif header.kind == pb.RECEIPT:
            index = self.sequences[shard].get(header.sequence, -1)  # 0: of a question
            if index >= 0:
                self.sequences[shard][header.sequence] = -1  # a receipt returns its credit once
                self.receive(shard, ("receipt", index))
        elif header.kind == pb.NORMS and self.mode in (STEP, REPORT, PIPE):
            for target, message in self.receive(shard, ("norms", header.step, ((header.norms_shard, np.array(header.norms)),))):
                self._send_norms(target, message)
        elif header.kind == pb.PARAMS and self.mode == STEP:
            self._landed(shard, header, payload)

    def _landed(self, shard: int, header: pb.FrameHeader, payload: Bytes) -> None:
        run, version = Run(header.first_chunk, header.first_chunk + header.num_chunks), int(header.step)
        if self.exchange.may_land(shard, version, run):
            self.memory.land(shard, version, run, payload)
            self.world.count("landed")
        self.receive(shard, ("params", version, (run.first, run.stop), (version,) * len(run)))

    def _send_norms(self, target: int, message: Any) -> None:
        _, step, source, squares = message
        if wire := self.wires[target]:
            wire.up(frame.encode(pb.FrameHeader(kind=pb.NORMS, step=step, norms_shard=source, norms=np.asarray(squares).tolist())))

    def lost(self, wire: Wire) -> None:
        """The stream has ended."""
        wire.open_below = False
        shard = wire.server.index
        if self.wires[shard] is wire:
            self.wires[shard] = None
            self.go_on()

    # -- between steps ---------------------------------------------------------------------------------------

    def _report(self) -> None:
        if REPORT in self.asked:
            return
        self.asked.add(REPORT)
        version = self.version
        sums = self.memory.sums(version)

        def done(result: Any) -> None:
            self.asked.discard(REPORT)
            if isinstance(result, Exception):
                self.world.give_up(self)
            elif self.mode == REPORT and self.version == version:
                self.reported = version
                self.go_on(self._begin)

        driver = self.world.driver
        self.world.calls.call(self, driver, lambda answer: driver.report(self, version, sums, answer), done, lambda: self._later(REPORT))
