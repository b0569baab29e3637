"""A rank's part of checkpoints: what its push format has yet to send."""

import threading

import numpy as np

from ps.checkpoints.parts import chunk_digests, optimizer_chunks, rank_shape
from ps.checkpoints.saver import Part, Saver
from ps.config import Saving
from ps.control_client import ControlClient
from ps.layout import Layout
from ps.plan import Plan
from ps.rank_state import RankState

_LAST_WAITS_S = 30.0
"""The last one waits so long for the one before to be written."""


class SavedResiduals:
    """Saves copies of the residuals at the versions that are due; one at a time. Thread-safe."""

    def __init__(self, state: RankState, layout: Layout, rank: int, num_workers: int, control: ControlClient, saving: Saving) -> None:
        self._state = state
        self._saving = saving
        self._sizes = layout.chunk_bytes[optimizer_chunks(layout)].tolist()
        self._shape = rank_shape(layout, rank, num_workers)
        self._saver = Saver(control, saving)
        self._free = threading.Event()
        self._free.set()

    def settled(self, version: int, plan: Plan) -> None:
        """The residuals of `version` are final, and nothing of its step has been encoded."""
        if not self._saving.is_due(version, plan.steps_per_epoch):
            return
        if version == plan.total_steps:
            self._free.wait(_LAST_WAITS_S)
        if not self._free.is_set():
            self._saver.abandon(version, "the one before is still being written")
            return
        self._free.clear()
        memory = self._state.packed(version)
        digests = lambda: (chunk_digests(memory, self._sizes), np.zeros(0, np.uint64))  # noqa: E731
        self._saver.save(Part(version, self._shape, memory, digests, self._free.set))

    def close(self) -> None:
        """Returns when all has been written."""
        self._saver.close()


def restore(state: RankState, saving: Saving, control: ControlClient) -> None:
    """Gives the state of a new process what the checkpoint has of it, unless a former one has had it."""
    if saving.restored is not None and state.version < saving.restored:
        state.load(saving.restored, np.frombuffer(control.withdraw(), np.uint8))
