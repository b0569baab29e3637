"""A member's side of one step: which frames may leave, which answers have landed, when the next step may begin.

Pure. One credit window for all shards together; a credit returns with the receipt of its frame, or when its stream
ends. Nothing of step t + 1 leaves before every chunk of version t + 1 of every shard has landed (first-push gate), so
that the first push of t + 1 proves that all shards have reached it.
"""

from collections.abc import Sequence

import numpy as np

from ps.layout import Run


class Exchange:
    """State of one member's step. Not thread-safe: the client locks.

    `frames` are the runs of every shard that are pushed as one frame each, in push order; `num_versioned` the chunks
    per shard that have a version; `window` the frames that may be on their way.
    """

    def __init__(self, rank: int, frames: Sequence[Sequence[Run]], num_versioned: Sequence[int], window: int) -> None:
        self._frames = frames
        self._window = window
        self._turn = rank % len(frames)
        self._ready = [[False] * len(runs) for runs in frames]
        self._sent = [[0] * len(runs) for runs in frames]
        """How often each frame is on its way: a receipt may arrive after the answer, when the next step has begun."""
        self._landed = [np.ones(count, np.bool_) for count in num_versioned]
        self._missing = 0
        self.in_flight = 0
        """Frames whose credit has not come back."""
        self.step = -1

    def begin(self, step: int) -> None:
        """Starts a step: everything is ready to leave. Only when everything of the last one has landed."""
        assert self.is_done, "first-push gate"
        self.step = step
        self._ready = [[True] * len(runs) for runs in self._frames]
        for landed in self._landed:
            landed[:] = False
        self._missing = sum(len(landed) for landed in self._landed)

    @property
    def is_done(self) -> bool:
        """Whether every chunk of version step + 1 of every shard has landed."""
        return self._missing == 0

    def next_frame(self) -> tuple[int, int] | None:
        """(shard, frame) to send now, shards in turn; None if the window is full or nothing is left."""
        if self.in_flight >= self._window:
            return None
        for i in range(len(self._frames)):
            shard = (self._turn + i) % len(self._frames)
            for index, is_ready in enumerate(self._ready[shard]):
                if is_ready:
                    self._ready[shard][index] = False
                    self._sent[shard][index] += 1
                    self.in_flight += 1
                    self._turn = (shard + 1) % len(self._frames)
                    return shard, index
        return None

    @property
    def has_ready(self) -> bool:
        """Whether a frame waits to leave."""
        return any(is_ready for shard in self._ready for is_ready in shard)

    def receipt(self, shard: int, frame: int) -> None:
        """The shard has received a frame, of this step or of the last one: its credit is back."""
        if self._sent[shard][frame]:
            self._sent[shard][frame] -= 1
            self.in_flight -= 1

    def may_land(self, shard: int, version: int, run: Run) -> bool:
        """Whether the run's bytes of `version` are wanted: late answers of other steps, or repeated ones, are not."""
        return version == self.step + 1 and not self._landed[shard][run.span].all()

    def landed(self, shard: int, run: Run) -> None:
        """The run's bytes of version step + 1 are in place."""
        self._missing -= int((~self._landed[shard][run.span]).sum())
        self._landed[shard][run.span] = True

    def stream_ended(self, shard: int) -> None:
        """Credits on the stream return; what has not landed must be pushed again on the next one."""
        self.in_flight -= sum(self._sent[shard])
        for index, run in enumerate(self._frames[shard]):
            self._sent[shard][index] = 0
            self._ready[shard][index] = not self._landed[shard][run.span].all()
