"""Copies of whole versions of a shard, taken while training goes on.

Version v lies untouched in its copy of the store until a run of step v + 1 is written over it, and a run is copied just before that:
nobody waits but the thread that writes the run, for one copy of it, and the bytes are those of version v whatever the timing.
"""

import threading
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from ps.checkpoints.parts import ShardData
from ps.failpoints import hit
from ps.frame import Bytes, payload_parts
from ps.layout import Run, ShardLayout
from ps.store import Store

_LEFT, _COPYING, _TAKEN = range(3)
"""State of a chunk of the cut."""


class Cut:
    """One version, laid out like the data of the shard's part."""

    def __init__(self, layout: ShardLayout, slots: int) -> None:
        self._layout = layout
        self.memory: Bytes = np.empty(
            int(layout.num_bytes.sum()) + layout.payload_bytes(Run(0, layout.num_optimizer)) * slots + 8 * layout.num_optimizer, np.uint8
        )
        self.data = ShardData(self.memory, layout, slots)
        self.version = -1

    def copy(self, store: Store, run: Run) -> None:
        """The run's bytes of the version."""
        layout, version = self._layout, self.version
        start = layout.payload_bytes(Run(0, run.first))
        _pack(store.copy_of(version, run), layout, run, self.data.params, start)
        if run.stop <= layout.num_optimizer:
            for slot, packed in enumerate(self.data.slots):
                _pack(store.slot_copy(version, slot), layout, run, packed, start)
            self.data.updates[run.span] = store.updates(version, run)


def _pack(memory: Bytes, layout: ShardLayout, run: Run, into: Bytes, at: int) -> None:
    for part in payload_parts(memory, layout, run, flat=False):
        into[at : at + len(part)] = part
        at += len(part)


class Cuts:
    """Takes the versions that `is_due` names, and those asked for; one at a time. Thread-safe.

    `deliver` gets a whole cut, whose memory is its own until `release`; `abandon` a version that will never be whole, and why.
    """

    def __init__(
        self,
        store: Store,
        is_due: Callable[[int], bool],
        deliver: Callable[[Cut], None],
        abandon: Callable[[int, str], None],
    ) -> None:
        self._store = store
        self._layout = store.layout
        self._is_due = is_due
        self._deliver = deliver
        self._abandon = abandon
        self._changed = threading.Condition()  # guards everything below
        self._cut: Cut | None = None
        self._state: npt.NDArray[np.uint8] = np.zeros(self._layout.num_versioned, np.uint8)
        self._taking = False
        self._delivered = False
        """Whether somebody else uses the memory."""
        self._newest = -1
        """Version that was delivered or given up last."""
        self._lost = store.oldest - 1
        """Newest version that a former process has begun to write over: it may have died within a run, whose write is then repeated."""

    def before_write(self, step: int, run: Run) -> None:
        """Step `step` is about to write the run over version step - 1."""
        version = step - 1
        if version < 1 or not self._is_due(version):
            return
        with self._changed:
            if not self._begin(version):
                return
            self._changed.wait_for(lambda: bool((self._state[run.span] != _COPYING).all()))
            left = self._claim(run) if self._taking else []
        self._copy(left)

    def take(self, version: int, check: Callable[[], None]) -> None:
        """Cuts a version in which nothing moves. `check` raises if the bytes are gone; until it returns nothing is copied, and from then
        on whoever writes over a run waits for its copy."""
        with self._changed:
            check()
            if not self._begin(version):
                return
            runs = [block.run for block in self._layout.blocks if block.run.stop <= self._layout.num_versioned]
            left = [part for run in runs for part in self._claim(run)]
        self._copy(left)

    def _claim(self, run: Run) -> list[Run]:
        """The parts of the run that nobody has copied, marked as being copied; under the lock."""
        chunks = np.flatnonzero(self._state[run.span] == _LEFT) + run.first
        self._state[chunks] = _COPYING
        return [Run(int(part[0]), int(part[-1]) + 1) for part in np.split(chunks, np.flatnonzero(np.diff(chunks) > 1) + 1) if len(part)]

    def _begin(self, version: int) -> bool:
        """Whether `version` is being taken; under the lock."""
        if version <= self._newest:
            return False
        if version <= self._lost:
            self._newest = version
            self._abandon(version, "a part of it went with a process")
            return False
        if self._delivered:
            self._newest = version
            self._abandon(version, "the one before is still being written")
            return False
        if self._taking and self._cut and self._cut.version != version:
            self._abandon(self._cut.version, "a part of it went with a process")
        elif self._taking:
            return True
        self._cut = self._cut or Cut(self._layout, self._store.slots)
        self._cut.version = version
        self._state[:] = _LEFT
        self._taking = True
        return True

    def _copy(self, runs: list[Run]) -> None:
        """Runs that are marked as being copied."""
        cut = self._cut
        assert cut
        for run in runs:
            cut.copy(self._store, run)
            hit("shard.cut")
        with self._changed:
            for run in runs:
                self._state[run.span] = _TAKEN
            self._changed.notify_all()
            if not self._taking or not (self._state == _TAKEN).all():
                return
            self._taking, self._delivered, self._newest = False, True, cut.version
        for block in self._layout.blocks:
            if block.run.first >= self._layout.num_versioned:
                cut.copy(self._store, block.run)
        self._deliver(cut)

    def release(self) -> None:
        """The memory of what was delivered may be used for the next cut."""
        with self._changed:
            self._delivered = False
            self._changed.notify_all()

    def wait_until_free(self, timeout_s: float) -> None:
        """Returns when nothing that was delivered is in use any more, or after `timeout_s`."""
        with self._changed:
            self._changed.wait_for(lambda: not self._delivered, timeout_s)
