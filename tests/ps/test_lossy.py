"""int8 and topk from the worker's memory to the shard's: the same bits, nothing lost, one decision on a skipped step."""

import threading
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from ps.config import CommConfig, OptimizerConfig
from ps.errors import StateLost
from ps.layout import Rule, Run, ShardLayout
from tests.ps import training
from tests.ps.cluster import Member, cluster, exchange, in_threads, start
from tests.ps.test_formats import run_halved
from tests.waiting import until

LOSSY = ["int8", "topk"]


def comm_of(wire: str, **options: object) -> CommConfig:
    return CommConfig(push_format=wire, topk_fraction=0.1, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("wire", LOSSY)
def test_the_bits_depend_on_nothing_but_the_seed(wire: str) -> None:
    base = training.Job(num_workers=3, comm=comm_of(wire)).changed(dtype="float32", max_steps=7)
    small = comm_of(wire, frame_bytes=4096, window_frames=2)
    same = [
        *(replace(base, num_servers=servers) for servers in (1, 2, 4)),
        replace(base, num_servers=2, shuffle=1, comm=small),
        replace(base, num_servers=4, breaks=True, comm=small),
        replace(base, num_servers=2, comm=comm_of(wire, shared_memory=False)),
    ]
    found = [run_halved(job) for job in same]
    assert len(set(found)) == 1
    assert run_halved(replace(base, comm=CommConfig())) != found[0]


@pytest.mark.parametrize("wire", LOSSY)
def test_clipping_by_the_global_norm_has_the_same_bits_too(wire: str) -> None:
    optimizer = OptimizerConfig(lr=0.1, momentum=0.9, max_grad_norm=0.05)
    base = training.Job(num_workers=2, comm=comm_of(wire), optimizer=optimizer).changed(max_steps=6)
    jobs = [replace(base, num_servers=1), replace(base, num_servers=4, breaks=True, comm=comm_of(wire, frame_bytes=4096))]
    assert len({run_halved(job) for job in jobs}) == 1


def push(member: Member, step: int, gradient: torch.Tensor | None) -> int:
    """One step of a model whose only layer with an optimizer has this gradient; the bytes pushed."""
    layer = member.bound.model[0]
    layer.weight.grad = gradient
    member.bound.gather(1.0, divide=False, sums=(0.0, 1.0, 1.0, 1.0))
    timing = exchange(member, step, 1.0, present=member.bound.is_present)
    member.bound.install(step + 1)
    return sum(shard.push_bytes for shard in timing.shards)


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(100, 200, bias=False), nn.BatchNorm1d(200, affine=False), nn.Linear(8, 8).requires_grad_(False))


def residual(member: Member, version: int) -> np.ndarray:
    state = member.client._rank_state
    assert state
    return state.residual(version).view(np.float32).copy()


@pytest.mark.parametrize(("wire", "most"), [("int8", 20_000 + 3 * 4), ("topk", 3 * 2 + 2 * 6 * 2002)])
def test_only_what_an_optimizer_updates_is_compressed_and_what_is_left_comes_with_later_steps(wire: str, most: int) -> None:
    torch.manual_seed(1)
    gradients = [torch.randn(200, 100) for _ in range(6)]
    with cluster(1, 2, optimizer=OptimizerConfig(lr=1.0), comm=comm_of(wire)) as servers:
        member = servers.member(0, model())
        start(member)
        before = servers.weights(0)
        exact = sum(s.num_bytes for s in member.bound.layout.specs if s.rule not in (Rule.OPTIMIZER, Rule.FROZEN))
        for step, gradient in enumerate(gradients):
            assert 0 < push(member, step, gradient) - exact <= most
        after = servers.weights(6)
        left = torch.from_numpy(residual(member, 6)[:20_000]).view(200, 100)
        moved = before["0.weight"] - after["0.weight"]
        assert torch.allclose(moved + left, torch.stack(gradients).sum(0), atol=1e-4)
        assert left.abs().max() > 0.01
        assert torch.equal(after["2.weight"], before["2.weight"])


@pytest.mark.parametrize("wire", LOSSY)
def test_a_tensor_without_gradient_keeps_its_residual_and_a_skipped_step_that_of_all_ranks(wire: str) -> None:
    optimizer = OptimizerConfig(lr=1.0, nonfinite="skip")
    with cluster(2, 2, optimizer=optimizer, comm=comm_of(wire)) as servers:
        members = [servers.member(rank, model()) for rank in (0, 1)]
        in_threads([lambda m=member: start(m) for member in members])

        def step_of(step: int, *gradients: torch.Tensor | None) -> None:
            in_threads([lambda m=m, g=g: push(m, step, g) for m, g in zip(members, gradients, strict=True)])

        torch.manual_seed(1)
        step_of(0, torch.randn(200, 100), torch.randn(200, 100))
        kept = [residual(member, 1) for member in members]
        assert all(left.any() for left in kept)
        step_of(1, torch.randn(200, 100), None)
        assert (residual(members[1], 2) == kept[1]).all() and (residual(members[0], 2) != kept[0]).any()
        kept, weights = [residual(member, 2) for member in members], servers.weights(2)
        step_of(2, torch.full((200, 100), torch.nan), torch.randn(200, 100))
        assert torch.equal(servers.weights(3)["0.weight"], weights["0.weight"])
        assert all((residual(member, 3) == left).all() for member, left in zip(members, kept, strict=True))
        step_of(3, torch.randn(200, 100), torch.randn(200, 100))
        assert not torch.equal(servers.weights(4)["0.weight"], weights["0.weight"])
        assert all(np.isfinite(residual(member, 4)).all() for member in members)


def test_a_member_whose_memory_is_lost_is_told_so_when_it_joins() -> None:
    with cluster(1, 2, comm=comm_of("int8")) as servers:
        member = servers.member(0, model())
        start(member)
        push(member, 0, torch.randn(200, 100))
        member.client.close()
        with pytest.raises(StateLost, match="rank 0 joins at version 1"):
            start(servers.member(0, model(), incarnation=2))


def test_a_step_is_not_over_while_a_thread_still_encodes_for_it() -> None:
    """What it reads, gradient and residual, would be overwritten by the next step."""
    with cluster(2, 1, comm=comm_of("int8", frame_bytes=4096)) as servers:
        member, other = (servers.member(rank, model()) for rank in (0, 1))
        in_threads([lambda m=m: start(m) for m in (member, other)])
        state = member.client._rank_state
        assert state
        entered, go_on, encode = threading.Event(), threading.Event(), state.encode

        def held(layout: ShardLayout, run: Run, values: np.ndarray, step: int) -> np.ndarray:
            if run.first == 1 and not entered.is_set():
                entered.set()
                go_on.wait(20)
            return encode(layout, run, values, step)

        state.encode = held  # type: ignore[method-assign]
        pushing, settling = (threading.Thread(target=call) for call in (lambda: push_all(member), member.client.settle))
        pushing.start()
        assert entered.wait(10)
        member.client._state.lines[0]._stream.cancel()
        until(lambda: bool(member.client._state.broken), 20)
        settling.start()  # opens another stream and pushes everything there
        push_all(other)
        until(lambda: member.client._state.exchange.is_done, 20)
        settling.join(0.3)
        assert settling.is_alive()
        go_on.set()
        for thread in (pushing, settling):
            thread.join(10)
            assert not thread.is_alive()
        assert state.version == 1


def push_all(member: Member) -> None:
    member.bound.gradients[:] = 1
    member.client.begin(0, 1.0, member.bound.gradients)
    member.client.ready(range(len(member.bound.layout.specs)), present=True)
