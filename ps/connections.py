"""How a member's lines come to be: shards are joined, version 0 is brought or another one pulled, streams open, and open again."""

import logging
from functools import partial

from protos import pserver_pb2 as pb
from ps.config import Timeouts
from ps.errors import PserverError, Unreachable, VersionGone
from ps.failpoints import hit
from ps.frame import Bytes
from ps.line import Joined, Line, OnFrame
from ps.member_state import MemberState
from ps.rejoin import Locate, Rejoin

log = logging.getLogger(__name__)

_ASK_AGAIN_S = 0.1
"""Until a server that is away is asked again."""


class Connections:
    """One thread uses it. `locate` finds servers that were started again; `take` is called with every frame, in a receiving thread."""

    def __init__(self, state: MemberState, timeouts: Timeouts, locate: Locate | None, take: OnFrame) -> None:
        self._state = state
        self._changed = state.changed
        self._rejoin = Rejoin(len(state.lines), timeouts, locate, self._pause)
        self._take = take
        self._initial: Bytes | None = None
        """Version 0, if it is ours to bring."""

    def join(self, request: pb.JoinRequest) -> list[Joined]:
        """Joins all shards. Raises ModelMismatch, Fenced, Unreachable, StateLost."""
        self._rejoin.request = request
        return [self._rejoin.join(line) for line in self._state.lines]

    def init(self, values: Bytes) -> None:
        """Brings version 0 of the member's tensors to all shards from a flat layout, which must not change before `open` returns."""
        self._initial = values
        for line in self._state.lines:
            self._rejoin.persist(line, partial(line.init, values))
            hit("worker.brought")

    def pull(self, version: int, into: Bytes) -> int:
        """All of the member's tensors of one version, pinned, into a flat layout; returns the version. Raises VersionGone: join again."""
        pulled = version
        for line in self._state.lines:
            pulled = self._rejoin.persist(line, partial(line.pull, pulled, into))
            hit("worker.pulled")
        return pulled

    def _pause(self) -> None:
        with self._changed:
            self._changed.wait_for(lambda: bool(self._state.error), _ASK_AGAIN_S)
            self._state.check()

    def open(self) -> None:
        """Opens the training streams; returns when every shard is ready (rank 0 may still be bringing version 0)."""
        state = self._state
        with self._changed:
            state.broken.clear()
            for line in state.lines:
                line.open(self._take, self._stream_ended)
        while True:
            with self._changed:
                state.wait(lambda: bool(state.broken) or all(line.ready for line in state.lines))
                broken = sorted(state.broken)
            if not broken:
                break
            for index in broken:
                self.reopen(state.lines[index])
        self._initial = None

    def _stream_ended(self, line: Line, error: PserverError) -> None:
        with self._changed:
            if self._state.error:
                return
            if self._rejoin.is_gone(error):
                self._state.broken.add(line.index)
            else:
                self._state.error = error
            self._changed.notify_all()

    def reopen(self, line: Line) -> None:
        """A stream broke: joins that shard again (same incarnation); what has not landed is to be pushed again."""
        state = self._state
        log.warning("stream to server %d broke: joining again", line.index)
        state.doing = f"looks for server {line.index}, whose stream broke"
        self._join_again(line)
        with self._changed:
            state.broken.discard(line.index)
            state.clock.rejoined = True
            state.exchange.stream_ended(line.index)
            line.open(self._take, self._stream_ended)
            hit("worker.rejoined")
            known = state.relay.known()
            state.wait(lambda: line.ready or line.index in state.broken)
            is_ready = line.ready
        if is_ready:
            self._rejoin.succeeded(line)
        else:
            self._rejoin.stream_failed(line, Unreachable(f"server {line.index} ends every stream: see its log"))
        for source, squares in known.items():
            state.relay_norms(line, state.exchange.step, source, squares.tolist())
        if state.member.rank == 0 and line.index == 0 and state.order is not None:
            line.send_order(state.order)

    def _join_again(self, line: Line) -> None:
        """Raises VersionGone if the server has lost what the step needs."""
        state = self._state
        version = self._rejoin.join(line).version
        if version < state.exchange.step:
            raise VersionGone(f"server {line.index} came back with version {version} instead of {state.exchange.step}: its memory is lost")
        if state.in_place and (line.store is None or line.store.file != state.in_place.file):
            raise VersionGone(f"server {line.index} came back with other memory, and rank {state.member.rank} computes in the former one")
        if version == -1 and self._initial is not None:
            self._rejoin.persist(line, partial(line.init, self._initial))
