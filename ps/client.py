"""The worker's end of the wire: join, init, pull, and one exchange of gradients for parameters per step.

All or error: `settle` either lands every chunk of every shard or raises.
"""

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import numpy as np

from protos import pserver_pb2 as pb
from ps import frame
from ps.agreement import spec_messages
from ps.config import SHARED_FRAME_BYTES, CommConfig, Timeouts
from ps.contribution import Contribution
from ps.control import ServerAddress
from ps.credentials import Credentials
from ps.errors import MalformedFrame, PserverError, Stopped, Unreachable, VersionGone
from ps.exchange import Exchange
from ps.failpoints import hit
from ps.frame import Bytes
from ps.layout import Layout
from ps.line import PROBED, Line
from ps.link_test import LinkTest
from ps.norms import NormRelay
from ps.pacing import Pacing
from ps.plan import Plan
from ps.rank_state import RankState
from ps.rejoin import Locate, Rejoin
from ps.shared import MemberSegment, StoreView
from ps.step_clock import StepClock, StepTiming
from ps.store import EMPTY
from ps.transport.counters import WireMeter
from ps.transport.shaping import Link
from ps.waiter import Waiter

log = logging.getLogger(__name__)

_ASK_AGAIN_S = 0.1
"""Until a server that is away is asked again."""


class Client:
    """A member's connection to all shards. One thread uses it; `abort` may come from any.

    `landing` holds two flat layouts; version v lands in landing[v % 2]. `segment`, if there is one, holds the gradients that
    are exchanged, `rank_state` what a lossy push format needs; both are the client's from here on. `locate` finds servers that
    were started again.
    """

    def __init__(
        self,
        *,
        member: pb.Member,
        credentials: Credentials,
        layout: Layout,
        servers: Sequence[ServerAddress],
        comm: CommConfig,
        timeouts: Timeouts,
        landing: tuple[Bytes, Bytes],
        segment: MemberSegment | None = None,
        locate: Locate | None = None,
        rank_state: RankState | None = None,
    ) -> None:
        self.member = member
        self.layout = layout
        self._landing = landing
        self._segment = segment
        self._initial: Bytes | None = None
        """Version 0, if it is ours to bring."""
        self._rejoin = Rejoin(len(servers), timeouts, locate, self._pause)
        self._rank_state = rank_state
        link = Link(comm.bucket_bytes_per_s(rank=member.rank))
        shards = layout.shards
        self._lines = [
            Line(a, shards[a.shard], link, member=member, credentials=credentials, timeouts=timeouts, comm=comm, rank_state=rank_state)
            for a in servers
        ]
        self._comm = comm
        self.pacing = Pacing()
        """Frames that travel, as the link is."""
        # guards everything below and the lines; notified by the receiving threads
        self._changed = threading.Condition()
        self._link_test = LinkTest(self._changed)
        self._waiter = Waiter(self._changed, lambda s, blocked: self._clock.waited(s, blocked=blocked), lambda: self._exchange.has_ready)
        self._exchange = self._planned()
        self._relay = NormRelay(len(shards))
        self._clock = StepClock(member.rank, len(shards))
        self._wire = WireMeter()
        self._contribution: Contribution
        """What is pushed in the step."""
        self._in_place: StoreView | None = None
        """The server's memory, if the model computes there: nothing is copied when it lands."""
        self._order: list[int] | None = None
        """Place of every tensor in rank 0's forward pass, once it is known."""
        self._new_order: list[int] | None = None
        """The same until the next step begins."""
        self._encoding = 0
        """Frames that a thread works on: they read the contribution."""
        self._error: PserverError | None = None
        self._broken: set[int] = set()
        self.doing: str | None = None
        """What the thread that uses us waits for, for people; None: for nothing."""

    def _planned(self) -> Exchange:
        """The frames of a step, as the lines are."""
        shards, travelling = self.layout.shards, self._comm.frame_bytes or self.pacing.frame_bytes
        sizes = [self._comm.frame_bytes or SHARED_FRAME_BYTES if line.pushes_shared else travelling for line in self._lines]
        self._frames = [[run for run in shard.frames(size) if run.stop <= shard.num_versioned] for shard, size in zip(shards, sizes, strict=True)]
        all_shared = all(line.pushes_shared for line in self._lines)
        window = sum(map(len, self._frames)) if all_shared else self._comm.window_frames or self.pacing.window_frames
        return Exchange(self.member.rank, self._frames, [shard.tensor[: shard.num_versioned] for shard in shards], window)

    # -- join, init, pull ------------------------------------------------------------------------------------

    def join(self, digests: Sequence[int], plan: Plan, environment: pb.Environment) -> int:
        """Joins all shards and returns the smallest version; -1 if version 0 must be brought first.

        `digests`: xxh3-64 of every chunk of version 0 in layout order. Raises ModelMismatch, Fenced, Unreachable, StateLost.
        """
        self._rejoin.request = pb.JoinRequest(
            member=self.member,
            tensors=spec_messages(self.layout.specs),
            chunk_digests=digests,
            environment=environment,
            steps_per_epoch=plan.steps_per_epoch,
            total_steps=plan.total_steps,
            validate_every=plan.validate_every,
            own_loop=plan.own_loop,
            shared=self._segment.offer if self._segment else None,
        )
        joined = [self._rejoin.join(line) for line in self._lines]
        with self._changed:
            self._exchange = self._planned()
        version = min((one.version for one in joined if one.version != EMPTY), default=0)
        if self._rank_state:
            self._rank_state.resume(max(version, 0), skipped=any(one.skipped for one in joined if one.version == version))
        return version

    def init(self, values: Bytes) -> None:
        """Brings version 0 to all shards from a flat layout, which must not change before `open` returns; repeating it changes nothing."""
        self._initial = values
        for line in self._lines:
            self._rejoin.persist(line, partial(line.init, values))
            hit("worker.brought")

    def pull(self, version: int, into: Bytes) -> int:
        """All tensors of one version, pinned, into a flat layout; returns the version. Raises VersionGone: join again."""
        pulled = version
        for line in self._lines:
            pulled = self._rejoin.persist(line, partial(line.pull, pulled, into))
            hit("worker.pulled")
        return pulled

    def _pause(self) -> None:
        with self._changed:
            self._changed.wait_for(lambda: bool(self._error), _ASK_AGAIN_S)
            self._check()

    def open(self) -> None:
        """Opens the training streams; returns when every shard is ready (rank 0 may still be bringing version 0)."""
        with self._changed:
            self._broken.clear()
            for line in self._lines:
                line.open(self._take, self._stream_ended)
        while True:
            with self._changed:
                self._wait(lambda: bool(self._broken) or all(line.ready for line in self._lines))
                broken = sorted(self._broken)
            if not broken:
                break
            for index in broken:
                self._reopen(self._lines[index])
        self._initial = None
        self._suit_link()

    def _suit_link(self) -> None:
        """Chooses frames by what the link turns out to be, where some travel and the settings leave it open."""
        lines = [line for line in self._lines if not line.pushes_shared]
        if not lines or not self._comm.measures_link:
            return
        found = self._link_test.run(lines, self._wait, lambda: bool(self._broken))
        if found is None:
            return
        with self._changed:
            self.pacing = found
            self._exchange = self._planned()
        log.info("rank %d: %s", self.member.rank, found)

    def measure(self, shard: int) -> tuple[Pacing | None, bool]:
        """The link to one shard (None if its stream broke meanwhile), and whether the shard is on this host. Between steps."""
        return self._link_test.run([self._lines[shard]], self._wait, lambda: bool(self._broken)), self._lines[shard].local

    # -- one step --------------------------------------------------------------------------------------------

    def prioritise(self, use: Mapping[int, int]) -> None:
        """Frames leave in the order of `use` (tensor: when the forward pass first uses it), those of other tensors last. Between steps.

        Rank 0's first order becomes that of all ranks as soon as they know it, and stays.
        """
        with self._changed:
            if self._order is not None:
                return
            self._exchange.prioritise(use)
            if self.member.rank == 0:
                self._order = [use.get(tensor, len(use)) for tensor in range(len(self.layout.specs))]
                self._lines[0].send_order(self._order)

    def begin(self, step: int, weight: float, gradients: Bytes) -> None:
        """A step of which nothing is ready yet; its version has landed (`settle`). `gradients` is a flat layout."""
        with self._changed:
            self._check()
            if self._new_order is not None:
                self._exchange.prioritise(dict(enumerate(self._new_order)))
                self._new_order = None
            self._exchange.begin(step)
            self._relay.begin()
            self._clock.begin()
            self._contribution = Contribution(step, weight, gradients, np.zeros(len(self.layout.specs), np.bool_))

    def ready(self, tensors: Sequence[int], *, present: bool) -> None:
        """The contributions to these tensors lie in `gradients`, and stay as they are until `settle` returns; or they are absent.

        Each tensor is named once per step. What the window admits is sent; never blocks.
        """
        started = time.monotonic()
        with self._changed:
            self._contribution.present[list(tensors)] = present
            self._exchange.ready(tensors)
        self._pump()
        with self._changed:
            self._clock.encode_s += time.monotonic() - started

    def missing(self) -> list[int]:
        """Tensors of whose next version something has not landed yet."""
        with self._changed:
            return self._exchange.missing()

    def wait(self, tensors: Sequence[int]) -> None:
        """Returns when all of these tensors has landed. Raises what the servers raise."""
        self._block(lambda: self._exchange.has_landed(tensors))

    def settle(self) -> StepTiming:
        """Returns when all of the step's next version has landed. Raises what the servers raise."""
        self._block(lambda: self._exchange.is_done and not self._encoding)
        self._settle_rank_state()
        with self._changed:
            timing = self._clock.finish()
        for line in self._lines:
            traffic = timing.shards[line.index]
            traffic.local = line.local
            traffic.push_wire_bytes, traffic.pull_wire_bytes = self._wire.take(line.address.data)
        return timing

    def share(self) -> tuple[Bytes, Bytes] | None:
        """Flat layouts of the even and the odd versions in the server's own memory, which from now on are not copied when they land.

        None if there are several servers, or the one is not on this host. What has landed may be read there until all of the version
        after it has. Between `settle` and `begin`.
        """
        store = self._lines[0].store if len(self._lines) == 1 else None
        copies = store.flat_copies if store else None
        with self._changed:
            self._in_place = store if copies else None
        return copies

    def _block(self, done: Callable[[], bool]) -> None:
        while True:
            with self._changed:
                self._check()
                broken = sorted(self._broken)
                if not broken:
                    if done():
                        self.doing = None
                        return
                    self.doing = f"waits for the next version of {len(self._exchange.missing())} tensors"
                    self._waiter.wait(done, 1.0)
            for index in broken:
                self._reopen(self._lines[index])
                self._pump()

    def _settle_rank_state(self) -> None:
        """All shards have applied the step, or skipped it: their norms, which came before their answers, tell which."""
        if not self._rank_state or self._exchange.step < self._rank_state.version:
            return
        known = self._relay.known()
        skipped = False
        if self._rank_state.skip_nonfinite:
            assert all(line.index in known for line in self._lines if line.layout.num_optimizer)
            skipped = not all(np.isfinite(squares).all() for squares in known.values())
        self._rank_state.settle(self._exchange.step, skipped=skipped)

    def _pump(self) -> None:
        """Sends what is ready as far as the window allows; in any thread. Frames of a broken line wait until it is open again."""
        while True:
            with self._changed:
                if self._error or self._broken:
                    return
                found = self._exchange.next_frame()
                if found is None:
                    return
                shard, index = found
                opened = self._lines[shard].opened
                self._encoding += 1
            try:
                self._send(shard, index, opened)
            finally:
                with self._changed:
                    self._encoding -= 1
                    if not self._encoding:
                        self._waiter.news()

    def _send(self, shard: int, index: int, opened: int) -> None:
        """On the stream that was the `opened`-th of its line."""
        line, run, contribution = self._lines[shard], self._frames[shard][index], self._contribution
        parts = contribution.parts(line.layout, run)
        with self._changed:
            # the last part's receipt returns the credit
            sequences = [line.next_sequence(index if part.stop == run.stop else -1) for _, part in parts]
        started = time.monotonic()
        frames = [line.encode(kind, part, contribution, sequence) for (kind, part), sequence in zip(parts, sequences, strict=True)]
        encode_s = time.monotonic() - started
        hit("worker.encoded")
        payload_bytes = sum(one.payload_bytes for one in frames)
        with self._changed:
            if line.opened != opened:  # the line broke meanwhile: the frame is ready again
                return
            self._clock.sent(shard, index, payload_bytes, encode_s)
            for one in frames:
                line.send(one.data)
                hit("worker.sent")

    # -- streams ---------------------------------------------------------------------------------------------

    def _reopen(self, line: Line) -> None:
        """A stream broke: joins that shard again (same incarnation) and pushes again what has not landed."""
        log.warning("stream to server %d broke: joining again", line.index)
        self.doing = f"looks for server {line.index}, whose stream broke"
        version = self._rejoin.join(line).version
        if version < self._exchange.step:
            raise VersionGone(f"server {line.index} came back with version {version} instead of {self._exchange.step}: its memory is lost")
        if self._in_place and (line.store is None or line.store.file != self._in_place.file):
            raise VersionGone(f"server {line.index} came back with other memory, and rank {self.member.rank} computes in the former one")
        initial = self._initial
        if version == -1 and initial is not None:
            self._rejoin.persist(line, partial(line.init, initial))
        with self._changed:
            self._broken.discard(line.index)
            self._exchange.stream_ended(line.index)
            line.open(self._take, self._stream_ended)
            hit("worker.rejoined")
            known = self._relay.known()
            self._wait(lambda: line.ready or line.index in self._broken)
            is_ready = line.ready
        if is_ready:
            self._rejoin.succeeded(line)
        else:
            self._rejoin.stream_failed(line, Unreachable(f"server {line.index} ends every stream: see its log"))
        for source, squares in known.items():
            self._relay_norms(line, self._exchange.step, source, squares.tolist())
        if self.member.rank == 0 and line.index == 0 and self._order is not None:
            line.send_order(self._order)

    def _stream_ended(self, line: Line, error: PserverError) -> None:
        with self._changed:
            if self._error:
                return
            if self._rejoin.is_gone(error):
                self._broken.add(line.index)
            else:
                self._error = error
            self._changed.notify_all()

    def _take(self, line: Line, header: pb.FrameHeader, payload: Bytes) -> None:
        """A frame from a shard, in the line's receiving thread."""
        if header.kind == pb.PARAMS:
            self._land(line, header, payload)
        elif header.kind == pb.NORMS:
            self._learn_norms(header)
        else:
            with self._changed:
                if header.kind == pb.READY:
                    line.ready = True
                elif header.kind == pb.RECEIPT:
                    self._return_credit(line, header)
                elif header.kind == pb.ORDER:
                    self._order = self._new_order = list(header.places)
                self._waiter.news()
            self._pump()

    def _return_credit(self, line: Line, header: pb.FrameHeader) -> None:
        index = line.frame_of(header.sequence)
        if index == PROBED:
            self._link_test.echoed()
        elif index is not None and index >= 0:
            self._clock.received(line.index, index, header.clock_s)
            self._exchange.receipt(line.index, index)

    def _land(self, line: Line, header: pb.FrameHeader, payload: Bytes) -> None:
        run = frame.checked_run(header, payload, line.layout, with_payload=not header.shared, wire=line.pull_format)
        version = int(header.step)
        with self._changed:
            if not self._exchange.may_land(line.index, version, run):
                return
        into = self._landing[version % 2]
        if not header.shared:
            frame.land(frame.exact_payload(header, payload, line.layout, run), into, line.layout, run, flat=True)
        elif line.store is None or not (line.store.holds(version, run) if self._in_place else line.store.land(version, run, into)):
            return  # gone: a newer incarnation of this rank has gone on
        with self._changed:
            self._clock.landed(line.index, header, frame.payload_bytes(line.layout, run, line.pull_format))
            self._exchange.landed(line.index, run)
            hit("worker.landed")
            self._waiter.news()

    def _learn_norms(self, header: pb.FrameHeader) -> None:
        shard, shards = header.norms_shard, self.layout.shards
        if shard >= len(shards) or len(header.norms) != shards[shard].num_optimizer:
            raise MalformedFrame(f"{len(header.norms)} norms of shard {shard}: no such shard has so many")
        with self._changed:
            if header.step != self._exchange.step:
                return
            targets = self._relay.learn(header.norms_shard, np.array(header.norms))
        for index in targets:
            self._relay_norms(self._lines[index], int(header.step), header.norms_shard, list(header.norms))

    def _relay_norms(self, line: Line, step: int, source: int, squares: list[float]) -> None:
        line.send(frame.encode(pb.FrameHeader(kind=pb.NORMS, member=line.member, step=step, norms_shard=source, norms=squares)))

    # -- ends ------------------------------------------------------------------------------------------------

    def _check(self) -> None:
        if self._error:
            raise self._error

    def _wait(self, done: Callable[[], bool]) -> None:
        """Waits under the lock for `done` or an error."""
        self._changed.wait_for(lambda: bool(self._error) or done())
        self._check()

    def abort(self, reason: str) -> None:
        """Makes the call in progress, and every later one, raise Stopped."""
        with self._changed:
            self._error = self._error or Stopped(reason)
            self._changed.notify_all()

    def close(self) -> None:
        """Ends all streams and channels."""
        with self._changed:
            self._error = self._error or Stopped("closed")
        for line in self._lines:
            line.close()
        if self._segment:
            self._segment.close()
        if self._rank_state:
            self._rank_state.close()
