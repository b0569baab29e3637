"""All ranks push in rank 0's order, also where each would see another one."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from protos import pserver_pb2 as pb
from ps.config import CommConfig
from ps.frame_plan import plan_frames
from ps.order import Order
from ps.pacing import Windows, pacing_of
from ps.plan import Plan
from tests.ps.cluster import Cluster, Member, cluster, exchange, in_threads, start
from tests.ps.training import Job, Marked, train
from workers.config import TrainConfig

WIDTH = 64
"""A layer's weights are a frame of their own."""


class Forked(nn.Module):
    """Which of two layers comes first is up to the batch. `work`: how many times as much is computed for the first one."""

    def __init__(self, work: int, width: int) -> None:
        super().__init__()
        self.work = work
        self.first = nn.Linear(8, width)
        self.left = nn.Linear(width, width)
        self.right = nn.Linear(width, width)
        self.head = nn.Linear(width, 2)

    def forward(self, x: torch.Tensor, mark: torch.Tensor) -> torch.Tensor:
        way = (self.left, self.right) if float(x.sum()) > 0 else (self.right, self.left)
        hidden = torch.tanh(self.first(x))
        if self.work > 1:
            hidden = torch.tanh(hidden.unsqueeze(-1).expand(-1, -1, self.work)).mean(-1)
        for layer in way:
            hidden = torch.tanh(layer(hidden))
        out: torch.Tensor = self.head(hidden)
        return out


@dataclass(frozen=True)
class Fork(Marked):
    work: int = 1
    width: int = WIDTH

    def model(self) -> nn.Module:
        return Forked(self.work, self.width)


JOB = Job(
    task=Fork(),
    train=TrainConfig(global_batch_size=12, max_steps=4, epochs=10, seed=3, dtype="float64"),
    comm=CommConfig(shared_memory=False, frame_bytes=4096, window_frames=8),
)


def trained(servers: Cluster, job: Job = JOB) -> tuple[list[Member], list[Mapping[int, int]]]:
    """Members after all steps, and the order of use that each has seen."""
    seen: list[Mapping[int, int]] = [{}, {}]
    members = [servers.member(rank, job.model()) for rank in range(2)]

    def noted(member: Member) -> None:
        prioritise = member.client.prioritise

        def note(use: Mapping[int, int]) -> None:
            seen[member.rank] = use
            prioritise(use)

        member.client.prioritise = note  # type: ignore[method-assign]

    for member in members:
        noted(member)
    in_threads([lambda member=member: train(job, member, []) for member in members])
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
        _, own = plan_frames(one.client.layout, one.client._state.lines, JOB.comm, one.client.pacing)
        own.prioritise(seen[1])
        assert own._at_place != order_of(one)


UNEQUAL = CommConfig(shared_memory=False, bandwidth="100mbit", worker_bandwidth={1: "20mbit"})


def test_ranks_whose_links_differ_push_frames_of_one_length_and_the_same_bits(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "ps.sender")
    job = replace(JOB, task=Fork(width=256), train=replace(JOB.train, max_steps=6))  # 0.1 s of the quicker link, and of processors next to nothing
    plan = Plan(job.batches().steps_per_epoch(), job.steps)
    found = []
    for comm in (job.comm, UNEQUAL):
        with cluster(2, 2, optimizer=job.optimizer, comm=comm, plan=plan) as servers:
            (zero, one), _ = trained(servers, job)
            found.append(servers.sha256(job.steps))
    assert (
        zero.client.pacing.frame_bytes == one.client.pacing.frame_bytes > pacing_of(one.client.pacing.link_bytes_per_s, 0, Windows(8, 8)).frame_bytes
    )
    assert zero.client.sender.frames == one.client.sender.frames
    orders = [member.client._state.order for member in (zero, one)]
    assert orders[0] == orders[1] and orders[0] and orders[0].is_measured, "from the fourth step on"
    assert order_of(zero) == order_of(one)
    assert "rank 1: as rank 0, 8 frames (16 in the end) of " in caplog.text
    assert found[0] == found[1]
    late = pb.FrameHeader(kind=pb.ORDER)
    orders[0]._replace(ready_s=(), link_bytes_per_s=0.0).write(late)
    zero.client.inbox.take(zero.client._state.lines[0], late, np.empty(0, np.uint8))
    assert zero.client._state.order == orders[0], "what a shard says that has not seen the measured one yet changes nothing"


def test_a_link_that_waits_for_gradients_leaves_the_order_free() -> None:
    comm = CommConfig(shared_memory=False, bandwidth="1gbit")
    job = replace(JOB, task=Fork(work=20_000), train=replace(JOB.train, max_steps=6), comm=comm)
    plan = Plan(job.batches().steps_per_epoch(), job.steps)
    with cluster(2, 2, optimizer=job.optimizer, comm=comm, plan=plan) as servers:
        (zero, _), _ = trained(servers, job)
        order = zero.client._state.order
        assert zero.client.pacing.is_measured and order is not None and not order.is_measured


def test_a_small_batch_does_not_say_when_gradients_are_ready() -> None:
    with cluster(1, 2, comm=JOB.comm) as servers:
        member = servers.member(0, JOB.model())
        start(member)
        sender = member.client.sender
        exchange(member, 0, 12.0)
        exchange(member, 1, 12.0)
        found = sender._ready_s.copy()
        assert 0 < found.max() < np.inf
        exchange(member, 2, 1.0)
        assert (sender._ready_s == found).all()


@pytest.mark.parametrize(("weights", "is_measured"), [((12.0, 0.0, 0.0), False), ((12.0, 0.0, 12.0), True)])
def test_a_step_without_weight_does_not_say_so_either(weights: tuple[float, ...], *, is_measured: bool) -> None:
    comm = CommConfig(shared_memory=False, bandwidth="8mbit")
    with cluster(1, 2, comm=comm) as servers:
        member = servers.member(0, JOB.model())
        start(member)
        member.client.prioritise(dict(enumerate(range(len(member.bound.layout.specs)))))
        for step, weight in enumerate((*weights, 12.0)):
            exchange(member, step, weight, present=lambda _, weight=weight: weight > 0)
        assert member.client.pacing.is_measured
        order = member.client._state.order
        assert order is not None and order.is_measured is is_measured


@pytest.mark.parametrize(("push_format", "part"), [("fp32", 1.0), ("bf16", 0.25), ("int8", 0.125)])
def test_a_schedule_is_that_of_the_bytes_that_travel(push_format: Any, part: float) -> None:
    comm = CommConfig(shared_memory=False, bandwidth="8mbit", push_format=push_format)
    with cluster(1, 2, comm=comm) as servers:
        member = servers.member(0, JOB.model())
        start(member)
        num_tensors = len(member.bound.layout.specs)
        schedule = member.client.sender._schedule(Order([0] * num_tensors, 0, [1.0] * num_tensors, 1e6))
        exact = [
            [line.layout.payload_bytes(run) for run in runs]
            for line, runs in zip(member.client._state.lines, member.client.sender.frames, strict=True)
        ]
        assert schedule.sharing == 2
        assert [sum(of) for of in schedule.takes_s] == pytest.approx([2 / 1e6 * part * sum(of) for of in exact], rel=0.02)
