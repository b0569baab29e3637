"""A contribution on its way through the barrier."""

from collections.abc import Callable
from dataclasses import dataclass, field

from protos import pserver_pb2 as pb
from ps.barrier import Action, Prints, Verdict
from ps.frame import Bytes
from ps.layout import Run
from ps.pending import Part


@dataclass
class Push:
    """What is known of it so far."""

    member: pb.Member
    header: pb.FrameHeader
    run: Run
    payload: Bytes
    """In the elements' own type."""
    sent_bytes: int
    """Payload as it travelled."""
    prints: Prints | None
    receipt: Callable[[Verdict], None]
    todo: list[Run]
    """Parts that have not been taken."""
    number: int
    """Of the member."""
    worst: Verdict = Verdict.ACCEPTED
    actions: list[Action] = field(default_factory=list)
    whole: Part = field(init=False)

    def __post_init__(self) -> None:
        self.rank = self.member.rank
        self.step = int(self.header.step)
