"""What the parts of a member's end of the wire work on together."""

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from protos import pserver_pb2 as pb
from ps import frame
from ps.errors import PserverError
from ps.exchange import Exchange
from ps.frame import Bytes
from ps.layout import Layout
from ps.line import Line
from ps.norms import NormRelay
from ps.order import Order
from ps.pacing import Windows
from ps.shared import StoreView
from ps.step_clock import StepClock


@dataclass
class MemberState:
    """Made once per client, which owns it; its parts share it."""

    member: pb.Member
    layout: Layout
    lines: Sequence[Line]
    landing: tuple[Bytes, Bytes]
    """Flat layouts; version v lands in landing[v % 2]."""
    relay: NormRelay
    clock: StepClock
    exchange: Exchange
    """Of the frames as they are planned now."""
    windows: Windows
    changed: threading.Condition = field(default_factory=threading.Condition)
    """Guards everything here and the lines; notified by the receiving threads."""
    in_place: StoreView | None = None
    """The server's memory, if the model computes there: nothing is copied when it lands."""
    order: Order | None = None
    """Once it is known."""
    new_order: Order | None = None
    """The same until the next step begins."""
    error: PserverError | None = None
    """What every call raises from now on."""
    broken: set[int] = field(default_factory=set)
    """Shards whose stream has ended and is to be opened again."""
    doing: str | None = None
    """What the thread that uses the client waits for, for people; None: for nothing."""

    def check(self) -> None:
        """Raises the error, if there is one."""
        if self.error:
            raise self.error

    def wait(self, done: Callable[[], bool]) -> None:
        """Waits under the lock for `done` or an error."""
        self.changed.wait_for(lambda: bool(self.error) or done())
        self.check()

    def relay_norms(self, line: Line, step: int, source: int, squares: Sequence[float]) -> None:
        """Sends one shard's norms to another."""
        line.send(frame.encode(pb.FrameHeader(kind=pb.NORMS, member=line.member, step=step, norms_shard=source, norms=squares)))
