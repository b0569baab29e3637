"""What the parts of a shard work on together."""

import threading
from dataclasses import dataclass

from ps.barrier import Barrier
from ps.layout import ShardLayout
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
