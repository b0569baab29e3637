"""One shard: barrier, reduction, update and store as one object without I/O.

Frames come in decoded and checked; answers go out through the streams' outboxes. Here is who may contribute; `intake.py` takes
contributions; what the barrier gives out then is carried out in `work.py`, and sent by `answers.py`.
"""

import logging
import threading
from collections.abc import Callable

from protos import pserver_pb2 as pb
from ps import frame
from ps.answers import Answers
from ps.barrier import Barrier, Verdict
from ps.checkpoints.cut import Cuts
from ps.codecs import is_lossy
from ps.config import ServerSettings
from ps.errors import ConfigError, EarlyPush, Fenced, MalformedFrame, PserverError, Stopped
from ps.failpoints import hit
from ps.frame import Bytes
from ps.intake import Intake
from ps.layout import Layout, Rule, Run
from ps.noise import NormSamples
from ps.order import Order
from ps.pending import PendingPayload
from ps.plan import Plan
from ps.push import Push
from ps.shard_state import ShardState
from ps.stats import ServerStats
from ps.store import Store
from ps.streams import Stream, Streams
from ps.two_phase import TwoPhase
from ps.update import Updater
from ps.work import Work

_CUT_WAITS_S = 5.0
"""A cut that is asked for waits so long for the one before to be written; half of what a call to a server may take."""

log = logging.getLogger(__name__)


class Shard:
    """The state of one shard and everything that may happen to it. Thread-safe."""

    def __init__(self, layout: Layout, store: Store, settings: ServerSettings, plan: Plan, stats: ServerStats, cuts: Cuts | None = None) -> None:
        self.layout = layout.shards[settings.shard]
        self.store = store
        self._index = settings.shard
        self._stats = stats
        self._plan = plan
        self._cuts = cuts
        self._has_driver = settings.control_address is not None
        versioned = self.layout.num_versioned
        # guards every field below and the store's words; notified whenever a sum ends, a run is applied or Init completes
        self._changed = threading.Condition()
        self._barrier = Barrier(
            store.words[:versioned],
            self.layout.num_bytes[:versioned],
            settings.num_workers,
            settings.generation,
            settings.comm.out_of_order_bytes,
            exact=settings.exact,
            stages=self.layout.stage[:versioned],
            num_stages=settings.num_stages,
        )
        self._two_phase = TwoPhase([s.num_optimizer for s in layout.shards], self._index, settings.optimizer, store)
        self._pending = PendingPayload(self.layout, settings.num_workers)
        self._streams = Streams(settings.num_members)
        self._num_tensors = len(layout.specs)
        self._order: bytes | None = None
        """Rank 0's order of pushes, as a frame for everybody."""
        self._order_is_measured = False
        self._segments: dict[int, Bytes] = {}
        """Flat layout in the segment of every member's incarnation that has one, by the member's number."""
        self._ended: PserverError | None = None
        """What every call raises since the shard has ended."""
        self._state = state = ShardState(self._index, self.layout, store, stats, self._barrier, self._two_phase, self._streams, self._changed)
        self.answers = Answers(state, settings.comm.pull_format)
        self.updater = Updater(layout, store, settings.optimizer, settings.schedule, plan)
        norms = NormSamples(layout, self.layout, settings.num_workers, exact=not is_lossy(settings.comm.push_format))
        self.work = Work(state, self._pending, self.updater, self.answers, self.end, cuts, norms)
        self._intake = Intake(state, self._pending, self.work, self.answers, self._segments, self._check, self.end, exact=settings.exact)

    # -- members ---------------------------------------------------------------------------------------------

    def join(self, member: pb.Member, segment: Bytes | None = None) -> tuple[int, int]:
        """Fences older incarnations, ends their streams and returns version and session, in one step. Raises Fenced.

        `segment`: the flat layout in memory that the member shares.
        """
        with self._changed:
            number = self._state.number(member)
            self._check_may_join(member)
            self._changed.wait_for(lambda: bool(self._ended) or not self.work.reads(member.rank))
            self._check_running()
            self._check_may_join(member)
            if self._barrier.is_fenced(number, member.incarnation, member.generation):
                for block in self.layout.blocks:
                    if block.stage == member.stage and block.rule is not Rule.FROZEN:
                        self._intake.mark(number, member.rank, block.run)
                self.work.detach(member.rank, member.stage)
                self._segments.pop(number, None)
            for run in self._barrier.join(number, member.incarnation):
                self._pending.take(member.rank, run)
            if segment is not None:
                self._segments.setdefault(number, segment)
            session, stream = self._streams.join(number)
            self._changed.notify_all()  # a push of the old session that waits for its turn has none
            version = self.store.version
        hit("shard.joined")
        if stream:
            stream.end(Fenced(f"{_name(member)} has joined again as incarnation {member.incarnation}"))
        return version, session

    def has_skipped(self, step: int) -> bool:
        """Whether the step, the last one that was applied, was skipped."""
        with self._changed:
            return self._two_phase.has_skipped(step)

    def reads_segment(self, member: pb.Member) -> bool:
        """Whether the member's frames may come without payload."""
        with self._changed:
            return self._state.number(member) in self._segments

    def _check_may_join(self, member: pb.Member) -> None:
        if self._barrier.may_join(self._state.number(member), member.incarnation, member.generation) is not Verdict.ACCEPTED:
            raise Fenced(f"{_name(member)} incarnation {member.incarnation} of generation {member.generation}: a newer one runs")

    def check_member(self, member: pb.Member) -> None:
        """Raises Fenced unless the member is the one that has joined."""
        with self._changed:
            self._check_fence(member)

    def _check_fence(self, member: pb.Member) -> None:
        if not 0 <= member.rank < self._barrier.num_workers:
            raise MalformedFrame(f"rank {member.rank} of a run of {self._barrier.num_workers} workers")
        if not 0 <= member.stage < self._barrier.num_stages:
            raise MalformedFrame(f"stage {member.stage} of a rank of {self._barrier.num_stages} stages")
        number = self._state.number(member)
        if self._barrier.is_fenced(number, member.incarnation, member.generation):
            raise Fenced(f"{_name(member)} incarnation {member.incarnation} of generation {member.generation} is not the one that joined")
        if not self._streams.is_current(number, member.session):
            raise Fenced(f"{_name(member)} has joined again since session {member.session}")

    def open_stream(self, member: pb.Member, stream: Stream) -> None:
        """Makes `stream` the member's; it is told READY as soon as version 0 is there. Raises Fenced."""
        with self._changed:
            self._check_fence(member)
            number = self._state.number(member)
            former = self._streams.open(number, stream)
            self._two_phase.delivery.opened(number)
            self._barrier.join(number, member.incarnation)
            if self.store.initialised:
                self.answers.send_ready(stream)
            if self._order:
                stream.send(self._order)
        hit("shard.opened")
        if former:
            former.end(Fenced(f"{_name(member)} has opened another stream"))

    def share_order(self, member: pb.Member, header: pb.FrameHeader) -> None:
        """Rank 0's order of pushes, for all ranks, now and when they open a stream; the first one stands, and the first that was measured.
        Raises Fenced, MalformedFrame."""
        order = Order.read(header)
        if member.rank:
            raise MalformedFrame(f"rank {member.rank} brings an order of {len(order.places)} tensors: rank 0 alone may")
        order.check(self._num_tensors)
        with self._changed:
            self._check_fence(member)
            if self._order is not None and self._order_is_measured >= order.is_measured:
                return
            self._order_is_measured = order.is_measured
            to_all = pb.FrameHeader(kind=pb.ORDER)
            order.write(to_all)
            self._order = frame.encode(to_all)
            for stream in self._streams.living():
                stream.send(self._order)

    def close_stream(self, member: pb.Member, stream: Stream) -> None:
        """Forgets a stream that has ended."""
        with self._changed:
            self._streams.close(self._state.number(member), stream)

    def end(self, error: PserverError | None) -> None:
        """Ends all streams and wakes everything that waits; for good. Only the first error counts."""
        with self._changed:
            self._ended = self._ended or error or Stopped(f"shard {self._index} ends")
            self._changed.notify_all()
            streams = self._streams.take_all()
        self.work.close()
        for stream in streams:
            stream.end(error)

    def _check(self, push: Push) -> None:
        self._check_running()
        self._check_fence(push.member)
        self._check_decided(push.step)

    def _check_running(self) -> None:
        if self._ended:
            raise self._ended

    def waits_for(self) -> dict[int, int]:
        """Members, by number, whose contributions are missing, with the number of chunks."""
        with self._changed:
            return self._barrier.missing()

    # -- version 0 -------------------------------------------------------------------------------------------

    def init(self, run: Run, payload: Bytes) -> bool:
        """Stores initial bytes of a run; False if they were there. All streams are told READY when the last has come."""
        with self._changed:
            if (self.store.words[run.span] >= 0).all():
                return False
            frame.land(payload, self.store.copy_of(0, run), self.layout, run, flat=False)
            self.store.words[run.span] = 0
            hit("shard.init")
            if self.store.initialised:
                for stream in self._streams.living():
                    self.answers.send_ready(stream)
                self._changed.notify_all()
        return True

    def restore(self, version: int, decided: int, rate_factor: float) -> None:
        """The store has got all bytes of `version` in place of version 0."""
        with self._changed:
            self.store.restore(version, decided, rate_factor)
            self._changed.notify_all()

    # -- checkpoints -----------------------------------------------------------------------------------------

    def cut(self, version: int) -> None:
        """Takes a version that is there, in which nothing moves. Raises VersionGone, ConfigError in a run without checkpoints."""
        if not self._cuts:
            raise ConfigError(f"shard {self._index} was started without checkpoints")

        def check() -> None:
            if self.layout.num_versioned:
                self.store.check_readable(version)

        self._cuts.wait_until_free(_CUT_WAITS_S)
        with self._changed:
            self._cuts.take(version, check)

    # -- decisions -------------------------------------------------------------------------------------------

    def decide(self, version: int, rate_factor: float) -> None:
        """The driver's decision that holds from step `version` on. Raises EarlyPush if the shard is not there yet."""
        with self._changed:
            if self.layout.num_versioned and self.store.version < version:
                raise EarlyPush(f"a decision for version {version} reached shard {self._index} at version {self.store.version}")
            if self.store.decided < version:
                self.store.decide(version, rate_factor)
                hit("shard.decided")

    def _check_decided(self, step: int) -> None:
        """A step at which the driver decides may not begin before it has. Without a driver nobody decides."""
        if self._has_driver and self._plan.decides(step) and self.store.decided < step:
            raise EarlyPush(f"step {step} was pushed to shard {self._index} before the driver's decision for it")

    # -- contributions ---------------------------------------------------------------------------------------

    @property
    def is_two_phase(self) -> bool:
        """Whether the last contribution of a step applies the whole shard."""
        return self._two_phase.needed

    def push(
        self, member: pb.Member, header: pb.FrameHeader, run: Run, payload: Bytes, receipt: Callable[[Verdict], None], *, may_wait: bool = True
    ) -> Callable[[], object] | None:
        """As `Intake.push`, whose NonFinite and ModelMismatch end the shard: the step can never be whole."""
        return self._intake.push(member, header, run, payload, receipt, may_wait=may_wait)

    # -- two-phase steps -------------------------------------------------------------------------------------

    def learn_norms(self, member: pb.Member, header: pb.FrameHeader) -> None:
        """Another shard's norms, relayed by a rank. Raises Fenced, MalformedFrame."""
        step = int(header.step)
        with self._changed:
            self._check_fence(member)
            if step != self.store.version:
                return
            self._two_phase.learn(header.norms_shard, header.norms)
        self.work.release(step)


def _name(member: pb.Member) -> str:
    return f"rank {member.rank}" + (f" stage {member.stage}" if member.stage else "")
