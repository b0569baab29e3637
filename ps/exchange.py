"""A member's side of one step: which frames may leave, which answers have landed, when the next step may begin.

Pure. One credit window for all shards together; a credit returns with the receipt of its frame, or when its stream
ends. A shard whose link is thin keeps frames for longer than others and would have the whole window in the end, more
than the queue of its link holds: none has more than its share. Nor does the one whose frames get through sooner run
ahead: links that are all full never put right how they are shared, and the sums of each shard would wait for the rank
that sends it less. A frame may leave when all its tensors are ready, the earliest layer's first. Nothing of step t + 1
leaves before every chunk of version t + 1 of every shard has landed (first-push gate), so that the first push of t + 1
proves that all shards have reached it.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from heapq import heapify, heappop, heappush

import numpy as np
import numpy.typing as npt

from ps.layout import IntArray, Run
from ps.order import Schedule, scheduled
from ps.pacing import Windows

LEAST_SHARE = 3
"""Frames: one on its way up, one of which the receipt is on its way, one to follow."""

LEAD = 2
"""Frames by which a shard may be ahead of another one for which some are ready; further ahead, it gets one at a time."""


class Exchange:
    """State of one member's step. Not thread-safe: the client locks.

    `frames` are the runs of every shard that are pushed as one frame each, in layout order; `tensors` names the tensor of
    every versioned chunk of every shard; `windows` are the numbers of frames that may be on their way. `own`: the chunks that are the
    member's; None: all. Others neither leave nor land.
    """

    def __init__(
        self,
        rank: int,
        frames: Sequence[Sequence[Run]],
        tensors: Sequence[IntArray],
        windows: Windows,
        own: Sequence[npt.NDArray[np.bool_]] | None = None,
    ) -> None:
        self._frames = frames
        self._tensors = tensors
        self._windows = windows
        self._turn = rank % len(frames)
        self._in_frame = [[frozenset(ids[run.span].tolist()) for run in runs] for runs, ids in zip(frames, tensors, strict=True)]
        self._frames_of: dict[int, list[tuple[int, int]]] = {}
        for shard, contents in enumerate(self._in_frame):
            for index, its in enumerate(contents):
                for tensor in its:
                    self._frames_of.setdefault(tensor, []).append((shard, index))
        self._place = [list(range(len(runs))) for runs in frames]
        """Each frame's place in the order of its shard, and the other way round."""
        self._at_place = [list(range(len(runs))) for runs in frames]
        self._unready = [[0] * len(runs) for runs in frames]
        """How many tensors of each frame are not ready."""
        self._num_unready = 0
        """Frames of which any is not."""
        self._ready = [[False] * len(runs) for runs in frames]
        self._queue: list[list[int]] = [[] for _ in frames]
        """Places of the frames that are ready: a heap per shard."""
        self._sent = [[False] * len(runs) for runs in frames]
        """Frames on their way. None is when the next step begins: awaited credits have come back for others to leave, and other receipts come
        before the answers."""
        self._in_flight = [0] * len(frames)
        """How many of each shard."""
        self._left = [0] * len(frames)
        """Frames of each shard that have to leave yet, ready or not."""
        self._awaited = [[False] * len(runs) for runs in frames]
        """Frames on their way whose credit others need."""
        self._num_awaited = [0] * len(frames)
        """How many of each shard."""
        own = [np.ones(len(ids), np.bool_) for ids in tensors] if own is None else own
        self._foreign = [~mine for mine in own]
        self._landed = [np.ones(len(ids), np.bool_) for ids in tensors]
        self._missing = 0
        self._missing_of: IntArray = np.zeros(1 + max((int(ids.max()) for ids in tensors if len(ids)), default=0), np.int64)
        """Chunks of each tensor that have not landed."""
        self._chunks_of: IntArray = np.zeros_like(self._missing_of)
        """Those that are the member's."""
        for ids, mine in zip(tensors, own, strict=True):
            self._chunks_of += np.bincount(ids[mine], minlength=len(self._chunks_of))
        self.step = -1

    @property
    def in_flight(self) -> int:
        """Frames whose credit has not come back."""
        return sum(self._in_flight)

    def prioritise(self, use: Mapping[int, int], schedule: Schedule | None = None) -> None:
        """Frames leave in the order in which the forward pass uses their tensors (`use`: first use; without one: last), of those that are ready.
        Between steps.

        With a schedule that order is fixed beforehand. Ranks that are not equally far when an earlier layer is ready would each leave other frames
        for later, and all their sums wait.
        """
        last = len(use)
        for shard, contents in enumerate(self._in_frame):
            keys = [(min(use.get(tensor, last) for tensor in its), index) for index, its in enumerate(contents)]
            if schedule:
                ready_s = [max(schedule.ready_s[tensor] for tensor in its) for its in contents]
                self._at_place[shard] = scheduled(keys, ready_s, schedule.takes_s[shard])
            else:
                self._at_place[shard] = sorted(range(len(keys)), key=keys.__getitem__)
            for place, index in enumerate(self._at_place[shard]):
                self._place[shard][index] = place

    def begin(self, step: int) -> None:
        """Starts a step: nothing is ready yet. Only when everything of the last one has landed."""
        assert self.is_done, "first-push gate"
        self.step = step
        self._unready = [[len(its) for its in contents] for contents in self._in_frame]
        self._num_unready = sum(map(len, self._frames))
        self._ready = [[False] * len(runs) for runs in self._frames]
        self._queue = [[] for _ in self._frames]
        self._left = [len(runs) for runs in self._frames]
        for landed, foreign in zip(self._landed, self._foreign, strict=True):
            landed[:] = foreign
        self._missing_of[:] = self._chunks_of
        self._missing = int(self._chunks_of.sum())

    def ready(self, tensors: Iterable[int]) -> None:
        """The contributions to these tensors are complete; each is named once per step."""
        for tensor in tensors:
            for shard, index in self._frames_of.get(tensor, ()):
                self._unready[shard][index] -= 1
                if not self._unready[shard][index]:
                    self._num_unready -= 1
                    self._enqueue(shard, index)

    def _enqueue(self, shard: int, index: int) -> None:
        self._ready[shard][index] = True
        heappush(self._queue[shard], self._place[shard][index])

    @property
    def is_done(self) -> bool:
        """Whether every chunk of version step + 1 of every shard has landed."""
        return self._missing == 0

    def missing(self) -> list[int]:
        """Tensors with a chunk that has not landed."""
        return np.flatnonzero(self._missing_of).tolist()

    def has_landed(self, tensors: Iterable[int]) -> bool:
        """Whether every versioned chunk of these tensors has landed."""
        return self.is_done or not any(self._missing_of[tensor] for tensor in tensors)

    @property
    def _window(self) -> int:
        """Frames that may be on their way."""
        return self._windows.least if self._num_unready else self._windows.wide

    @property
    def _share(self) -> int:
        """Those to one shard."""
        return max(LEAST_SHARE, math.ceil(self._window / len(self._frames)))

    def next_frame(self) -> tuple[int, int] | None:
        """(shard, frame) to send now, shards in turn; None if the window is full, or nothing is ready for a shard that may have more."""
        if self.in_flight >= self._window:
            return None
        share, behind = self._share, self._left_behind()
        for i in range(len(self._frames)):
            shard = (self._turn + i) % len(self._frames)
            if self._queue[shard] and self._in_flight[shard] < (1 if self._is_ahead(shard, behind) else share):
                index = self._at_place[shard][heappop(self._queue[shard])]
                self._ready[shard][index] = False
                self._sent[shard][index] = True
                self._in_flight[shard] += 1
                self._left[shard] -= 1
                if self._needs_credit(shard):
                    self._awaited[shard][index] = True
                    self._num_awaited[shard] += 1
                self._turn = (shard + 1) % len(self._frames)
                return shard, index
        return None

    def _left_behind(self) -> float:
        """Of the shards for which frames are ready, the one that is furthest behind: the share of its frames that it has to get yet."""
        return max((left / len(runs) for left, runs, queue in zip(self._left, self._frames, self._queue, strict=True) if queue), default=0.0)

    def _is_ahead(self, shard: int, behind: float) -> bool:
        """Whether the shard is further ahead than it may be of the one that has the share `behind` to get yet."""
        return self._left[shard] + LEAD < behind * len(self._frames[shard])

    def _needs_credit(self, shard: int) -> bool:
        """Whether frames that have to leave yet need the credit of the one that leaves now beside those that are free or awaited already."""
        credits = self._window - self.in_flight + sum(self._num_awaited)
        of_shard = self._share - self._in_flight[shard] + self._num_awaited[shard]
        return credits < sum(self._left) or of_shard < self._left[shard]

    def awaits(self, shard: int, frame: int) -> bool:
        """Whether other frames of the step wait for the credit of one that has left, or will. Else its receipt has time until the answer comes."""
        return self._awaited[shard][frame]

    def overdue(self) -> list[int]:
        """Shards to be asked for all receipts, now that no frame may leave: since a stream has ended more have to than were counted on, and wait for
        credits that need not come before the answers."""
        full = {shard for shard, queue in enumerate(self._queue) if queue and self._in_flight[shard] >= self._share and not self._num_awaited[shard]}
        if self.has_ready and self.in_flight >= self._window and not any(self._num_awaited):
            full.update(range(len(self._frames)))
        asked = sorted(shard for shard in full if self._sent[shard] != self._awaited[shard])
        for shard in asked:
            self._awaited[shard] = list(self._sent[shard])
            self._num_awaited[shard] = sum(self._sent[shard])
        return asked

    @property
    def has_ready(self) -> bool:
        """Whether a frame waits to leave."""
        return any(self._queue)

    def receipt(self, shard: int, frame: int) -> None:
        """The shard has received a frame: its credit is back."""
        if self._sent[shard][frame]:
            self._sent[shard][frame] = False
            self._in_flight[shard] -= 1
            self._num_awaited[shard] -= self._awaited[shard][frame]
            self._awaited[shard][frame] = False

    def may_land(self, shard: int, version: int, run: Run) -> bool:
        """Whether the run's bytes of `version` are wanted: late answers of other steps, or repeated ones, are not."""
        return version == self.step + 1 and not self._landed[shard][run.span].all()

    def landed(self, shard: int, run: Run) -> None:
        """The run's bytes of version step + 1 are in place."""
        new = self._tensors[shard][run.span][~self._landed[shard][run.span]]
        self._landed[shard][run.span] = True
        self._missing -= len(new)
        if len(new) and (new == new[0]).all():  # as in most runs, and a tenth of what sorting costs
            self._missing_of[new[0]] -= len(new)
        else:
            np.subtract.at(self._missing_of, new, 1)

    def stream_ended(self, shard: int) -> None:
        """Credits on the stream return; what has not landed must be pushed again on the next one."""
        self._in_flight[shard] = 0
        self._awaited[shard] = [False] * len(self._frames[shard])
        self._num_awaited[shard] = 0
        self._left[shard] = sum(not self._landed[shard][run.span].all() for run in self._frames[shard])
        for index, run in enumerate(self._frames[shard]):
            self._sent[shard][index] = False
            self._ready[shard][index] = not self._unready[shard][index] and not self._landed[shard][run.span].all()
        self._queue[shard] = [self._place[shard][index] for index, is_ready in enumerate(self._ready[shard]) if is_ready]
        heapify(self._queue[shard])
