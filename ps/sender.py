"""What leaves a member: the frames of a step's contribution, in their order, as far as the window allows."""

import logging
import time
from collections.abc import Mapping, Sequence

import numpy as np

from ps.config import CommConfig
from ps.contribution import Contribution, KnownDigests
from ps.failpoints import hit
from ps.frame import Bytes
from ps.frame_plan import Frames, plan_frames
from ps.member_state import MemberState, Order
from ps.pacing import Pacing, pacing_of
from ps.waiter import Waiter

log = logging.getLogger(__name__)


class Sender:
    """One thread uses it; `pump` may come from any. The state's lock guards it."""

    def __init__(self, state: MemberState, comm: CommConfig, frames: Frames, waiter: Waiter) -> None:
        """`frames`: as they are planned for a link that nothing is known of; the state has their exchange."""
        self._state = state
        self._changed = state.changed
        self._comm = comm
        self.frames = frames
        self._waiter = waiter
        self.pacing = Pacing()
        """Frames that travel, as the link is."""
        self._contribution: Contribution
        """What is pushed in the step."""
        self._encoding = 0
        """Frames that a thread works on: they read the contribution."""

    @property
    def is_idle(self) -> bool:
        """Whether no thread reads the contribution. Under the lock."""
        return not self._encoding

    # -- between steps ---------------------------------------------------------------------------------------

    def plan(self, pacing: Pacing | None = None) -> None:
        """The frames of a step, as the lines are now. `pacing`: what suits the link, if that is known now. Under the lock."""
        self.pacing = pacing or self.pacing
        self.frames, self._state.exchange = plan_frames(self._state.layout, self._state.lines, self._comm, self.pacing)

    def prioritise(self, use: Mapping[int, int]) -> None:
        """What `Client.prioritise` says."""
        state, member = self._state, self._state.member
        with self._changed:
            if state.order is not None:
                return
            state.exchange.prioritise(use)
            if member.rank == 0:
                places = [use.get(tensor, len(use)) for tensor in range(len(self._state.layout.specs))]
                state.order = Order(places, self.pacing.frame_bytes if self.pacing.is_measured else 0)
                state.lines[0].send_order(*state.order)

    def _follow(self, order: Order) -> None:
        """Pushes as rank 0 does, from the next step on. Under the lock."""
        if order.frame_bytes and self.pacing.is_measured and order.frame_bytes != self.pacing.frame_bytes:
            self.plan(pacing_of(self.pacing.link_bytes_per_s, self.pacing.delay_s, self._state.windows, order.frame_bytes))
            for line in self._state.lines:
                line.forget_frames()
            rank = self._state.member.rank
            log.info("rank %d: as rank 0, %s", rank, self.pacing.frames)
        self._state.exchange.prioritise(dict(enumerate(order.places)))

    # -- a step ----------------------------------------------------------------------------------------------

    def begin(self, step: int, weight: float, gradients: Bytes, digests: KnownDigests | None = None) -> None:
        """What `Client.begin` says."""
        state = self._state
        with self._changed:
            state.check()
            if state.new_order is not None:
                self._follow(state.new_order)
                state.new_order = None
            state.exchange.begin(step)
            state.relay.begin()
            state.clock.begin()
            self._contribution = Contribution(step, weight, gradients, np.zeros(len(self._state.layout.specs), np.bool_), digests)

    def ready(self, tensors: Sequence[int], *, present: bool) -> None:
        """What `Client.ready` says."""
        started = time.monotonic()
        with self._changed:
            self._contribution.present[list(tensors)] = present
            self._state.exchange.ready(tensors)
        self.pump()
        with self._changed:
            self._state.clock.encode_s += time.monotonic() - started

    def pump(self) -> None:
        """Sends what is ready as far as the window allows. Frames of a broken line wait until it is open again."""
        state = self._state
        while True:
            with self._changed:
                if state.error or state.broken:
                    return
                found = state.exchange.next_frame()
                if found is None:
                    if not self._encoding:  # what has left is on its stream: a question comes after it
                        for shard in state.exchange.overdue():
                            state.lines[shard].ask()
                    return
                shard, index = found
                may_wait = not state.exchange.awaits(shard, index)
                opened = state.lines[shard].opened
                self._encoding += 1
            try:
                self._send(shard, index, opened, receipt_may_wait=may_wait)
            finally:
                with self._changed:
                    self._encoding -= 1
                    if not self._encoding:
                        self._waiter.news()

    def _send(self, shard: int, index: int, opened: int, *, receipt_may_wait: bool) -> None:
        """On the stream that was the `opened`-th of its line."""
        line, run, contribution = self._state.lines[shard], self.frames[shard][index], self._contribution
        parts = contribution.parts(line.layout, run)
        with self._changed:
            # the last part's receipt returns the credit
            sequences = [line.next_sequence(index if part.stop == run.stop else -1) for _, part in parts]
        started = time.monotonic()
        frames = [
            line.encode(kind, part, contribution, sequence, receipt_may_wait=receipt_may_wait)
            for (kind, part), sequence in zip(parts, sequences, strict=True)
        ]
        encode_s = time.monotonic() - started
        hit("worker.encoded")
        payload_bytes = sum(one.payload_bytes for one in frames)
        with self._changed:
            if line.opened != opened:  # the line broke meanwhile: the frame is ready again
                return
            self._state.clock.sent(shard, index, payload_bytes, encode_s)
            for one in frames:
                line.send(one.data)
                hit("worker.sent")
