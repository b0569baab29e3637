"""The worker's end of the wire: join, init, pull, and one exchange of gradients for parameters per step.

All or error: `settle` either lands every chunk of every shard or raises.
"""

import logging
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from protos import pserver_pb2 as pb
from ps.agreement import spec_messages
from ps.comm import EXACT
from ps.config import CommConfig, Timeouts
from ps.connections import Connections
from ps.contribution import KnownDigests
from ps.control import ServerAddress
from ps.credentials import Credentials
from ps.errors import Stopped
from ps.frame import Bytes
from ps.frame_plan import plan_frames
from ps.inbox import Inbox
from ps.layout import Layout
from ps.line import Line
from ps.link_test import LinkTest
from ps.member_state import MemberState
from ps.norms import NormRelay
from ps.pacing import Pacing, windows_of
from ps.plan import Plan
from ps.rank_state import RankState
from ps.rejoin import Locate
from ps.sender import Sender
from ps.shared import MemberSegment
from ps.step_clock import StepClock, StepTiming
from ps.store import EMPTY
from ps.transport.counters import WireMeter
from ps.transport.shaping import Link
from ps.waiter import Waiter

log = logging.getLogger(__name__)


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
        num_workers: int,
        num_stages: int = 1,
        link: Link | None = None,
    ) -> None:
        self.layout = layout
        self._segment = segment
        self._rank_state = rank_state
        self._comm = comm
        link = link or Link(comm.bucket_bytes_per_s(worker=member.rank))
        lines = [
            Line(a, layout.shards[a.shard], link, member=member, credentials=credentials, timeouts=timeouts, comm=comm, rank_state=rank_state)
            for a in servers
        ]
        clock = StepClock(member.rank * num_stages + member.stage, len(lines))
        frames, exchange = plan_frames(layout, lines, comm, Pacing())
        windows = windows_of(num_workers, len(lines))
        self._state = state = MemberState(member, layout, lines, landing, NormRelay(len(lines)), clock, exchange, windows)
        # guards the state, the lines and everything below
        self._changed = state.changed
        self._link_test = LinkTest(state.changed, windows)
        self._waiter = Waiter(state.changed, lambda s, blocked: state.clock.waited(s, blocked=blocked), lambda: state.exchange.has_ready)
        self.sender = Sender(state, comm, frames, self._waiter)
        self.inbox = Inbox(state, self._waiter, self._link_test, self.sender.pump)
        self._connections = Connections(state, timeouts, locate, self.inbox.take)
        self._wire = WireMeter()

    @property
    def member(self) -> pb.Member:
        """Who we are."""
        return self._state.member

    @property
    def doing(self) -> str | None:
        """What the thread that uses us waits for, for people; None: for nothing."""
        return self._state.doing

    @property
    def pacing(self) -> Pacing:
        """Frames that travel, as the link is."""
        return self.sender.pacing

    # -- join, init, pull ------------------------------------------------------------------------------------

    def join(self, digests: Sequence[int], plan: Plan, environment: pb.Environment) -> int:
        """Joins all shards and returns the smallest version; -1 if version 0 must be brought first.

        `digests`: xxh3-64 of every chunk of version 0 in layout order. Raises ModelMismatch, Fenced, Unreachable, StateLost.
        """
        request = pb.JoinRequest(
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
        joined = self._connections.join(request)
        with self._changed:
            self.sender.plan()
        version = min((one.version for one in joined if one.version != EMPTY), default=0)
        if self._rank_state:
            self._rank_state.resume(max(version, 0), skipped=any(one.skipped for one in joined if one.version == version))
        return version

    def init(self, values: Bytes) -> None:
        """Brings version 0 of the member's tensors to all shards from a flat layout, which must not change before `open` returns; repeating it
        changes nothing."""
        self._connections.init(values)

    def pull(self, version: int, into: Bytes) -> int:
        """All of the member's tensors of one version, pinned, into a flat layout; returns the version. Raises VersionGone: join again."""
        return self._connections.pull(version, into)

    def open(self) -> None:
        """Opens the training streams; returns when every shard is ready (rank 0 may still be bringing version 0)."""
        self._connections.open()
        self._suit_link()

    def _suit_link(self) -> None:
        """Chooses frames by what the link turns out to be, where some travel and the settings leave it open."""
        lines = [line for line in self._state.lines if not line.pushes_shared]
        if not lines or not self._comm.measures_link:
            return
        found = self._link_test.run(lines, self._state.wait, lambda: bool(self._state.broken))
        if found is None:
            return
        with self._changed:
            self.sender.plan(found)
        log.info("rank %d: %s", self.member.rank, found)

    @property
    def pushes_digests(self) -> bool:
        """Whether contributions travel to any shard as they lie in memory, with their digests."""
        return self._comm.push_format == EXACT and not all(line.pushes_shared for line in self._state.lines)

    def is_local(self, shard: int) -> bool:
        """Whether Join has proved that the shard is on this host."""
        return self._state.lines[shard].local

    def measure(self, shard: int) -> Pacing | None:
        """The link to one shard; None if its stream broke meanwhile. Between steps."""
        return self._link_test.run([self._state.lines[shard]], self._state.wait, lambda: bool(self._state.broken))

    # -- one step --------------------------------------------------------------------------------------------

    def prioritise(self, use: Mapping[int, int]) -> None:
        """Frames leave in the order of `use` (tensor: when the forward pass first uses it), those of other tensors last. Between steps.

        Rank 0's first order, and the length of its frames, become those of all ranks as soon as they know them, and stay.
        """
        self.sender.prioritise(use)

    def begin(self, step: int, weight: float, gradients: Bytes, digests: KnownDigests | None = None) -> None:
        """A step of which nothing is ready yet; its version has landed (`settle`). `gradients` is a flat layout; `digests`: of what is ready there,
        if they are known."""
        self.sender.begin(step, weight, gradients, digests)

    def ready(self, tensors: Sequence[int], *, present: bool) -> None:
        """The contributions to these tensors lie in `gradients`, and stay as they are until `settle` returns; or they are absent.

        Each tensor is named once per step. What the window admits is sent; never blocks.
        """
        self.sender.ready(tensors, present=present)

    def missing(self) -> list[int]:
        """Tensors of whose next version something has not landed yet."""
        with self._changed:
            return self._state.exchange.missing()

    def wait(self, tensors: Sequence[int]) -> None:
        """Returns when all of these tensors has landed. Raises what the servers raise."""
        self._block(lambda: self._state.exchange.has_landed(tensors))

    def settle(self) -> StepTiming:
        """Returns when all of the step's next version has landed. Raises what the servers raise."""
        self._block(lambda: self._state.exchange.is_done and self.sender.is_idle)
        self._settle_rank_state()
        with self._changed:
            timing = self._state.clock.finish()
        for line in self._state.lines:
            traffic = timing.shards[line.index]
            traffic.local = line.local
            traffic.push_wire_bytes, traffic.pull_wire_bytes = self._wire.take(line.address.data)
        return timing

    def share(self) -> tuple[Bytes, Bytes] | None:
        """Flat layouts of the even and the odd versions in the server's own memory, which from now on are not copied when they land.

        None if there are several servers, or the one is not on this host. What has landed may be read there until all of the version
        after it has. Between `settle` and `begin`.
        """
        store = self._state.lines[0].store if len(self._state.lines) == 1 else None
        copies = store.flat_copies if store else None
        with self._changed:
            self._state.in_place = store if copies else None
        return copies

    def tend(self) -> None:
        """Opens broken streams again, for a thread that waits for something else than us. Raises what the servers raise."""
        with self._changed:
            self._state.check()
            broken = sorted(self._state.broken)
        for index in broken:
            self._connections.reopen(self._state.lines[index])
            self.sender.pump()

    def _block(self, done: Callable[[], bool]) -> None:
        while True:
            with self._changed:
                self._state.check()
                if not self._state.broken:
                    if done():
                        self._state.doing = None
                        return
                    self._state.doing = f"waits for the next version of {len(self._state.exchange.missing())} tensors"
                    self._waiter.wait(done, 1.0)
            self.tend()

    def _settle_rank_state(self) -> None:
        """All shards have applied the step, or skipped it: their norms, which came before their answers, tell which."""
        if not self._rank_state or self._state.exchange.step < self._rank_state.version:
            return
        known = self._state.relay.known()
        skipped = False
        if self._rank_state.skip_nonfinite:
            assert all(line.index in known for line in self._state.lines if line.layout.num_optimizer)
            skipped = not all(np.isfinite(squares).all() for squares in known.values())
        self._rank_state.settle(self._state.exchange.step, skipped=skipped)

    # -- ends ------------------------------------------------------------------------------------------------

    def abort(self, reason: str) -> None:
        """Makes the call in progress, and every later one, raise Stopped."""
        with self._changed:
            self._state.error = self._state.error or Stopped(reason)
            self._changed.notify_all()

    def close(self) -> None:
        """Ends all streams and channels."""
        with self._changed:
            self._state.error = self._state.error or Stopped("closed")
        for line in self._state.lines:
            line.close()
        if self._segment:
            self._segment.close()
        if self._rank_state:
            self._rank_state.close()
