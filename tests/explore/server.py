"""A server process around the real Shard: what `ps.data_port` and `ps.host` do with it, without gRPC."""

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from protos import pserver_pb2 as pb
from ps import frame
from ps.barrier import Verdict
from ps.checkpoints.cut import Cut, Cuts
from ps.errors import Diverged, EarlyPush, Fenced, MalformedFrame, PserverError, VersionGone
from ps.frame import Bytes
from ps.layout import Run
from ps.ledger import RowBuffer
from ps.optimizers import num_slots
from ps.receipts import ANSWERED
from ps.shard import Shard
from ps.stats import ServerStats
from ps.store import Store
from tests.explore.clock import Killed, Process
from tests.explore.wire import Wire
from tests.ps.models.core import Violation

if TYPE_CHECKING:
    from tests.explore.world import World

KEY = bytes(range(32))


class Memory:
    """What survives a server's process."""

    def __init__(self, world: "World", index: int) -> None:
        job = world.job
        self.layout = job.layout.shards[index]
        self.sizes = {
            "slots": num_slots(job.optimizer),
            "num_norms": sum(s.num_optimizer for s in job.layout.shards) if job.optimizer.two_phase else 0,
        }
        self.bytes: Bytes = np.zeros(Store.size_bytes(self.layout, **self.sizes), np.uint8)

    def store(self) -> Store:
        return Store(self.bytes, self.layout, **self.sizes, key=KEY)


class Pool:
    """Runs what the shard gives to its threads, each task at some time."""

    def __init__(self, server: "Server") -> None:
        self._server = server

    def submit(self, call: Callable[..., object], *arguments: Any) -> None:
        server = self._server
        server.world.clock.after(server.world.rng.uniform(0, 0.02), server, lambda: server.run(lambda: call(*arguments)))

    def shutdown(self, *, wait: bool) -> None: ...


class Server(Process):
    """One incarnation. Its memory was there before, or is new."""

    def __init__(self, world: "World", index: int) -> None:
        super().__init__(f"server {index}")
        self.world, self.index = world, index
        self.store = world.memories[index].store()
        if not self.store.attach():
            self.store.format()
        settings = world.job.settings(index)
        stats = ServerStats(index, settings.num_members, RowBuffer(), None)
        self.cuts = Cuts(self.store, world.job.is_due, self._has_cut, lambda version, why: world.count("cut given up"))
        self.cuts._changed.wait_for = self._waits_for  # type: ignore[method-assign]
        self.shard = Shard(world.job.layout, self.store, settings, world.job.plan, stats, self.cuts)
        self.shard.work._pool = Pool(self)  # type: ignore[assignment]
        self.wires: list[Wire] = []
        self._waiting: list[tuple[Wire, Any]] = []
        """Frames whose rank's turn has not come."""

    def run(self, action: Callable[[], object]) -> None:
        """Something happens in this process, which may die of it."""
        self.world.actors.append(self)
        try:
            action()
            self._go_on()
        except Killed:
            return
        finally:
            self.world.actors.pop()
        if self.shard._ended:
            raise Violation(f"shard {self.index} has ended: {self.shard._ended}")
        self.world.check()

    def is_locked(self) -> bool:
        """Whether the thread that runs holds the shard's lock: nothing else happens here meanwhile."""
        return self.shard._changed._is_owned()  # type: ignore[attr-defined,no-any-return]

    # -- calls -----------------------------------------------------------------------------------------------

    def join(self, member: pb.Member, segment: Bytes | None, answer: Callable[[Any], object]) -> None:
        """A higher incarnation waits until nothing reads what the rank has pushed."""
        if self.shard.work.reads(member.rank):
            self.world.clock.after(0.01, self, lambda: self.join(member, segment, answer))
            return

        def joined() -> None:
            try:
                version, session = self.shard.join(member, segment)
            except Fenced as error:
                answer(error)
            else:
                answer((version, session, self.shard.has_skipped(version - 1)))

        self.run(joined)

    def init(self, chunk: int, payload: Bytes, answer: Callable[[Any], object]) -> None:
        self.run(lambda: answer(self.shard.init(Run(chunk, chunk + 1), payload)))

    def read(self, version: int, chunk: int, answer: Callable[[Any], object]) -> None:
        """A chunk of a pinned version; VersionGone if it is."""

        def pulled() -> None:
            try:
                pinned = self.shard.answers.pull_version(version)
                answer(self.shard.answers.encode_params(pinned, Run(chunk, chunk + 1)))
            except VersionGone as error:
                answer(error)

        self.run(pulled)

    def decide(self, version: int, rate_factor: float, answer: Callable[[Any], object]) -> None:
        def decided() -> None:
            self.shard.decide(version, rate_factor)
            answer(None)

        self.run(decided)

    # -- checkpoints -----------------------------------------------------------------------------------------

    def snapshot(self, version: int) -> None:
        """A cut that is asked for, unless the one before is still in use: the shard would wait for that."""

        def asked() -> None:
            try:
                self.shard.cut(version)
            except VersionGone:
                self.world.count("cut: gone")

        if not self.cuts._delivered:
            self.run(asked)

    def _waits_for(self, done: Callable[[], bool], timeout: float | None = None) -> bool:
        """For another thread's copy: all threads are on one stack here, so it would never come. Those of a dead process are no more."""
        if done():
            return True
        raise Killed if self.is_dead else Violation(f"{self.name} waits for a copy that nobody makes")

    def _has_cut(self, cut: Cut) -> None:
        """Its memory is in use until its file has been written."""
        job, world, layout = self.world.job, self.world, self.shard.layout
        if cut.data.params.tobytes() != b"".join(job.bytes_of(self.index, block.run, cut.version) for block in layout.blocks):
            raise Violation(f"a cut of {self.name} has other bytes than the reference's of version {cut.version}")
        world.count("cut")
        world.clock.after(world.rng.uniform(0, 3.0), self, self.cuts.release)

    # -- streams ---------------------------------------------------------------------------------------------

    def open(self, wire: Wire) -> None:
        def opened() -> None:
            try:
                self.shard.open_stream(wire.member, wire.stream)
            except Fenced as error:
                wire.stream.end(error)

        self.run(opened)

    def close(self, wire: Wire) -> None:
        if wire.open_above:
            wire.open_above = False
            self.run(lambda: self.shard.close_stream(wire.member, wire.stream))

    def receive(self, wire: Wire, data: bytes) -> None:
        """A frame has arrived; those of a stream are taken one after the other."""
        if wire.open_above:
            wire.inbox.append(data)
            self.run(lambda: self._read(wire))

    def _read(self, wire: Wire) -> None:
        while wire.inbox and not wire.is_busy and wire.open_above:
            wire.is_busy = True
            rest = self._guarded(wire, partial(self._take, wire, wire.inbox.popleft()))
            if rest:
                self._waiting.append((wire, rest))
            else:
                wire.is_busy = False

    def _go_on(self) -> None:
        """Frames that wait for their rank's turn ask again, as long as that changes anything."""
        before = None
        while self._waiting and before != (before := self._progress()):
            for _ in range(len(self._waiting)):
                if not self._waiting:
                    return  # others have overtaken us
                wire, rest = self._waiting.pop(0)
                left = self._guarded(wire, partial(rest, may_wait=False))
                if left:
                    self._waiting.append((wire, left))
                else:
                    wire.is_busy = False
                    self._read(wire)

    def _progress(self) -> tuple[int, ...]:
        barrier = self.shard._barrier
        return barrier.early_bytes, int(barrier._next.sum()), int(self.store.words.sum()), len(self._waiting)

    def _guarded(self, wire: Wire, call: Callable[[], Any]) -> Any:
        """As `ps.data_port` does, an error ends the stream; some must never be."""
        try:
            return call()
        except (EarlyPush, Diverged) as error:
            raise Violation(f"{type(error).__name__}: {error}") from error
        except (Fenced, MalformedFrame) as error:
            self.world.count(f"{type(error).__name__} frame")
            wire.stream.end(error)
        except PserverError as error:
            raise Violation(f"shard {self.index} ends: {error}") from error
        return None

    def _take(self, wire: Wire, data: bytes) -> Any:
        header, payload = frame.decode(data)
        if header.kind == pb.NORMS:
            self.shard.learn_norms(wire.member, header)
            return None
        if header.kind == pb.PROBE:
            wire.down(frame.encode(pb.FrameHeader(kind=pb.RECEIPT)))
            return None
        job = self.world.job
        run = frame.checked_run(header, payload, self.shard.layout, with_payload=header.kind == pb.PUSH, wire=job.push_format, may_share=job.shared)

        def receipt(verdict: Verdict) -> None:
            self.world.count(verdict.name)
            send = wire.down_in_company if header.receipt_may_wait and verdict in ANSWERED else wire.down
            send(frame.encode(pb.FrameHeader(kind=pb.RECEIPT, step=header.step, sequence=header.sequence)))

        return self.shard.push(wire.member, header, run, payload, receipt, may_wait=False)
