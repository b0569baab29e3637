"""How a contribution comes in: what is checked, what its verdict is, and what it makes possible."""

import logging
from collections.abc import Callable, Mapping
from functools import partial

import numpy as np

from protos import pserver_pb2 as pb
from ps import frame
from ps.answers import Answers
from ps.barrier import Offer, Prints, Verdict
from ps.errors import Diverged, EarlyPush, MalformedFrame, ModelMismatch, NonFinite, PserverError
from ps.failpoints import hit
from ps.frame import Bytes
from ps.layout import Run
from ps.pending import Part, PendingPayload
from ps.push import Push
from ps.shard_state import ShardState
from ps.stats import Spent
from ps.work import Work

log = logging.getLogger(__name__)


class Intake:
    """Thread-safe. `check` raises, under the lock, if the shard has ended or may not take the push; `fail` ends the shard."""

    def __init__(
        self,
        state: ShardState,
        pending: PendingPayload,
        work: Work,
        answers: Answers,
        segments: Mapping[int, Bytes],
        check: Callable[[Push], None],
        fail: Callable[[PserverError], None],
        *,
        exact: bool,
    ) -> None:
        """`segments`: flat layout in the segment of every member's incarnation that has one, by the member's number."""
        self._state = state
        self._layout = state.layout
        self._changed = state.changed
        self._pending = pending
        self._work = work
        self._answers = answers
        self._segments = segments
        self._check = check
        self._fail = fail
        self._exact = exact

    def push(
        self, member: pb.Member, header: pb.FrameHeader, run: Run, payload: Bytes, receipt: Callable[[Verdict], None], *, may_wait: bool = True
    ) -> Callable[[], object] | None:
        """A contribution: calls `receipt` once it has been taken, then carries out what became possible.

        Blocks while the bound on early payload is reached and it is not the rank's turn; with `may_wait` false it returns what is
        left to be called instead, for a thread that may. Raises Fenced, EarlyPush, Diverged, which end the stream, and NonFinite,
        ModelMismatch, which end the shard: the step can never be whole.
        """
        with Spent() as spent:
            values = frame.exact_payload(header, payload, self._layout, run)
        self._state.stats.decoded(spent)
        push = Push(member, header, run, values, len(payload), self._prints(member, header, run), receipt, [run], self._state.number(member))
        return self._go_on(push, may_wait=may_wait)

    def _go_on(self, push: Push, *, may_wait: bool) -> Callable[[], object] | None:
        try:
            if not self._offer_all(push, may_wait=may_wait):
                return partial(self._go_on, push, may_wait=True)
            self._taken(push)
        except (NonFinite, ModelMismatch) as error:
            self._fail(error)
            raise
        return None

    def _offer_all(self, push: Push, *, may_wait: bool) -> bool:
        """Offers what has not been taken until nothing is left; False if the rest must wait and may not."""
        while push.todo:
            with self._changed:
                self._check(push)
                self._state.two_phase.delivery.pushed(push.number, push.step)
                push.whole = self._contribution(push)
                offers = [self._offer(push, part) for part in push.todo]
                self._changed.notify_all()
                push.worst = max(push.worst, *(offer.verdict for offer in offers))
                push.todo = [part for offer in offers for part in offer.paused]
                push.actions = [action for offer in offers for action in offer.actions]
                if push.todo and not push.actions:
                    if not may_wait:
                        return False
                    self._changed.wait()
                if not push.todo and not self._is_refused(push.worst):
                    push.receipt(push.worst)  # under the lock: nothing that answers the push may overtake it
            if push.todo:
                self._work.carry_out(push.actions, push.rank, push.whole)
        return True

    def _taken(self, push: Push) -> None:
        """All of a contribution has its verdict."""
        if self._is_refused(push.worst):
            # what the barrier has given out must come back, or it waits for ever
            self._work.carry_out(push.actions, push.rank, push.whole)
            raise self._refusal(push.worst, push.rank, push.step, push.run)
        if push.worst is Verdict.DIVERGED:
            log.warning("%s; the first ones stand (train.exact = false)", _other_bytes(push.rank, push.step, push.run, self._state.index))
            self._state.stats.diverged(push.step)
        hit("shard.taken")
        self._state.stats.received(push.number, push.step, self._layout.payload_bytes(push.run) if push.header.shared else push.sent_bytes)
        self._answers.send_norms(push.step)
        if push.whole.is_flat:
            self._in_pool(push)
        else:
            self._work.carry_out(push.actions, push.rank, push.whole)

    def _is_refused(self, verdict: Verdict) -> bool:
        return verdict is Verdict.EARLY or (verdict is Verdict.DIVERGED and self._exact)

    def _in_pool(self, push: Push) -> None:
        try:
            self._work.carry_out_in_pool(push.actions, push.rank, push.whole)
        except RuntimeError:  # the pool is closed: the shard has ended
            self._check(push)
            raise

    def _prints(self, member: pb.Member, header: pb.FrameHeader, run: Run) -> Prints | None:
        """What identifies the bytes of a contribution: digests that came with it, or, if it lies in a segment and the run was pushed before,
        those of the memory. Comes before the offer: the member waits for the run, and would write its next contribution as soon as that
        is answered."""
        number = self._state.number(member)
        with self._changed:
            memory = self._segments.get(number)
            comes_again = memory is not None and self._state.barrier.has_contributed(member.rank, header.step, run)
            if comes_again:
                self.mark(number, member.rank, run)
        if header.kind != pb.PUSH:
            return None
        if not header.shared:
            return np.array(header.digests, np.uint64)
        return self._digests(memory, run) if memory is not None and comes_again else np.zeros(len(run), np.uint64)

    def mark(self, number: int, rank: int, run: Run) -> None:
        """Makes the prints of what the member has contributed to the run in its segment, as long as that is there. Under the lock."""
        memory = self._segments.get(number)
        if memory is not None:
            for part in self._state.barrier.unmarked(rank, run):
                self._state.barrier.mark(rank, part, self._digests(memory, part))

    def _digests(self, memory: Bytes, run: Run) -> Prints:
        return np.array(frame.chunk_digests(memory, self._layout, run, flat=True), np.uint64)

    def _contribution(self, push: Push) -> Part:
        if not push.header.shared:
            return Part(push.run, push.payload)
        if push.number not in self._segments:
            raise MalformedFrame(f"rank {push.rank} pushed from shared memory that shard {self._state.index} has not found: join first")
        return Part(push.run, self._segments[push.number], is_flat=True)

    def _refusal(self, verdict: Verdict, rank: int, step: int, run: Run) -> PserverError:
        if verdict is Verdict.EARLY:
            return EarlyPush(f"rank {rank} pushed step {step} of shard {self._state.index}, which is at version {self._state.store.version}")
        return Diverged(
            f"{_other_bytes(rank, step, run, self._state.index)}: its gradient is not a function of parameters, seed, step and rank; "
            "make it one, or set train.exact = false if any of the two will do"
        )

    def _offer(self, push: Push, part: Run) -> Offer:
        marks = None if push.prints is None else push.prints[part.first - push.run.first : part.stop - push.run.first]
        offer = self._state.barrier.offer(push.rank, push.step, part, marks, push.header.weight, holds_payload=not push.whole.is_flat)
        if push.prints is not None:
            for piece in offer.queued:
                self._pending.keep(push.rank, self._pending.cut(push.whole, piece))
        return offer


def _other_bytes(rank: int, step: int, run: Run, shard: int) -> str:
    return f"rank {rank} pushed other bytes for step {step}, chunks {run.first}..{run.stop - 1} of shard {shard} than before"
