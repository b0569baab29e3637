"""Ranks of two members, each with half of the tensors, on real servers, led by the hand: one contribution per chunk and rank, fences by member."""

import dataclasses
from collections.abc import Iterator

import numpy as np
import pytest

from protos import pserver_pb2 as pb
from ps.config import OptimizerConfig
from ps.contribution import Contribution
from ps.errors import MalformedFrame, ModelMismatch
from ps.layout import Layout, Run, TensorSpec
from ps.weights import SUMS
from tests.ps.cluster import Cluster, Member, await_taken, cluster, in_threads, start
from tests.ps.ranks import GARBAGE, OPTIMIZER, OVER_GRPC, SIZE, STEPS, TENSORS, Rank, Six, gradients, reference, weight

HALF = TENSORS // 2
STAGES = {f"vectors.{i}": i // HALF for i in range(TENSORS)} | {SUMS: 1}


class Group:
    """One rank: two members, each of which computes with its own tensors. Gradients need all parameters, as a backward does."""

    def __init__(self, servers: Cluster, rank: int) -> None:
        self.servers, self.rank = servers, rank
        self.members = [self._member(stage, 1) for stage in (0, 1)]
        self.step = 0

    def _member(self, stage: int, incarnation: int) -> Member:
        return self.servers.member(self.rank, Six(), stage=stage, stages=STAGES, incarnation=incarnation)

    def start(self) -> None:
        in_threads([lambda member=member: start(member) for member in self.members])

    def rows(self, stage: int, flat: np.ndarray) -> np.ndarray:
        """Of the stage's tensors."""
        at = int(self.members[stage].bound.layout.tensor_flat[HALF * stage])
        return flat[at : at + 8 * HALF * SIZE].view(np.float64).reshape(HALF, SIZE)

    def begin(self, stages: tuple[int, ...] = (0, 1)) -> None:
        landed = [self.rows(stage, member.bound.landing[self.step % 2]) for stage, member in enumerate(self.members)]
        found = gradients(np.concatenate(landed), self.rank, self.step)
        for stage in stages:
            member = self.members[stage]
            self.rows(stage, member.bound.gradients)[:] = found[HALF * stage : HALF * (stage + 1)]
            member.client.begin(self.step, weight(self.rank), member.bound.gradients)

    def push(self, stages: tuple[int, ...] = (0, 1)) -> None:
        """Returns when the servers have it."""
        for stage in stages:
            client = self.members[stage].client
            client.ready([i for i, spec in enumerate(client.layout.specs) if spec.stage == stage], present=True)
            await_taken(client)

    def settle(self) -> None:
        in_threads([member.client.settle for member in self.members])
        self.step += 1

    def whole_step(self) -> None:
        self.begin()
        self.push()
        self.settle()

    def replace(self, stage: int) -> None:
        """The member dies with rubbish in its memory; a successor joins and computes the step from what it has read."""
        old = self.members[stage]
        old.client.close()
        self.rows(stage, old.bound.gradients)[:] = GARBAGE
        self.members[stage] = self._member(stage, 2)
        assert start(self.members[stage]) == self.step
        self.begin((stage,))


class Whole(Rank):
    """The same rank, not split."""

    def whole_step(self) -> None:
        self.begin()
        self.push()
        self.settle()


@pytest.fixture(params=[False, True], ids=["grpc", "shared"])
def groups(request: pytest.FixtureRequest) -> Iterator[tuple[Cluster, list[Group]]]:
    comm = dataclasses.replace(OVER_GRPC, shared_memory=request.param)
    with cluster(2, 2, num_stages=2, optimizer=OPTIMIZER, comm=comm) as servers:
        made = [Group(servers, rank) for rank in range(2)]
        in_threads([group.start for group in made])
        yield servers, made


def run_on(groups: list[Group]) -> None:
    """From a step that all have pushed to the end."""
    in_threads([group.settle for group in groups])
    while groups[0].step < STEPS:
        for group in reversed(groups):
            group.begin()
            group.push((1, 0))
        in_threads([group.settle for group in groups])


def found(servers: Cluster) -> np.ndarray:
    weights = servers.weights(STEPS)
    return np.stack([weights[f"vectors.{i}"].numpy() for i in range(TENSORS)])


def test_members_push_and_land_their_own_tensors_and_the_bits_are_those_of_whole_ranks(groups: tuple[Cluster, list[Group]]) -> None:
    servers, made = groups
    for group in made:
        group.begin()
        group.push()
    run_on(made)
    np.testing.assert_array_equal(found(servers), reference(2), strict=True)
    other = made[0].rows(1, made[0].members[0].bound.landing[STEPS % 2])
    assert not np.array_equal(other, found(servers)[HALF:]), "what is another stage's does not travel"


@pytest.mark.parametrize("dead", [0, 1])
def test_of_a_member_that_dies_before_its_turn_everything_is_brought_again_and_nothing_of_the_others(
    groups: tuple[Cluster, list[Group]], dead: int
) -> None:
    servers, made = groups
    first, second = made
    second.begin()
    second.push()
    second.replace(dead)
    first.begin()
    first.push()  # the other stage's contribution has waited for it
    second.push((dead,))
    run_on(made)
    np.testing.assert_array_equal(found(servers), reference(2), strict=True)


def test_a_push_of_another_stages_chunks_is_refused() -> None:
    with cluster(1, 1, num_stages=2, optimizer=OPTIMIZER, comm=OVER_GRPC) as servers:
        group = Group(servers, 0)
        group.start()
        group.begin()
        client = group.members[1].client
        line = client._state.lines[0]
        values = Contribution(0, 1.0, group.members[1].bound.gradients, np.ones(TENSORS + 1, np.bool_))
        line.send(line.encode(pb.PUSH, Run(0, 1), values, 1).data)
        with pytest.raises(MalformedFrame, match=r"chunks 0\.\.0 of shard 0 are stage 0's, not stage 1's"):
            client.settle()


def test_steps_with_two_phases_have_the_bits_of_whole_ranks() -> None:
    clip = dataclasses.replace(OPTIMIZER, max_grad_norm=0.5)

    def digest(num_stages: int) -> str:
        with cluster(2, 3, num_stages=num_stages, optimizer=clip, comm=OVER_GRPC) as servers:
            ranks = [Group(servers, rank) if num_stages == 2 else Whole(servers, rank) for rank in range(2)]
            in_threads([rank.start for rank in ranks])
            for _ in range(STEPS):
                in_threads([rank.whole_step for rank in ranks])
            return servers.sha256(STEPS)

    assert digest(2) == digest(1)


@pytest.mark.parametrize(
    ("stages", "said"),
    [
        (
            {"vectors.2": 1},
            r"rank 1 against rank 0: tensor vectors.2 is float64\[64\] \(optimizer\) on stage 1, expected vectors.2 float64\[64\] \(opt",
        ),
        ({"vectors.5": 2}, "rank 1 is split over 3 stages or more, the run over 2"),
    ],
)
def test_ranks_that_split_differently_are_named(stages: dict[str, int], said: str) -> None:
    with cluster(2, 1, num_stages=2, optimizer=OptimizerConfig(), comm=OVER_GRPC) as servers:
        first = Group(servers, 0)
        in_threads([lambda: start(first.members[0]), lambda: start(first.members[1])])
        with pytest.raises(ModelMismatch, match=said):
            start(servers.member(1, Six(), stages=STAGES | stages))


def test_chunks_of_a_stage_are_few_runs() -> None:
    stages = (0, 0, 1, 0)
    shard = Layout([TensorSpec(name=str(i), shape=(8,), dtype="float32", stage=stage) for i, stage in enumerate(stages)], 1).shards[0]
    assert (shard.spans(0), shard.spans(1), shard.spans(2)) == ([Run(0, 2), Run(3, 4)], [Run(2, 3)], [])
    assert shard.frames(1 << 20, 0) == [Run(0, 2), Run(3, 4)]
