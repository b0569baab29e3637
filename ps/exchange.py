"""A member's side of one step: which frames may leave, which answers have landed, when the next step may begin.

Pure. One credit window for all shards together; a credit returns with the receipt of its frame, or when its stream
ends. Nothing of step t + 1 leaves before every chunk of version t + 1 of every shard has landed (first-push gate), so
that the first push of t + 1 proves that all shards have reached it.
"""

from collections.abc import Sequence
from enum import IntEnum

import numpy as np

from ps.layout import Run


class _Frame(IntEnum):
    READY = 0
    SENT = 1
    RECEIVED = 2


class Exchange:
    """State of one member's step. Not thread-safe: the client locks.

    `frames` are the runs of every shard that are pushed as one frame each, in push order; `num_versioned` the chunks
    per shard that have a version; `window` the frames that may be on their way.
    """

    def __init__(self, rank: int, frames: Sequence[Sequence[Run]], num_versioned: Sequence[int], window: int) -> None:
        self._frames = frames
        self._window = window
        self._turn = rank % len(frames)
        self._state = [[_Frame.RECEIVED] * len(runs) for runs in frames]
        self._landed = [np.ones(count, np.bool_) for count in num_versioned]
        self._missing = 0
        self.in_flight = 0
        """Frames whose credit has not come back."""
        self.step = -1

    def begin(self, step: int) -> None:
        """Starts a step: everything is ready to leave. Only when everything of the last one has landed."""
        assert self.is_done, "first-push gate"
        self.step = step
        self._state = [[_Frame.READY] * len(runs) for runs in self._frames]
        for landed in self._landed:
            landed[:] = False
        self._missing = sum(len(landed) for landed in self._landed)

    @property
    def is_done(self) -> bool:
        """Whether every chunk of version step + 1 of every shard has landed and no frame waits to leave."""
        return self._missing == 0

    def next_frame(self) -> tuple[int, int] | None:
        """(shard, frame) to send now, shards in turn; None if the window is full or nothing is left."""
        if self.in_flight >= self._window:
            return None
        for i in range(len(self._frames)):
            shard = (self._turn + i) % len(self._frames)
            states = self._state[shard]
            for index, state in enumerate(states):
                if state is _Frame.READY:
                    states[index] = _Frame.SENT
                    self.in_flight += 1
                    self._turn = (shard + 1) % len(self._frames)
                    return shard, index
        return None

    @property
    def has_ready(self) -> bool:
        """Whether a frame waits to leave."""
        return any(state is _Frame.READY for states in self._state for state in states)

    def receipt(self, shard: int, frame: int) -> None:
        """The shard has received a frame: its credit is back."""
        if self._state[shard][frame] is _Frame.SENT:
            self._state[shard][frame] = _Frame.RECEIVED
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
        states = self._state[shard]
        self.in_flight -= sum(state is _Frame.SENT for state in states)
        for index, run in enumerate(self._frames[shard]):
            states[index] = _Frame.RECEIVED if self._landed[shard][run.span].all() else _Frame.READY
