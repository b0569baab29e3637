"""The first phase of a step that needs the global norm: runs are held until one decision can be taken for all of them."""

from collections.abc import Sequence

import numpy as np

from protos import pserver_pb2 as pb
from ps import frame
from ps.barrier import Complete
from ps.config import OptimizerConfig
from ps.errors import MalformedFrame
from ps.norms import NormDelivery, NormExchange, Norms, StepFactor, decide
from ps.store import Store


class TwoPhase:
    """What one shard holds back and knows of the norms. Not thread-safe: the shard locks.

    `sizes`: chunks with an optimizer per shard. The store has the durable record.
    """

    def __init__(self, sizes: Sequence[int], index: int, optimizer: OptimizerConfig, store: Store) -> None:
        self.needed = optimizer.two_phase
        self.delivery = NormDelivery()
        self._exchange = NormExchange(sizes, index)
        self._index = index
        self._optimizer = optimizer
        self._store = store
        self._held: list[Complete] = []

    def begin(self) -> None:
        """The next step begins."""
        self._exchange.begin()

    def hold(self, complete: Complete, squares: Norms | None) -> None:
        """Keeps a complete run; `squares` are its chunks' norms, None if the run has no optimizer."""
        self._held.append(complete)
        if squares is not None:
            self._exchange.add_own(complete.run, squares)

    def learn(self, shard: int, squares: Sequence[float]) -> None:
        """Another shard's norms, relayed by a rank. Raises MalformedFrame."""
        if shard == self._index:
            return
        try:
            self._exchange.learn(shard, np.array(squares, np.float64))
        except (ValueError, IndexError) as error:
            raise MalformedFrame(f"norms of shard {shard}: {error}") from error

    def recorded(self, step: int) -> StepFactor | None:
        """The decision of a step whose norms are durable: a restarted shard needs no new ones."""
        return self._decide(self._store.norms) if self._store.recorded_step == step else None

    def has_skipped(self, step: int) -> bool:
        """Whether the step, the last one that was applied, was skipped."""
        decision = self.recorded(step) if self.needed else None
        return decision is not None and decision.skip

    def release(self, step: int) -> tuple[list[Complete], StepFactor] | None:
        """All held runs and the decision for them, once every run is held and every vector known; made durable first."""
        vectors = self._exchange.all_vectors()
        held = sum(len(complete.run) for complete in self._held)
        if vectors is None or step != self._store.version or held < self._store.layout.num_versioned:
            return None
        self._store.record(step, vectors)
        runs, self._held = self._held, []
        return runs, self._decide(vectors)

    def frames(self, step: int) -> list[bytes]:
        """What is known of the step's norms, as frames: all shards' once recorded, else the own when it is whole."""
        if self._store.recorded_step == step:
            vectors = dict(enumerate(self._exchange.split(self._store.norms)))
        elif step == self._store.version and self._exchange.own is not None:
            vectors = {self._index: self._exchange.own}
        else:
            return []
        headers = (pb.FrameHeader(kind=pb.NORMS, step=step, norms_shard=s, norms=v.tolist()) for s, v in vectors.items())
        return [frame.encode(header) for header in headers]

    def _decide(self, squares: Norms) -> StepFactor:
        return decide(squares, self._optimizer.max_grad_norm, skip_nonfinite=self._optimizer.nonfinite == "skip")
