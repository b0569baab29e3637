"""A shard's part of checkpoints: what it cuts is saved, and what was saved is brought back."""

from collections.abc import Callable

import numpy as np

from protos import pserver_pb2 as pb
from ps import frame
from ps.checkpoints.cut import Cut, Cuts
from ps.checkpoints.parts import shard_shape
from ps.checkpoints.saver import Part, Saver
from ps.config import Saving
from ps.errors import MalformedFrame
from ps.frame import Bytes
from ps.layout import Layout, Rule
from ps.plan import Plan
from ps.store import Store


def saved_cuts(store: Store, layout: Layout, plan: Plan, saving: Saving, saver: Callable[[], Saver | None]) -> Cuts:
    """The cuts of a shard, which go to the saver; without one they are dropped."""
    shape = shard_shape(layout, store.layout.index, store.slots)

    def deliver(cut: Cut) -> None:
        part = Part(cut.version, shape, cut.memory, lambda: (cut.data.digests(), cut.data.state_digests()), cuts.release)
        if found := saver():
            found.save(part)
        else:
            cuts.release()

    def abandon(version: int, why: str) -> None:
        if found := saver():
            found.abandon(version, why)

    cuts = Cuts(store, lambda version: saving.is_due(version, plan.steps_per_epoch), deliver, abandon)
    return cuts


class Restoring:
    """Takes the state of one version, run by run, into an empty store; with the newest decision, as the store keeps it."""

    def __init__(self, store: Store, version: int, decided: int, rate_factor: float) -> None:
        self._store = store
        self._layout = store.layout
        self.version = version
        self.decided = decided
        self.rate_factor = rate_factor
        self._missing = np.ones((1 + store.slots, len(store.layout)), np.bool_)
        self._missing[1:, store.layout.num_optimizer :] = False

    def take(self, header: pb.FrameHeader, payload: Bytes) -> None:
        """A frame of kind STATE. Raises MalformedFrame."""
        if header.kind != pb.STATE or header.slot > self._store.slots:
            raise MalformedFrame(f"frame of kind {header.kind}, slot {header.slot}, while shard {self._layout.index} is restored")
        run = frame.checked_run(header, payload, self._layout, with_payload=True)
        has_state = self._layout.block_of(run).rule is Rule.OPTIMIZER
        if (header.slot and not has_state) or len(header.updates) != (len(run) if has_state and not header.slot else 0):
            raise MalformedFrame(f"state of chunks {run.first}..{run.stop - 1} of shard {self._layout.index}, slot {header.slot}, does not fit them")
        into = self._store.slot_copy(self.version, header.slot - 1) if header.slot else self._store.copy_of(self.version, run)
        frame.land(payload, into, self._layout, run, flat=False)
        if header.updates:
            self._store.updates(self.version, run)[:] = np.array(header.updates, np.int64)
        self._missing[header.slot][run.span] = False

    def check_whole(self) -> None:
        """Raises MalformedFrame if something has not come."""
        if self._missing.any():
            raise MalformedFrame(f"shard {self._layout.index} was not given all of its state: {int(self._missing.sum())} chunks are missing")
