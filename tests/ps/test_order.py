"""All ranks push in rank 0's order, also where each would see another one."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ps.config import CommConfig
from ps.plan import Plan
from tests.ps.cluster import Cluster, Member, cluster, in_threads
from tests.ps.training import Job, Marked, train
from workers.config import TrainConfig

WIDTH = 64
"""A layer's weights are a frame of their own."""


class Forked(nn.Module):
    """Which of two layers comes first is up to the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(8, WIDTH)
        self.left = nn.Linear(WIDTH, WIDTH)
        self.right = nn.Linear(WIDTH, WIDTH)
        self.head = nn.Linear(WIDTH, 2)

    def forward(self, x: torch.Tensor, mark: torch.Tensor) -> torch.Tensor:
        way = (self.left, self.right) if float(x.sum()) > 0 else (self.right, self.left)
        hidden = torch.tanh(self.first(x))
        for layer in way:
            hidden = torch.tanh(layer(hidden))
        out: torch.Tensor = self.head(hidden)
        return out


@dataclass(frozen=True)
class Fork(Marked):
    def model(self) -> nn.Module:
        return Forked()


JOB = Job(
    task=Fork(),
    train=TrainConfig(global_batch_size=12, max_steps=4, epochs=10, seed=3, dtype="float64"),
    comm=CommConfig(shared_memory=False, frame_bytes=4096, window_frames=8),
)


def trained(servers: Cluster) -> tuple[list[Member], list[Mapping[int, int]]]:
    """Members after all steps, and the order of use that each has seen."""
    seen: list[Mapping[int, int]] = [{}, {}]
    members = [servers.member(rank, JOB.model()) for rank in range(2)]

    def noted(member: Member) -> None:
        prioritise = member.client.prioritise

        def note(use: Mapping[int, int]) -> None:
            seen[member.rank] = use
            prioritise(use)

        member.client.prioritise = note  # type: ignore[method-assign]

    for member in members:
        noted(member)
    in_threads([lambda member=member: train(JOB, member, []) for member in members])
    return members, seen


def order_of(member: Member) -> Any:
    """Frames of every shard in the order in which they leave."""
    return member.client._state.exchange._at_place


def test_ranks_that_see_different_orders_push_in_rank_0s() -> None:
    plan = Plan(JOB.batches().steps_per_epoch(), JOB.steps)
    with cluster(2, 2, optimizer=JOB.optimizer, comm=JOB.comm, plan=plan) as servers:
        (zero, one), seen = trained(servers)
        assert dict(seen[0]) != dict(seen[1]), "each rank's first batch takes another way"
        assert order_of(zero) == order_of(one)
        own = one.client._planned(one.client.member.rank, one.client._state.lines)
        own.prioritise(seen[1])
        assert own._at_place != order_of(one)
