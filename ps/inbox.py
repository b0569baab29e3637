"""What comes to a member over its streams: updated chunks land, receipts give credit back, norms are relayed."""

from collections.abc import Callable

import numpy as np

from protos import pserver_pb2 as pb
from ps import frame
from ps.errors import MalformedFrame
from ps.failpoints import hit
from ps.frame import Bytes
from ps.line import PROBED, Line
from ps.link_test import LinkTest
from ps.member_state import MemberState
from ps.order import Order
from ps.waiter import Waiter


class Inbox:
    """Called in the receiving threads. `pump` sends what a credit that has come back allows."""

    def __init__(self, state: MemberState, waiter: Waiter, link_test: LinkTest, pump: Callable[[], None]) -> None:
        self._state = state
        self._changed = state.changed
        self._waiter = waiter
        self._link_test = link_test
        self._pump = pump

    def take(self, line: Line, header: pb.FrameHeader, payload: Bytes) -> None:
        """A frame from a shard."""
        if header.kind == pb.PARAMS:
            self._land(line, header, payload)
        elif header.kind == pb.NORMS:
            self.learn_norms(header)
        else:
            with self._changed:
                if header.kind == pb.READY:
                    line.ready = True
                elif header.kind == pb.RECEIPT:
                    self._return_credit(line, header)
                elif header.kind == pb.ORDER:
                    self._learn_order(Order.read(header))
                self._waiter.news()
            self._pump()

    def _learn_order(self, order: Order) -> None:
        """A shard may not have seen rank 0's measured order yet when a stream is opened again."""
        if self._state.order is None or order.is_measured or not self._state.order.is_measured:
            self._state.order = self._state.new_order = order

    def _return_credit(self, line: Line, header: pb.FrameHeader) -> None:
        index = line.frame_of(header.sequence)
        if index == PROBED:
            self._link_test.echoed()
        elif index is not None and index >= 0:
            self._state.clock.received(line.index, index, header.clock_s)
            self._state.exchange.receipt(line.index, index)

    def _land(self, line: Line, header: pb.FrameHeader, payload: Bytes) -> None:
        state = self._state
        run = frame.checked_run(header, payload, line.layout, with_payload=not header.shared, wire=line.pull_format)
        version = int(header.step)
        with self._changed:
            if not state.exchange.may_land(line.index, version, run):
                return
        into = state.landing[version % 2]
        if not header.shared:
            frame.land(frame.exact_payload(header, payload, line.layout, run), into, line.layout, run, flat=True)
        elif line.store is None or not (line.store.holds(version, run) if state.in_place else line.store.land(version, run, into)):
            return  # gone: a newer incarnation of this rank has gone on
        with self._changed:
            state.clock.landed(line.index, header, frame.payload_bytes(line.layout, run, line.pull_format))
            state.exchange.landed(line.index, run)
            hit("worker.landed")
            self._waiter.news()

    def learn_norms(self, header: pb.FrameHeader) -> None:
        """One shard's norms, for the others. Raises MalformedFrame."""
        state, shard, shards = self._state, header.norms_shard, self._state.layout.shards
        if shard >= len(shards) or len(header.norms) != shards[shard].num_optimizer:
            raise MalformedFrame(f"{len(header.norms)} norms of shard {shard}: no such shard has so many")
        with self._changed:
            if header.step != state.exchange.step:
                return
            targets = state.relay.learn(shard, np.array(header.norms))
        for index in targets:
            state.relay_norms(state.lines[index], int(header.step), shard, list(header.norms))
