"""Ranks of a small job that a test leads by the hand, on real servers, and two lines of numpy that say what it must come to."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import nn

from ps.config import CommConfig, OptimizerConfig
from ps.layout import Rule
from tests.ps.cluster import Cluster, await_taken, in_threads, start

TENSORS, SIZE, STEPS = 6, 64, 3
OPTIMIZER = OptimizerConfig(lr=0.25, momentum=0.5)
OVER_GRPC = CommConfig(shared_memory=False)
GARBAGE = 7.0


def initial() -> np.ndarray:
    return np.linspace(-1, 1, TENSORS * SIZE).reshape(TENSORS, SIZE)


class Six(nn.Module):
    """Vectors; every server holds some of them."""

    def __init__(self) -> None:
        super().__init__()
        self.vectors = nn.ParameterList([nn.Parameter(torch.from_numpy(values)) for values in initial()])


def weight(rank: int) -> float:
    return float(1 << rank)


def gradients(params: np.ndarray, rank: int, step: int) -> np.ndarray:
    """Of all tensors: each depends on all parameters, and is rounded, so that the order of a sum shows."""
    return params * (0.3 * (rank + 1)) + 0.1 * (step + 1) + 0.01 * params.sum()


def reference(num_workers: int) -> np.ndarray:
    """The weighted mean in rank order, then torch's momentum."""
    params, velocity = initial(), np.zeros((TENSORS, SIZE))
    for step in range(STEPS):
        total = sum((gradients(params, rank, step) * weight(rank) for rank in range(1, num_workers)), start=gradients(params, 0, step))
        velocity = 0.5 * velocity + total / sum(map(weight, range(num_workers)))
        params = params - 0.25 * velocity
    return params


class Rank:
    """One incarnation of a rank, joined, at the version it has found."""

    def __init__(self, servers: Cluster, rank: int, incarnation: int = 1) -> None:
        self.rank = rank
        self.member = servers.member(rank, Six(), incarnation=incarnation)
        self.client, self.bound = self.member.client, self.member.bound
        self.tensors = [i for i, spec in enumerate(self.bound.layout.specs) if spec.rule is Rule.OPTIMIZER]
        self.sums = next(i for i, spec in enumerate(self.bound.layout.specs) if spec.rule is Rule.SUM)
        self.step = 0

    def start(self) -> None:
        self.step = start(self.member)

    def on_shard(self, shard: int) -> list[int]:
        """Tensors that this shard alone holds; the epoch sums are on shard 0."""
        others = {int(t) for s in self.bound.layout.shards if s.index != shard for t in s.tensor}
        return [t for t in [*self.tensors, self.sums] if t not in others]

    def begin(self) -> None:
        """Computes the step's gradients; none is sent yet."""
        params = self._values(self.bound.landing[self.step % 2])
        self._values(self.bound.gradients)[:] = gradients(params, self.rank, self.step)
        self.client.begin(self.step, weight(self.rank), self.bound.gradients)

    def _values(self, flat: np.ndarray) -> np.ndarray:
        at = int(self.bound.layout.tensor_flat[self.tensors[0]])
        return flat[at : at + 8 * TENSORS * SIZE].view(np.float64).reshape(TENSORS, SIZE)

    def push(self, tensors: Sequence[int] | None = None) -> None:
        """Sends them, or all; returns when the servers have them."""
        self.client.ready(tensors if tensors is not None else [*self.tensors, self.sums], present=True)
        await_taken(self.client)

    def settle(self) -> None:
        self.client.settle()
        self.step += 1

    def fill_with_garbage(self) -> None:
        self._values(self.bound.gradients)[:] = GARBAGE

    def finish(self) -> None:
        """The rest of the step that has begun, and of the run."""
        self.settle()
        while self.step < STEPS:
            self.begin()
            self.push()
            self.settle()


def started(servers: Cluster) -> list[Rank]:
    """First incarnations of all ranks, at version 0."""
    ranks = [Rank(servers, rank) for rank in range(servers.num_workers)]
    in_threads([rank.start for rank in ranks])
    return ranks


def successor(servers: Cluster, rank: int, incarnation: int = 2) -> Rank:
    """Joins in the place of a former incarnation, and computes its step."""
    made = Rank(servers, rank, incarnation)
    made.start()
    made.begin()
    return made


def finish(servers: Cluster, ranks: Sequence[Rank]) -> np.ndarray:
    """All ranks have pushed their step; returns the parameters of the last version."""
    in_threads([rank.finish for rank in ranks])
    found = servers.weights(STEPS)
    return np.stack([found[f"vectors.{i}"].numpy() for i in range(TENSORS)])
