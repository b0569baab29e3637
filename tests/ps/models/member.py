"""A member as the model sees it: the real Exchange and NormRelay; what ps.client and ps.sender do around them, without threads."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ps.exchange import Exchange
from ps.layout import Layout, Run
from ps.norms import NormRelay
from ps.pacing import Windows
from tests.ps.models.core import Component, Violation, fields, set_fields

JOIN, INIT, READY, PULL, STEP, END = "join", "init", "ready", "pull", "step", "end"


@dataclass(frozen=True)
class Habits:
    """What a member is made of: controls replace one of them."""

    exchange: type[Exchange] = Exchange
    relay: type[NormRelay] = NormRelay
    window: int = 99
    frame_chunks: int = 1


class MemberModel(Component):
    """One incarnation of one rank. Public methods are events, called through `call`."""

    def __init__(self, habits: Habits, layout: Layout, rank: int, steps: int, stage: int = 0) -> None:
        super().__init__()
        self.rank, self.steps, self.layout, self.stage = rank, steps, layout, stage
        self.frames = self._cut(layout, habits)
        self.exchange = habits.exchange(
            rank, self.frames, [shard.tensor for shard in layout.shards], Windows(habits.window, habits.window), self._own(layout)
        )
        self.relay = habits.relay(len(layout.shards))
        self._begin_join()

    def _cut(self, layout: Layout, habits: Habits) -> list[list[Run]]:
        """The frames of every shard."""
        size = habits.frame_chunks
        return [[Run(first, min(first + size, len(shard))) for first in range(0, len(shard), size)] for shard in layout.shards]

    def _own(self, layout: Layout) -> list[npt.NDArray[np.bool_]] | None:
        """The chunks of every shard that are the member's; None: all."""
        return None

    def _begin_join(self) -> None:
        n = len(self.layout.shards)
        self.mode, self.version = JOIN, -1
        self.joined: tuple[int | None, ...] = (None,) * n
        self.todo: tuple[tuple[int, int], ...] = ()
        """(shard, chunk) to init or pull."""
        self.ready: tuple[bool, ...] = (False,) * n

    def save(self) -> Any:
        plain = self.mode, self.version, self.joined, self.todo, self.ready
        return (
            plain,
            fields(self.exchange, "_frames", "_tensors", "_foreign", "_chunks_of", "_in_frame", "_frames_of", "_place", "_at_place"),
            fields(self.relay),
        )

    def load(self, saved: Any) -> None:
        plain, exchange, relay = saved
        self.mode, self.version, self.joined, self.todo, self.ready = plain
        set_fields(self.exchange, exchange)
        set_fields(self.relay, relay)

    def facts(self) -> tuple[str, int, tuple[int | None, ...], tuple[tuple[int, int], ...]]:
        return self.mode, self.version, self.joined, self.todo

    # -- join ------------------------------------------------------------------------------------------------

    def join_answered(self, shard: int, version: int) -> None:
        """A shard's version; when it is the last one the rank pulls the smallest, or brings version 0."""
        self.joined = (*self.joined[:shard], version, *self.joined[shard + 1 :])
        if self.mode != JOIN or None in self.joined:
            return
        self.version = self._start_version([v for v in self.joined if v is not None])
        self._go_on_from()

    def _go_on_from(self) -> None:
        """From the version that has been found."""
        if self.version == -1:
            self._everything_todo(INIT if self.rank == 0 else READY)
        elif self.version == self.steps:
            self.mode = END
        elif self.version == 0:
            self._begin()
        else:
            self._everything_todo(PULL)

    def _start_version(self, versions: list[int]) -> int:
        return min(versions)

    def _everything_todo(self, mode: str) -> None:
        self.mode = mode
        own = self._own(self.layout) or [np.ones(len(shard), np.bool_) for shard in self.layout.shards]
        self.todo = tuple((s, c) for s, mine in enumerate(own) for c in np.flatnonzero(mine).tolist()) if mode != READY else ()
        self._check_ready()

    def brought(self, shard: int, chunk: int) -> None:
        """Initial bytes of a chunk have been stored."""
        self.todo = tuple(item for item in self.todo if item != (shard, chunk))
        if not self.todo:
            self._everything_todo(READY)

    def pulled(self, shard: int, chunk: int, label: int | None) -> None:
        """Bytes of a chunk; None: gone, join again."""
        if label is None:
            self._begin_join()
            return
        if label != self.version:
            raise Violation(f"rank {self.rank} pulls {label} as version {self.version}")
        self.todo = tuple(item for item in self.todo if item != (shard, chunk))
        if not self.todo:
            self._begin()

    def _check_ready(self) -> None:
        if self.mode == READY and all(self.ready):
            self.version = 0
            self._go_on_from()

    def _begin(self) -> None:
        self.mode = STEP
        self.exchange.begin(self.version)
        self.exchange.ready(range(len(self.layout.specs)))
        self.relay.begin()

    # -- a step ----------------------------------------------------------------------------------------------

    def send(self) -> tuple[int, int, tuple[tuple[int, int], ...], bool] | None:
        """(shard, frame, parts) that leaves now, and whether its receipt may wait for the answer."""
        found = self.exchange.next_frame()
        if found is None:
            return None
        run = self.frames[found[0]][found[1]]
        return *found, ((run.first, run.stop),), not self.exchange.awaits(*found)

    def overdue(self) -> list[int]:
        """Shards that are asked for receipts, when nothing can leave."""
        return self.exchange.overdue()

    def sent(self) -> tuple[tuple[int, int, int, tuple[tuple[int, int], ...]], ...]:
        """(step, shard, frame, parts) of everything that may arrive a second time."""
        every = [(s, f, ((run.first, run.stop),)) for s, runs in enumerate(self.frames) for f, run in enumerate(runs)]
        now = tuple((self.version, *item) for item in every if not self.exchange._ready[item[0]][item[1]])
        return now + tuple((self.version - 1, *item) for item in every if self.version)

    def receive(self, shard: int, message: tuple[Any, ...]) -> tuple[tuple[int, tuple[Any, ...]], ...]:
        """A message from a shard: the messages (shard, norms) to be sent."""
        kind, *rest = message
        if kind == "ready":
            self.ready = (*self.ready[:shard], True, *self.ready[shard + 1 :])
            self._check_ready()
        elif kind == "receipt":
            self._receipt(shard, rest[0])
        elif kind == "params":
            self._land(shard, *rest)
        elif kind == "norms" and rest[0] == self.exchange.step:
            targets = [(source, squares, self.relay.learn(source, squares)) for source, squares in rest[1]]
            return tuple((target, ("norms", rest[0], source, squares)) for source, squares, its in targets for target in its)
        return ()

    def _receipt(self, shard: int, frame: int) -> None:
        self.exchange.receipt(shard, frame)

    def _land(self, shard: int, version: int, part: tuple[int, int], labels: tuple[int, ...]) -> None:
        run = Run(*part)
        if not self.exchange.may_land(shard, version, run):
            return
        if any(label != self.exchange.step + 1 for label in labels):
            raise Violation(f"rank {self.rank} lands {labels} in step {self.exchange.step}")
        self.exchange.landed(shard, run)
        if self.exchange.is_done:
            self.version += 1
            self._has_landed()

    def _has_landed(self) -> None:
        """All of a version."""
        if self.version == self.steps:
            self.mode = END
        else:
            self._begin()

    def rejoined(self, shard: int, version: int) -> tuple[tuple[int, tuple[Any, ...]], ...]:
        """The stream of a shard broke and a new one is open: the norms that it is sent again."""
        if self.mode != STEP:
            self.join_answered(shard, version)
            if self.mode == READY and version == -1 and self.rank == 0:
                self.ready = (*self.ready[:shard], False, *self.ready[shard + 1 :])
                self._everything_todo(INIT)
            return ()
        self.exchange.stream_ended(shard)
        return tuple((shard, ("norms", self.exchange.step, source, squares)) for source, squares in sorted(self.relay.known().items()))
