"""Payload that waits for its rank's turn in the sum."""

from dataclasses import dataclass, field

from ps.frame import Bytes
from ps.layout import Run, ShardLayout


@dataclass(frozen=True)
class Part:
    """A run and its payload."""

    run: Run
    payload: Bytes = field(repr=False)
    """Packed, or the flat layout in the member's segment, which holds the run among others."""
    is_flat: bool = False


class PendingPayload:
    """What is kept of every rank. Not thread-safe: the shard locks."""

    def __init__(self, layout: ShardLayout, num_workers: int) -> None:
        self._layout = layout
        self._kept: list[list[Part]] = [[] for _ in range(num_workers)]

    def __bool__(self) -> bool:
        return any(self._kept)

    def cut(self, whole: Part, run: Run) -> Part:
        """The part of `whole` that belongs to `run`, which lies inside of it."""
        if whole.is_flat:
            return Part(run, whole.payload, is_flat=True)
        start = self._layout.payload_bytes(Run(whole.run.first, run.first))
        return Part(run, whole.payload[start : start + self._layout.payload_bytes(run)])

    def keep(self, rank: int, part: Part) -> None:
        self._kept[rank].append(part)

    def take(self, rank: int, run: Run) -> list[Part]:
        """What is kept of the rank for the run; what lies outside of it stays."""
        taken: list[Part] = []
        left: list[Part] = []
        for kept in self._kept[rank]:
            inner = Run(max(kept.run.first, run.first), min(kept.run.stop, run.stop))
            if inner.first >= inner.stop:
                left.append(kept)
                continue
            taken.append(self.cut(kept, inner))
            rests = (Run(kept.run.first, inner.first), Run(inner.stop, kept.run.stop))
            left += [self.cut(kept, rest) for rest in rests if len(rest)]
        self._kept[rank] = left
        return taken
