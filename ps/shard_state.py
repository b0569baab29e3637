"""What the parts of a shard work on together."""

import threading
from dataclasses import dataclass

from protos import pserver_pb2 as pb
from ps.barrier import Barrier
from ps.layout import Run, ShardLayout
from ps.stats import ServerStats
from ps.store import Store
from ps.streams import Streams
from ps.two_phase import TwoPhase


@dataclass(frozen=True)
class ShardState:
    """Made once per shard, which owns it; its parts share it."""

    index: int
    layout: ShardLayout
    store: Store
    stats: ServerStats
    barrier: Barrier
    two_phase: TwoPhase
    streams: Streams
    changed: threading.Condition
    """Guards the store's words, the barrier, two-phase state and streams; notified whenever a sum ends, a run is applied or Init completes."""

    def number(self, member: pb.Member) -> int:
        """By which members are told apart."""
        return member.rank * self.barrier.num_stages + member.stage

    def pusher(self, rank: int, run: Run) -> int:
        """The rank's member whose chunks these are."""
        return rank * self.barrier.num_stages + int(self.layout.stage[run.first])
