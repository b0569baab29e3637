"""One shard: barrier, reduction, update and store as one object without I/O.

Frames come in decoded and checked; answers go out through the streams' outboxes. The calling threads carry the
sums and updates out, outside the lock, each on the runs that the barrier has given to it.
"""

import logging
import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import numpy.typing as npt

from protos import pserver_pb2 as pb
from ps import frame
from ps.barrier import Action, Answer, Barrier, Complete, Offer, Sum, Verdict
from ps.config import ServerSettings
from ps.errors import Diverged, EarlyPush, Fenced, MalformedFrame, ModelMismatch, NonFinite, NotInitialised, PserverError, Stopped, VersionGone
from ps.failpoints import hit
from ps.frame import Bytes
from ps.layout import Layout, Run
from ps.norms import StepFactor
from ps.pending import Part, PendingPayload
from ps.plan import Plan
from ps.reduction import Accumulators
from ps.stats import ServerStats
from ps.store import Store
from ps.streams import Stream, Streams
from ps.two_phase import TwoPhase
from ps.update import PLAIN, Updater

log = logging.getLogger(__name__)


@dataclass
class _Push:
    """A contribution on its way through the barrier."""

    member: pb.Member
    header: pb.FrameHeader
    run: Run
    payload: Bytes
    """In the elements' own type."""
    sent_bytes: int
    """Payload as it travelled."""
    prints: npt.NDArray[np.uint64] | None
    receipt: Callable[[Verdict], None]
    todo: list[Run]
    """Parts that have not been taken."""
    worst: Verdict = Verdict.ACCEPTED
    actions: list[Action] = field(default_factory=list)
    whole: Part = field(init=False)

    def __post_init__(self) -> None:
        self.rank = self.member.rank
        self.step = int(self.header.step)


class Shard:
    """The state of one shard and everything that may happen to it. Thread-safe."""

    def __init__(self, layout: Layout, store: Store, settings: ServerSettings, plan: Plan, stats: ServerStats) -> None:
        self.layout = layout.shards[settings.shard]
        self.store = store
        self._index = settings.shard
        self._stats = stats
        self._plan = plan
        self._pull_format = settings.comm.pull_format
        self._has_driver = settings.control_address is not None
        self._updater = Updater(layout, store, settings.optimizer, settings.schedule, plan)
        self._sums = Accumulators(self.layout)
        versioned = self.layout.num_versioned
        # guards every field below and the store's words; notified whenever a sum ends, a run is applied or Init completes
        self._changed = threading.Condition()
        self._barrier = Barrier(
            store.words[:versioned],
            self.layout.num_bytes[:versioned],
            settings.num_workers,
            settings.generation,
            settings.comm.out_of_order_bytes,
        )
        self._two_phase = TwoPhase([s.num_optimizer for s in layout.shards], self._index, settings.optimizer, store)
        self._pending = PendingPayload(self.layout, settings.num_workers)
        self._streams = Streams(settings.num_workers)
        self._segments: dict[int, Bytes] = {}
        """Flat layout in the segment of every rank's incarnation that has one."""
        self._pool = ThreadPoolExecutor(os.cpu_count() or 1, thread_name_prefix="shard")
        """Sums and updates of contributions in segments: their frames are too quick to keep the readers' threads busy."""
        self._ended: PserverError | None = None
        """What every call raises since the shard has ended."""

    # -- members ---------------------------------------------------------------------------------------------

    def join(self, member: pb.Member, segment: Bytes | None = None) -> tuple[int, int]:
        """Fences older incarnations, ends their streams and returns version and session, in one step. Raises Fenced.

        `segment`: the flat layout in memory that the member shares.
        """
        with self._changed:
            self._check_may_join(member)
            self._changed.wait_for(lambda: bool(self._ended) or not self._barrier.is_summing(member.rank))
            self._check_running()
            self._check_may_join(member)
            if self._barrier.is_fenced(member.rank, member.incarnation, member.generation):
                self._segments.pop(member.rank, None)
            if self._barrier.join(member.rank, member.incarnation):
                self._pending.forget(member.rank)
            if segment is not None:
                self._segments.setdefault(member.rank, segment)
            session, stream = self._streams.join(member.rank)
            self._changed.notify_all()  # a push of the old session that waits for its turn has none
            version = self.store.version
        hit("shard.joined")
        if stream:
            stream.end(Fenced(f"rank {member.rank} has joined again as incarnation {member.incarnation}"))
        return version, session

    def has_skipped(self, step: int) -> bool:
        """Whether the step, the last one that was applied, was skipped."""
        with self._changed:
            return self._two_phase.has_skipped(step)

    def reads_segment(self, rank: int) -> bool:
        """Whether the rank's frames may come without payload."""
        with self._changed:
            return rank in self._segments

    def _check_may_join(self, member: pb.Member) -> None:
        if self._barrier.may_join(member.rank, member.incarnation, member.generation) is not Verdict.ACCEPTED:
            raise Fenced(f"rank {member.rank} incarnation {member.incarnation} of generation {member.generation}: a newer one runs")

    def check_member(self, member: pb.Member) -> None:
        """Raises Fenced unless the member is the one that has joined."""
        with self._changed:
            self._check_fence(member)

    def _check_fence(self, member: pb.Member) -> None:
        if not 0 <= member.rank < self._barrier.num_workers:
            raise MalformedFrame(f"rank {member.rank} of a run of {self._barrier.num_workers} workers")
        if self._barrier.is_fenced(member.rank, member.incarnation, member.generation):
            raise Fenced(f"rank {member.rank} incarnation {member.incarnation} of generation {member.generation} is not the one that joined")
        if not self._streams.is_current(member.rank, member.session):
            raise Fenced(f"rank {member.rank} has joined again since session {member.session}")

    def open_stream(self, member: pb.Member, stream: Stream) -> None:
        """Makes `stream` the member's; it is told READY as soon as version 0 is there. Raises Fenced."""
        with self._changed:
            self._check_fence(member)
            former = self._streams.open(member.rank, stream)
            self._two_phase.delivery.opened(member.rank)
            self._barrier.join(member.rank, member.incarnation)
            if self.store.initialised:
                self._send_ready(stream)
        if former:
            former.end(Fenced(f"rank {member.rank} has opened another stream"))

    def close_stream(self, member: pb.Member, stream: Stream) -> None:
        """Forgets a stream that has ended."""
        with self._changed:
            self._streams.close(member.rank, stream)

    def end(self, error: PserverError | None) -> None:
        """Ends all streams and wakes everything that waits; for good. Only the first error counts."""
        with self._changed:
            self._ended = self._ended or error or Stopped(f"shard {self._index} ends")
            self._changed.notify_all()
            streams = self._streams.take_all()
        self._pool.shutdown(wait=False)
        for stream in streams:
            stream.end(error)

    def _check_running(self) -> None:
        if self._ended:
            raise self._ended

    def _send_ready(self, stream: Stream) -> None:
        stream.send(frame.encode(pb.FrameHeader(kind=pb.READY, step=self.store.version)))

    def waits_for(self) -> dict[int, int]:
        """Ranks whose contributions are missing, with the number of chunks."""
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
                    self._send_ready(stream)
                self._changed.notify_all()
        return True

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
        """A contribution: calls `receipt` once it has been taken, then carries out what became possible.

        Blocks while the bound on early payload is reached and it is not the rank's turn; with `may_wait` false it returns what is
        left to be called instead, for a thread that may. Raises Fenced, EarlyPush, Diverged, which end the stream, and NonFinite,
        ModelMismatch, which end the shard: the step can never be whole.
        """
        values = frame.exact_payload(header, payload, self.layout, run)
        prints = np.array(header.digests, np.uint64) if header.kind == pb.PUSH else None
        if header.shared:
            self._verify_repeated(member.rank, header, run)
        return self._go_on(_Push(member, header, run, values, len(payload), prints, receipt, [run]), may_wait=may_wait)

    def _go_on(self, push: "_Push", *, may_wait: bool) -> Callable[[], object] | None:
        try:
            if not self._offer_all(push, may_wait=may_wait):
                return partial(self._go_on, push, may_wait=True)
            self._taken(push)
        except (NonFinite, ModelMismatch) as error:
            self.end(error)
            raise
        return None

    def _offer_all(self, push: "_Push", *, may_wait: bool) -> bool:
        """Offers what has not been taken until nothing is left; False if the rest must wait and may not."""
        while push.todo:
            with self._changed:
                self._check_running()
                self._check_fence(push.member)
                self._check_decided(push.step)
                self._two_phase.delivery.pushed(push.rank, push.step)
                push.whole = self._contribution(push.rank, push.header, push.run, push.payload)
                offers = [self._offer(push, part) for part in push.todo]
                self._changed.notify_all()
                push.worst = max(push.worst, *(offer.verdict for offer in offers))
                push.todo = [part for offer in offers for part in offer.paused]
                push.actions = [action for offer in offers for action in offer.actions]
                if push.todo and not push.actions:
                    if not may_wait:
                        return False
                    self._changed.wait()
            if push.todo:
                self._carry_out(push.actions, push.rank, push.whole)
        return True

    def _taken(self, push: "_Push") -> None:
        """All of a contribution has its verdict."""
        if push.worst in (Verdict.EARLY, Verdict.DIVERGED):
            # what the barrier has given out must come back, or it waits for ever
            self._carry_out(push.actions, push.rank, push.whole)
            raise self._refusal(push.worst, push.rank, push.step, push.run)
        push.receipt(push.worst)
        hit("shard.taken")
        self._stats.received(push.rank, push.step, self.layout.payload_bytes(push.run) if push.header.shared else push.sent_bytes)
        self._send_norms(push.step)
        if push.whole.is_flat:
            self._carry_out_in_pool(push.actions, push.rank, push.whole)
        else:
            self._carry_out(push.actions, push.rank, push.whole)

    def _verify_repeated(self, rank: int, header: pb.FrameHeader, run: Run) -> None:
        """Looks at the bytes in a segment if the run was pushed before. Comes before the offer: the member waits for the run,
        and would write its next contribution as soon as that is answered. Raises Diverged."""
        with self._changed:
            if rank not in self._segments or not self._barrier.has_contributed(rank, int(header.step), run):
                return
            memory = self._segments[rank]
        if frame.chunk_digests(memory, self.layout, run, flat=True) != list(header.digests):
            raise self._refusal(Verdict.DIVERGED, rank, int(header.step), run)

    def _contribution(self, rank: int, header: pb.FrameHeader, run: Run, payload: Bytes) -> Part:
        if not header.shared:
            return Part(run, payload)
        if rank not in self._segments:
            raise MalformedFrame(f"rank {rank} pushed from shared memory that shard {self._index} has not found: join first")
        return Part(run, self._segments[rank], is_flat=True)

    def _refusal(self, verdict: Verdict, rank: int, step: int, run: Run) -> PserverError:
        if verdict is Verdict.EARLY:
            return EarlyPush(f"rank {rank} pushed step {step} of shard {self._index}, which is at version {self.store.version}")
        return Diverged(
            f"rank {rank} pushed other bytes for step {step}, chunks {run.first}..{run.stop - 1} of shard {self._index} than before: "
            "its gradient is not a function of parameters, seed, step and rank"
        )

    def _offer(self, push: "_Push", part: Run) -> Offer:
        marks = None if push.prints is None else push.prints[part.first - push.run.first : part.stop - push.run.first]
        offer = self._barrier.offer(push.rank, push.step, part, marks, push.header.weight, holds_payload=not push.whole.is_flat)
        if push.prints is not None:
            for piece in offer.queued:
                self._pending.keep(push.rank, self._pending.cut(push.whole, piece))
        return offer

    def _carry_out_in_pool(self, actions: list[Action], rank: int, whole: Part) -> None:
        for action in actions:
            try:
                self._pool.submit(self._work, action, rank, whole)
            except RuntimeError:  # the pool is closed
                self._check_running()
                raise

    def _work(self, action: Action, rank: int, whole: Part) -> None:
        """A thread of the pool: whatever goes wrong ends the shard."""
        try:
            self._carry_out([action], rank, whole)
        except PserverError as error:
            self.end(error)
        except Exception as error:
            log.exception("shard %d fails", self._index)
            self.end(PserverError(f"server {self._index} failed: {' '.join(repr(error).split())}; see its log"))

    def _carry_out(self, actions: list[Action], rank: int, whole: Part) -> None:
        """Sums, updates and answers; sums of other contributions than `whole` take their payload from what is pending."""
        while actions:
            action = actions.pop()
            if isinstance(action, Sum):
                actions += self._sum(action, rank, whole)
            elif isinstance(action, Complete):
                self._completed(action)
            else:
                self._answer([action])

    def _sum(self, action: Sum, rank: int, whole: Part) -> list[Action]:
        started = time.perf_counter()
        run = whole.run
        if action.rank == rank and run.first <= action.run.first and action.run.stop <= run.stop:
            parts = [self._pending.cut(whole, action.run)]
        else:
            with self._changed:
                parts = self._pending.take(action.rank, action.run)
        for part in parts:
            self._sums.add(action.rank, part, action.weight, is_first=action.is_first)
        hit("shard.summed")
        self._stats.aggregated(time.perf_counter() - started)
        with self._changed:
            self._changed.notify_all()
            return self._barrier.summed(action.rank, action.run)

    # -- a complete run --------------------------------------------------------------------------------------

    def _completed(self, complete: Complete) -> None:
        step = int(self.store.words[complete.run.first])
        started = time.perf_counter()
        if complete.weight:
            self._updater.to_mean(step, complete.run, self._sums.of(complete.run), complete.weight)
        with self._changed:
            decision = self._two_phase.recorded(step) if self._two_phase.needed else PLAIN
        if decision:
            self._apply(step, complete, decision, started)
        else:
            self._hold(step, complete)

    def _hold(self, step: int, complete: Complete) -> None:
        """Keeps a complete run of a two-phase step until all shards' norms are known."""
        run = complete.run
        squares = None
        if run.stop <= self.layout.num_optimizer:
            squares = self._updater.squares(run, self._sums.of(run)) if complete.weight else np.zeros(len(run))
        with self._changed:
            self._two_phase.hold(complete, squares)
        hit("shard.held")
        self._send_norms(step)
        self._release(step)

    def _release(self, step: int) -> None:
        """Applies the whole shard once the decision can be taken."""
        with self._changed:
            released = self._two_phase.release(step) if self._barrier.is_complete() else None
        if released:
            hit("shard.recorded")
            runs, decision = released
            for complete in runs:
                self._apply(step, complete, decision, time.perf_counter())

    def _apply(self, step: int, complete: Complete, decision: StepFactor, started: float) -> None:
        run = complete.run
        with self._changed:
            self.store.raise_oldest(step)
        hit("shard.oldest")
        self._updater.write(step, run, self._sums.of(run), complete.weight, decision, rate_factor=self.store.rate_factor)
        hit("shard.written")
        with self._changed:
            answers = self._barrier.applied(run)
            self.store.commit(step, run)
            hit("shard.applied")
            is_last = self.store.version > step
            if is_last:
                self._two_phase.begin()
            self._changed.notify_all()
        self._answer(answers)
        self._stats.applied(step, time.perf_counter() - started, is_last=is_last)

    def _answer(self, answers: list[Answer]) -> None:
        """Sends each run's bytes, encoded once and after the norms, to everybody they are owed to; bytes that are gone are not sent."""
        encoded: dict[tuple[Run, int, bool], bytes] = {}
        for answer in answers:
            with self._changed:
                stream = self._streams.of(answer.rank)
            if stream is None:
                continue
            key = (answer.run, answer.version, stream.lands_shared)
            try:
                if key not in encoded:
                    encoded[key] = self._encode_answer(answer, shared=stream.lands_shared)
            except VersionGone:
                continue
            if self._send_answer(answer, stream, encoded[key]):
                self._stats.sent(answer.version - 1, frame.payload_bytes(self.layout, answer.run, self._pull_format))

    def _send_answer(self, answer: Answer, stream: Stream, data: bytes) -> bool:
        """False if the stream has ended, or another one has not asked yet."""
        step = answer.version - 1
        with self._changed:
            if self._streams.of(answer.rank) is not stream or not self._two_phase.delivery.has_pushed(answer.rank, step):
                return False
            self._send_norms(step)
            stream.send(data)
        hit("shard.answered")
        return True

    def _encode_answer(self, answer: Answer, *, shared: bool) -> bytes:
        if shared:
            return self.encode_shared(answer.version, answer.run)
        return self.encode_params(answer.version, answer.run, self._pull_format)

    def encode_params(self, version: int, run: Run, wire: str = frame.EXACT) -> bytes:
        """A PARAMS frame of a run within one block, in the format `wire`. Raises VersionGone if the bytes are, or went while they were copied."""
        self._check_readable(version, run)
        memory = self.store.copy_of(version, run)
        data = frame.encode_run(self._params_header(version, run), memory, self.layout, run, flat=False, wire=wire)
        self._check_readable(version, run)
        return data

    def encode_shared(self, version: int, run: Run) -> bytes:
        """A PARAMS frame without payload, for members that read the store. Raises VersionGone."""
        self._check_readable(version, run)
        header = self._params_header(version, run)
        header.shared = True
        return frame.encode(header)

    def _params_header(self, version: int, run: Run) -> pb.FrameHeader:
        last_rank, complete_s = self._stats.last_contribution()
        return pb.FrameHeader(
            kind=pb.PARAMS,
            step=version,
            first_chunk=run.first,
            num_chunks=len(run),
            last_rank=last_rank,
            complete_s=complete_s,
            clock_s=time.monotonic(),
        )

    def _check_readable(self, version: int, run: Run) -> None:
        """A chunk's bytes may be read as soon as its own word is written, before the shard has the version."""
        with self._changed:
            if run.first >= self.layout.num_versioned or (self.store.words[run.span] == version).all():
                return
            self.store.check_readable(version)

    def pull_version(self, version: int) -> int:
        """The version a pull gets: the newest for -1. Raises NotInitialised, VersionGone."""
        with self._changed:
            if not self.store.initialised:
                raise NotInitialised(f"shard {self._index} has no version 0 yet: rank 0 brings it")
            if version >= 0 and self.layout.num_versioned:
                self.store.check_readable(version)
                return version
            return self.store.version

    # -- two-phase steps -------------------------------------------------------------------------------------

    def learn_norms(self, member: pb.Member, header: pb.FrameHeader) -> None:
        """Another shard's norms, relayed by a rank. Raises Fenced, MalformedFrame."""
        step = int(header.step)
        with self._changed:
            self._check_fence(member)
            if step != self.store.version:
                return
            self._two_phase.learn(header.norms_shard, header.norms)
        self._release(step)

    def _send_norms(self, step: int) -> None:
        """Sends what is known of the step's norms to the ranks that must have them now."""
        if not self._two_phase.needed:
            return
        with self._changed:
            if not (frames := self._two_phase.frames(step)):
                return
            streams = [self._streams.of(rank) for rank in self._two_phase.delivery.due(step)]
            for data in frames:
                for stream in streams:
                    if stream:
                        stream.send(data)
