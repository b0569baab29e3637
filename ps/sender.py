"""What leaves a member: the frames of a step's contribution, in their order, as far as the window allows."""

import logging
import time
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from ps.codecs import format_of, wire_bytes
from ps.config import CommConfig
from ps.contribution import Contribution, KnownDigests
from ps.failpoints import hit
from ps.frame import Bytes
from ps.frame_plan import Frames, plan_frames
from ps.layout import Run, ShardLayout
from ps.member_state import MemberState
from ps.order import Order, Schedule
from ps.pacing import Pacing, pacing_of
from ps.waiter import Waiter

log = logging.getLogger(__name__)

MEASURED_STEPS = range(1, 3)
"""Of a process: those whose gradients tell when gradients are ready. The first one takes longer than others."""


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
        self._steps = 0
        """That this process has begun."""
        self._ready_s: npt.NDArray[np.float64] = np.zeros(len(state.layout.specs))
        """Of rank 0: when each tensor was ready at the soonest, seconds after its step began, in those measured steps that weigh most: a batch that
        is smaller than others is ready sooner."""
        self._measured_weight = 0.0
        self._encoding = 0
        """Frames that a thread works on: they read the contribution."""

        self._began_s = 0.0
        """When the step began, by the monotonic clock."""

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
                state.lines[0].send_order(state.order)

    def _fix_order(self) -> None:
        """Rank 0 knows now when its gradients are ready: where they wait for the link, all ranks are to push in the same order, whenever theirs are.
        Under the lock."""
        state = self._state
        is_due = self._steps == MEASURED_STEPS.stop and self._measured_weight > 0 and self.pacing.is_measured
        if state.member.rank or state.order is None or state.order.is_measured or not is_due:
            return
        ready_s = np.where(np.isfinite(self._ready_s), self._ready_s, 0.0)  # of frozen tensors nobody is told
        order = state.order._replace(ready_s=ready_s.tolist(), link_bytes_per_s=self.pacing.link_bytes_per_s)
        if self._schedule(order).pays:
            state.order = order
            state.lines[0].send_order(order)
            self._follow(order)

    def _follow(self, order: Order) -> None:
        """Pushes as rank 0 does, from the next step on. Under the lock."""
        if order.frame_bytes and self.pacing.is_measured and order.frame_bytes != self.pacing.frame_bytes:
            self.plan(pacing_of(self.pacing.link_bytes_per_s, self.pacing.delay_s, self._state.windows, order.frame_bytes))
            for line in self._state.lines:
                line.forget_frames()
            rank = self._state.member.rank
            log.info("rank %d: as rank 0, %s", rank, self.pacing.frames)
        self._state.exchange.prioritise(dict(enumerate(order.places)), self._schedule(order) if order.is_measured else None)

    def _schedule(self, order: Order) -> Schedule:
        """Of this member's frames on rank 0's link."""
        travelling = [line for line in self._state.lines if not line.pushes_shared]
        byte_s = len(travelling) / order.link_bytes_per_s
        return Schedule(
            order.ready_s,
            [
                [0.0 if line.pushes_shared else byte_s * self._travels_bytes(line.layout, run) for run in runs]
                for line, runs in zip(self._state.lines, self.frames, strict=True)
            ],
            len(travelling),
        )

    def _travels_bytes(self, layout: ShardLayout, run: Run) -> float:
        """Payload of the run's frame, or about."""
        block = layout.block_of(run)
        return wire_bytes(layout.payload_bytes(run), block.dtype, format_of(self._comm.push_format, block), self._comm)

    # -- a step ----------------------------------------------------------------------------------------------

    def begin(self, step: int, weight: float, gradients: Bytes, digests: KnownDigests | None = None) -> None:
        """What `Client.begin` says."""
        state = self._state
        with self._changed:
            state.check()
            if state.new_order is not None:
                self._follow(state.new_order)
                state.new_order = None
            self._fix_order()
            if self._steps in MEASURED_STEPS and weight > self._measured_weight:
                self._measured_weight = weight
                self._ready_s[:] = np.inf
            self._steps += 1
            self._began_s = time.monotonic()
            state.exchange.begin(step)
            state.relay.begin()
            state.clock.begin()
            self._contribution = Contribution(step, weight, gradients, np.zeros(len(self._state.layout.specs), np.bool_), digests)

    def ready(self, tensors: Sequence[int], *, present: bool) -> None:
        """What `Client.ready` says."""
        started = time.monotonic()
        with self._changed:
            self._contribution.present[list(tensors)] = present
            if self._steps - 1 in MEASURED_STEPS and 0.0 < self._contribution.weight == self._measured_weight:
                self._ready_s[list(tensors)] = np.minimum(self._ready_s[list(tensors)], started - self._began_s)
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
