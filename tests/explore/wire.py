"""Streams and calls between processes: late, lost, cut off and broken."""

from collections import deque
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from protos import pserver_pb2 as pb
from ps.errors import PserverError
from ps.streams import Stream
from tests.explore.clock import Clock, Process

if TYPE_CHECKING:
    from tests.explore.member import Member
    from tests.explore.server import Server

CALL_S, KEEPALIVE_S = 10.0, 20.0


class Wire:
    """One training stream: frames arrive in order while it lives; its ends notice its end at different times."""

    def __init__(self, clock: Clock, owner: "Member", server: "Server", member: pb.Member) -> None:
        self.clock, self.owner, self.server, self.member = clock, owner, server, member
        self.open_above = self.open_below = True
        """Whether the server's end, and the member's, still believe in it."""
        self.cut_until = 0.0
        self.is_busy = False
        """The server is working on a frame: the next ones wait."""
        self.inbox: deque[bytes] = deque()
        self._held: list[bytes] = []
        """Receipts that wait for company."""
        self._last_up = self._last_down = 0.0
        self.stream = Stream(send=self.down, end=self._end_from_above)

    def _arrival(self, last: float) -> float:
        return max(self.clock.now + self.clock.delay(), last, self.cut_until)

    def open(self) -> None:
        """The first message up; a server that has died meanwhile cannot be reached."""
        if self.server.is_dead:
            self.break_off()
        self.server.wires.append(self)
        self._last_up = self._arrival(self._last_up)
        self.clock.at(self._last_up, self.server, lambda: self.server.open(self))

    def up(self, data: bytes) -> None:
        self._last_up = self._arrival(self._last_up)
        self.clock.at(self._last_up, self.server, lambda: self.server.receive(self, data))

    def again(self, data: bytes) -> None:
        """The same frame once more, at any time, before or after others."""
        self.clock.after(self.clock.rng.uniform(0, 5), self.server, lambda: self.server.receive(self, data))

    def down(self, data: bytes) -> None:
        if self.open_above:
            for message in (*self._held, data):
                self._last_down = self._arrival(self._last_down)
                self.clock.at(self._last_down, self.owner, partial(self.owner.receive_frame, self, message))
            self._held = []

    def down_in_company(self, receipt: bytes) -> None:
        """Before what comes next, however late that is."""
        self._held.append(receipt)

    def _end_from_above(self, error: PserverError | None) -> None:
        """The server ends it; what it had sent still comes before."""
        self.open_above = False
        self.clock.at(self._arrival(self._last_down), self.owner, lambda: self.owner.lost(self))

    def close(self) -> None:
        """The member gives it up; the server notices later."""
        self.open_below = False
        self._close_above(self.clock.delay())

    def break_off(self, within_s: float = 1.0) -> None:
        """The connection is lost: each end notices some time; until then what is on its way may arrive or not."""
        random = self.clock.rng.uniform
        self.clock.after(random(0, within_s), self.owner, lambda: self.owner.lost(self))
        self._close_above(random(0, within_s))

    def _close_above(self, delay: float) -> None:
        self.clock.after(delay, self.server, lambda: self.server.close(self))


class Calls:
    """Calls that are answered, or repeated: the request or the answer may be late or lost."""

    def __init__(self, clock: Clock, lost: float) -> None:
        self._clock = clock
        self._lost = lost
        """Part of the messages that are."""

    def call(
        self,
        caller: Process,
        server: Process,
        execute: Callable[[Callable[[Any], object]], object],
        answered: Callable[[Any], object],
        failed: Callable[[], object],
        *,
        is_cut: Callable[[], bool] = lambda: False,
    ) -> None:
        """`execute(answer)` at the server, at once or later, by which time the caller may have called again."""
        clock, done = self._clock, [False]

        def once(action: Callable[[], object]) -> None:
            if not done[0]:
                done[0] = True
                action()

        def answer(result: Any) -> None:
            if not self._is_lost() and not is_cut():
                clock.after(clock.delay(), caller, lambda: once(lambda: answered(result)))

        if not self._is_lost() and not is_cut():
            clock.after(clock.delay(), server, lambda: execute(answer))
        if server.is_dead:
            clock.after(clock.delay(), caller, lambda: once(failed))
        clock.after(CALL_S, caller, lambda: once(failed))

    def _is_lost(self) -> bool:
        return self._clock.rng.random() < self._lost
