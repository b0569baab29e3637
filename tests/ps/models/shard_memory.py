"""A shard's memory as the model sees it: the real Store, in whose bytes of version t every element says t."""

from collections.abc import Callable

import numpy as np

from ps.layout import IntArray, Layout, Run
from ps.store import Store
from tests.ps.models.core import Violation

TORN = -7
"""Label of bytes that are being overwritten."""


class _Killed(Exception):
    """The process dies here."""


class _DiesWhenRead:
    def __array__(self, *_: object, **__: object) -> np.ndarray:
        raise _Killed


def square_of(step: int, chunk: int) -> float:
    """The squared norm of a chunk of the whole layout at a step."""
    return 1.0 + 100 * step + chunk


class ShardMemory:
    """The store of shard `index`, formatted, and what becomes of it; with room for the norms of two-phase steps, or without.

    `is_absent`: whether no rank has a gradient for a chunk of the whole layout at a step.
    """

    def __init__(self, kind: type[Store], layout: Layout, index: int, is_absent: Callable[[int, int], bool], *, two_phase: bool) -> None:
        self._whole, self._layout, self._is_absent = layout, layout.shards[index], is_absent
        num_norms = len(layout) if two_phase else 0
        self._bytes = np.zeros(Store.size_bytes(self._layout, slots=1, num_norms=num_norms), np.uint8)
        self.store = kind(self._bytes, self._layout, slots=1, num_norms=num_norms, key=bytes(32))
        self.store.format()

    def save(self) -> bytes:
        return self._bytes.tobytes()

    def load(self, saved: bytes) -> None:
        self._bytes[:] = np.frombuffer(saved, np.uint8)

    def labels(self, version: int, run: Run) -> IntArray:
        """Of the bytes at the place of `version`."""
        return self.store.params(version, run).view(np.int64)

    def init(self, chunk: int) -> None:
        """Version 0 of a chunk."""
        self.labels(0, Run(chunk, chunk + 1))[:] = 0
        self.store.words[chunk] = 0

    # -- the writes of an update -----------------------------------------------------------------------------

    def tear(self, version: int, run: Run) -> None:
        """In the middle of the overwrite by `version`."""
        self.labels(version, run)[:] = TORN

    def write(self, version: int, run: Run, *, counts: bool) -> None:
        """`version`, made of a copy of the one before; it `counts` as an update. Raises Violation if that copy is of another one."""
        self.store.fill_next(version - 1, run)
        for chunk in range(run.first, run.stop):
            one = Run(chunk, chunk + 1)
            if (self.labels(version, one) != version - 1).any():
                raise Violation(f"step {version - 1} of chunk {chunk} starts from {self.labels(version, one)[0]}")
            self.labels(version, one)[:] = version
            self.store.state(version, one)[0].view(np.int64)[:] = version
            if counts:
                self.store.updates(version, one)[:] += 1

    def die_in_record(self, step: int) -> None:
        """The process dies while it writes a record."""
        try:
            self.store.record(step, _DiesWhenRead())  # type: ignore[arg-type]
        except _Killed:
            self.store.norms[:] = TORN

    # -- what must hold --------------------------------------------------------------------------------------

    def check_readable(self) -> None:
        """Everything may be read that claims to be. Raises Violation."""
        for claimed in (self.store.version, self.store.version - 1):
            if claimed >= 0 and self.store.readable(claimed):
                for chunk in range(len(self._layout)):
                    self._check_label(claimed, chunk)

    def _check_label(self, version: int, chunk: int) -> None:
        run = Run(chunk, chunk + 1)
        for values in (self.labels(version, run), self.store.state(version, run)[0].view(np.int64)):
            if (values != version).any():
                raise Violation(f"shard {self._layout.index} holds {values[0]} as bytes of version {version} of chunk {chunk}")
        expected = sum(not self._is_absent(step, int(self._layout.chunks[chunk])) for step in range(version))
        if int(self.store.updates(version, run)[0]) != expected:
            raise Violation(f"chunk {chunk} of version {version} counts {self.store.updates(version, run)[0]} updates, had {expected}")

    def check_record(self, step: int) -> None:
        """The norms by which the step is decided are those of all shards. Raises Violation."""
        expected = [square_of(step, int(chunk)) for shard in self._whole.shards for chunk in shard.chunks]
        if self.store.norms.tolist() != expected:
            raise Violation(f"shard {self._layout.index} decides step {step} by the norms {self.store.norms.tolist()}")
